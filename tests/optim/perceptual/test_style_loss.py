"""Losses in tiles against those of the whole image; regions; and what the losses are zero for."""

import pytest
import torch
from helpers import small_network, smooth
from torch import Tensor, nn
from torchvision.models import squeezenet1_0, vgg11

import sightline as sl
from sightline.optim.perceptual.losses import compute_moments
from sightline.optim.perceptual.style_loss import (
    StyleRegion,
    StyleTransferLoss,
    compute_region_weights,
    compute_tiled_loss,
)
from sightline.optim.perceptual.tiling import (
    iterate_image_tiles,
    measure_feature_map_sizes,
    plan_tiles,
)


def random_model(build: object, size: int = 64) -> sl.Model:
    state = torch.get_rng_state()
    torch.manual_seed(0)
    network = build()  # type: ignore[operator]
    torch.set_rng_state(state)
    return sl.load(network, mean=(0.5,) * 3, std=(0.25,) * 3, size=size)


def branches() -> nn.Module:
    """Ceiling pools, strides without padding, and a layer of odd stride: SqueezeNet's geometry."""
    return squeezenet1_0(num_classes=4)


MODELS = {
    "small": (
        lambda: sl.load(small_network(), mean=(0.5,) * 3, std=(0.25,) * 3, size=32),
        ("relu1", "relu2", "relu3"),
        ("relu2",),
    ),
    "squeezenet": (
        lambda: random_model(branches),
        ("features.1", "features.3", "features.7"),
        ("features.4",),
    ),
    "vgg11": (
        lambda: random_model(lambda: vgg11(num_classes=4)),
        ("features.1", "features.4", "features.9"),
        ("features.12",),
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def case(request: pytest.FixtureRequest) -> tuple[sl.Model, tuple[str, ...], tuple[str, ...]]:
    build, style, content = MODELS[request.param]
    return build(), style, content


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 12, 14, generator=generator)
    # Grain, since in a flat patch rounding decides which of equal values a max pooling takes.
    return (
        nn.functional.interpolate(coarse, size=(height, width), mode="bilinear") * 0.8
        + torch.rand(1, 3, height, width, generator=generator) * 0.2
    )


def painting(
    model: sl.Model,
    style: tuple[str, ...],
    content: tuple[str, ...],
    size: tuple[int, int],
    *,
    kind: str,
    masked: bool,
) -> StyleTransferLoss:
    with torch.no_grad():
        aims = [
            {
                name: compute_moments(f)
                for name, f in model.features(picture(60, 50, seed), style).items()
            }
            for seed in (1, 2)
        ]
        wanted = model.features(picture(*size, 3), content)
    regions = [StyleRegion(1.0, aims[0])]
    if masked:
        mask = torch.zeros(1, 1, *size)
        mask[..., : size[1] // 3] = 1
        sizes = measure_feature_map_sizes(model, style, *size)
        regions = [
            StyleRegion(0.7, aims[0], compute_region_weights(mask, sizes)),
            StyleRegion(0.3, aims[1], compute_region_weights(1 - mask, sizes)),
        ]
    weights = {name: 1.0 + number for number, name in enumerate(style)}
    return StyleTransferLoss(
        weights, regions, {name: (0.5, wanted[name]) for name in content}, kind
    )  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "masked"), [("gram", False), ("gram", True), ("w2", False)])
@pytest.mark.parametrize("size", [(150, 97), (128, 160)])
def test_tiles_give_the_whole_image_s_gradient(
    case: tuple[sl.Model, tuple[str, ...], tuple[str, ...]],
    kind: str,
    masked: bool,
    size: tuple[int, int],
) -> None:
    model, style, content = case
    loss = painting(model, style, content, size, kind=kind, masked=masked)
    image = picture(*size, 5).requires_grad_()
    whole = -loss.make_objective().bind(model)(image, {})
    (gradient,) = torch.autograd.grad(whole.sum(), image)
    found, tiles_gradient = compute_tiled_loss(
        image.detach(),
        loss,
        model,
        plan_tiles(model, loss.layers, (image.shape[2], image.shape[3]), 48),
    )
    # Square roots of covariances that are nearly singular lose digits in single precision.
    torch.testing.assert_close(
        found, whole.detach(), rtol=1e-4 if kind == "gram" else 1e-3, atol=1e-7
    )
    assert float((tiles_gradient - gradient).norm() / gradient.norm()) < (
        1e-4 if kind == "gram" else 2e-2
    )


def test_every_place_belongs_to_one_tile(
    case: tuple[sl.Model, tuple[str, ...], tuple[str, ...]],
) -> None:
    model, style, _ = case
    for height, width in ((150, 97), (64, 200)):
        sizes = measure_feature_map_sizes(model, style, height, width)
        features = model.features(picture(height, width), style)
        assert sizes == {name: tuple(found.shape[-2:]) for name, found in features.items()}
        seen = {name: torch.zeros(size) for name, size in sizes.items()}
        for tile in iterate_image_tiles(model, style, height, width, 48):
            found = model.features(tile.crop_image(picture(height, width)).contiguous(), style)
            for name in style:
                tile.crop_whole_map(name, seen[name]).add_(1)
                torch.testing.assert_close(
                    tile.crop_owned_features(name, found[name]),
                    tile.crop_whole_map(name, features[name]),
                    rtol=1e-4,
                    atol=1e-5,
                )
        assert all(bool((count == 1).all()) for count in seen.values())


def test_the_loss_is_a_node_of_autograd(
    case: tuple[sl.Model, tuple[str, ...], tuple[str, ...]],
) -> None:
    model, style, content = case
    loss = painting(model, style, content, (100, 110), kind="gram", masked=False)
    image = picture(100, 110, 5).requires_grad_()
    score = loss.make_objective(tile_side=48).bind(model)(image, {})
    score.sum().backward()
    _, gradient = compute_tiled_loss(
        image.detach(),
        loss,
        model,
        plan_tiles(model, loss.layers, (image.shape[2], image.shape[3]), 48),
    )
    torch.testing.assert_close(image.grad, -gradient)


def test_a_layer_that_sees_everything_is_refused() -> None:
    class Squeezed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head, self.last = (
                nn.Conv2d(3, 4, 3),
                nn.Conv2d(4, 4, 1),
                nn.Linear(4, 2),
            )

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            x = self.head(x * x.mean((2, 3), keepdim=True))
            return self.last(x.mean((2, 3)))

    model = sl.load(Squeezed(), mean=(0.5,) * 3, std=(0.25,) * 3, size=32)
    with pytest.raises(sl.SightlineError, match="layer head of Squeezed sees the whole image"):
        list(iterate_image_tiles(model, ("head",), 100, 100, 48))


def test_regions_see_only_their_own() -> None:
    model = sl.load(small_network(), mean=(0.5,) * 3, std=(0.25,) * 3, size=32)
    left, right = smooth(1, 40, 1), smooth(1, 40, 2)
    both = torch.cat([left, right], 3)
    features = model.features(both, ["relu1"])["relu1"]
    mask = torch.zeros(1, 40, 80)
    mask[..., :40] = 1
    found = compute_moments(features, mask)
    torch.testing.assert_close(found.gram, compute_moments(features[..., :40]).gram)
    torch.testing.assert_close(found.mean, compute_moments(features[..., :40]).mean)


@pytest.mark.parametrize("kind", ["gram", "w2", "sliced"])
def test_loss_is_zero_for_the_image_itself_only(tiny: sl.Model, kind: str) -> None:
    given, layers = picture(60, 50), ("relu1", "relu2")
    seen = tiny.features(given, layers)
    regions = (
        []
        if kind == "sliced"
        else [StyleRegion(1.0, {name: compute_moments(found) for name, found in seen.items()})]
    )
    samples = seen if kind == "sliced" else None
    loss = StyleTransferLoss(
        {"relu1": 1.0, "relu2": 2.0}, regions, {"relu2": (1.0, seen["relu2"])}, kind, samples
    )  # type: ignore[arg-type]
    score = loss.make_objective().bind(tiny)
    assert abs(float(score(given, {}))) < 1e-4
    assert float(score(picture(60, 50, 3), {})) < -1e-4


def test_loss_adds_weighted_layers_by_any_of_their_names() -> None:
    model = sl.load("squeezenet1_1", weights="random")
    given, other = picture(64, 64), picture(64, 64, 4)
    wanted, found = (model.features(one, ["relu1", "fire2"]) for one in (given, other))
    target = {name: compute_moments(features) for name, features in wanted.items()}
    loss = StyleTransferLoss(
        {"relu1": 3.0, "fire2": 5.0}, [StyleRegion(1.0, target)], {"fire2": (2.0, wanted["fire2"])}
    )
    expected = (
        sum(
            weight * (compute_moments(found[name]).gram - target[name].gram).square().mean() / 4
            for name, weight in loss.style_weights.items()
        )
        + 2 * (found["fire2"] - wanted["fire2"]).square().mean()
    )
    torch.testing.assert_close(-loss.make_objective().bind(model)(other, {})[0], expected)
