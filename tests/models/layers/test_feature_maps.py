"""Positions of any layer."""

import pytest
import torch
from torch import Tensor, nn
from zoo.odd_views import VIEW_NETWORKS, BagOfPatches

import sightline as sl
from sightline.errors import SightlineError
from sightline.models.layers.feature_maps import (
    find_view_layers,
    reshape_to_feature_maps,
    reshape_to_unit_grid,
)
from sightline.models.model import Model

GENERATOR = torch.Generator().manual_seed(0)
SCORES = torch.rand(2, 4, generator=GENERATOR)


# ── positions ──


def number_positions(count: int, rows: int, columns: int, channels: int) -> Tensor:
    """N×C×rows×columns whose values all differ."""
    return (
        torch.arange(count * channels * rows * columns).view(count, channels, rows, columns) * 1.0
    )


@pytest.mark.parametrize(("rows", "columns"), [(6, 9), (7, 7), (4, 11)])
def test_maps_are_returned_as_they_are(rows: int, columns: int) -> None:
    maps = number_positions(2, rows, columns, channels=5)
    assert reshape_to_feature_maps(maps, rows * 16, columns * 16) is maps


@pytest.mark.parametrize(("rows", "columns"), [(6, 9), (7, 7), (4, 11)])
def test_channels_may_come_last(rows: int, columns: int) -> None:
    maps = number_positions(2, rows, columns, channels=24)
    channels_last = maps.permute(0, 2, 3, 1).contiguous()
    assert torch.equal(reshape_to_feature_maps(channels_last, rows * 16, columns * 16), maps)


@pytest.mark.parametrize(("rows", "columns"), [(6, 9), (7, 7), (12, 18), (12, 8)])
@pytest.mark.parametrize("extra_tokens", [0, 1, 5])
def test_tokens_lie_on_the_grid_of_the_image(rows: int, columns: int, extra_tokens: int) -> None:
    maps = number_positions(2, rows, columns, channels=3)
    image_tokens = [maps[:, :, row, column] for row in range(rows) for column in range(columns)]
    class_tokens = [torch.full((2, 3), -1.0)] * extra_tokens
    tokens = torch.stack([*class_tokens, *image_tokens], 1)
    assert torch.equal(reshape_to_feature_maps(tokens, rows * 16, columns * 16), maps)


@pytest.mark.parametrize("shape", [(2, 7), (2, 5, 3), (2, 3, 4, 5, 6)])
def test_features_without_positions(shape: tuple[int, ...]) -> None:
    with pytest.raises(SightlineError, match="has no positions in the image: its output is"):
        reshape_to_feature_maps(torch.zeros(shape), 96, 144)


def test_the_units_of_a_vector_have_one_position() -> None:
    image = torch.zeros(2, 3, 96, 144)
    assert torch.equal(reshape_to_unit_grid(SCORES, image), SCORES.view(2, 4, 1, 1))
    maps = number_positions(2, 6, 9, channels=4)
    assert reshape_to_unit_grid(maps, image) is maps
    tokens = maps.flatten(2).transpose(1, 2)
    assert torch.equal(reshape_to_unit_grid(tokens, image), maps)


def test_a_single_token_is_a_vector() -> None:
    feature = torch.randn(2, 1, 5, generator=torch.Generator().manual_seed(3))
    image = torch.zeros(2, 3, 24, 32)
    assert torch.equal(reshape_to_unit_grid(feature, image), feature[:, 0, :, None, None])
    with pytest.raises(SightlineError, match="no positions"):
        reshape_to_unit_grid(feature, image[:1])


# ── several views of an image in one batch ──

VIEW_OPTIONS = {"pair_in_one_batch": {"inputs": {"other": torch.rand(1, 3, 32, 40)}}}


def load_views(name: str) -> Model:
    torch.manual_seed(0)
    network = VIEW_NETWORKS[name][0]().eval()
    return Model(network, size=(32, 40), **VIEW_OPTIONS.get(name, {}))


@pytest.mark.parametrize("name", VIEW_NETWORKS)
def test_layers_that_see_several_views(name: str) -> None:
    model = load_views(name)
    views = find_view_layers(model)
    inner = "net.backbone" if name == "five_crops" else "backbone"
    assert views[f"{inner}.conv1"] == views[inner] == VIEW_NETWORKS[name][1]
    # The head of some is behind the mean over the views.
    assert ("head" in views) == (name == "mirror_images")


@pytest.mark.parametrize("name", VIEW_NETWORKS)
def test_a_network_of_views_says_so(name: str) -> None:
    model = load_views(name)
    image = torch.rand(1, 3, 32, 40)
    inner = "net.backbone" if name == "five_crops" else "backbone"
    outer = "net" if name == "five_crops" else "backbone"
    message = (
        f"runs {VIEW_NETWORKS[name][1]} views of each image in one batch .* "
        rf"load what sees them, sl\.load\(network\.{outer}\), or ask saliency or occlusion"
    )
    with pytest.raises(SightlineError, match=f"there is no last_conv: .*{message}"):
        sl.gradcam(model, image)
    with pytest.raises(SightlineError, match=f"layer {inner}.conv2 has no positions.*{message}"):
        sl.gradcam(model, image, layer=f"{inner}.conv2")
    assert model.landmarks["first"] == f"{inner}.conv1"
    assert sl.saliency(model, image).values["attribution"].any()


def test_vectors_of_several_views_are_not_those_of_images() -> None:
    model = load_views("mirror_images")
    image = torch.rand(1, 3, 32, 40)
    vectors = model.run(image, ["head:in"])["head:in"]
    assert vectors.shape == (2, 8)
    with pytest.raises(SightlineError, match="layer head:in has no vector of each image"):
        reshape_to_unit_grid(vectors, image, model, "head:in")


def test_windows_and_tables_are_not_taken_for_views() -> None:
    class WithTable(nn.Module):
        """A table of positions goes through a layer of its own, and the tokens come first."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 8, stride=8)
            self.table = nn.Linear(2, 8)
            self.norm = nn.LayerNorm(8)
            self.head = nn.Linear(8, 5)

        def forward(self, image: Tensor) -> Tensor:
            tokens = self.conv(image).flatten(2).permute(2, 0, 1)
            table = self.table(torch.linspace(0, 1, 2 * len(tokens)).view(-1, 2))
            return self.head(self.norm(tokens + table[:, None]).mean(0))

    model = Model(WithTable().eval(), size=(32, 40))
    assert model.layers["table"].batch == model.layers["norm"].batch == 20
    assert find_view_layers(model) == {}
    assert model.landmarks["last_conv"] == "norm"


def test_a_bag_of_patches_has_a_map() -> None:
    torch.manual_seed(0)
    model = Model(BagOfPatches().eval(), size=(32, 48))
    image = torch.rand(1, 3, 32, 48)
    assert model.landmarks["last_conv"] == "backbone"
    result = sl.gradcam(model, image, label=2)
    patches = [strip.split(16, 3) for strip in image.split(16, 2)]
    network = model.network
    batch = torch.cat([*patches[0], *patches[1]])
    maps = network.backbone(model.normalize(batch)).detach().requires_grad_()
    score = network.head(maps.mean((2, 3)).amax(0))[2]
    (gradient,) = torch.autograd.grad(score, maps)
    by_row = [torch.cat([*row.split(1)], 3) for row in maps.detach().chunk(2)]
    joined = torch.cat(by_row, 2)
    gradient_rows = [torch.cat([*row.split(1)], 3) for row in gradient.chunk(2)]
    weights = torch.cat(gradient_rows, 2).mean((2, 3), keepdim=True)
    torch.testing.assert_close(result.values["cam"], (weights * joined).sum(1).relu())
