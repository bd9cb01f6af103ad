"""The layers that content and style are read from, and the check of the input's scale."""

from collections import OrderedDict

import pytest
import torch
from helpers import smooth
from torch import Tensor, nn
from torchvision.models.vgg import make_layers

import sightline as sl
from sightline.models.model import Model
from sightline.models.weights.layer_names import make_vgg_aliases
from sightline.optim.perceptual.layers import (
    choose_perceptual_layers,
    refuse_wrong_input_scale,
    require_image_maps,
)


def test_the_embedded_network_is_recognized() -> None:
    layers = choose_perceptual_layers(sl.load("sightnet", weights="random"))
    assert layers.content == ("relu3_1",)
    assert layers.style[0] == "relu1"


def test_vgg_is_recognized() -> None:
    features = make_layers([4, "M", 8, "M", 8, 8, "M", 8, 8, "M", 8, 8])
    vgg = nn.Sequential(OrderedDict(features=features))
    model = Model(vgg, size=32, aliases=make_vgg_aliases(vgg))
    assert "relu5_1" in choose_perceptual_layers(model).style


def test_squeezenet_is_recognized() -> None:
    model = sl.load("squeezenet1_1", weights="random")
    assert "fire4" in choose_perceptual_layers(model).content


def test_another_network_has_a_layer_of_each_resolution(tiny: sl.Model) -> None:
    layers = choose_perceptual_layers(tiny)
    heights = [tiny.shape(name)[1] for name in layers.style]
    assert heights == [32, 16, 8]
    assert layers.style == ("relu1", "relu2", "relu3")
    assert layers.content == ("relu2",)


def test_a_network_without_positions_is_refused() -> None:
    dense = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    with pytest.raises(sl.SightlineError, match="no layer with positions"):
        choose_perceptual_layers(sl.load(dense, size=4))


class PositionTable(nn.Module):
    """Maps, then what only looks like maps: a table computed from weights, channels last, T×T."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 4, stride=4)
        self.table = nn.Linear(2, 6)
        self.last = nn.Linear(6, 6)
        self.weights = nn.Softmax(-1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.stem(x).permute(0, 2, 3, 1)
        places = torch.stack(torch.meshgrid(torch.arange(13.0), torch.arange(13.0), indexing="ij"))
        table = self.table(places.permute(1, 2, 0)[None])
        maps = self.last(maps) + table.mean()
        tokens = maps.flatten(1, 2)
        weights = self.weights((tokens @ tokens.transpose(1, 2))[:, None])
        return self.head((weights[:, 0] @ tokens).mean(1))


def test_what_only_has_the_shape_of_maps_is_left_out() -> None:
    torch.manual_seed(0)
    model = sl.load(PositionTable().eval(), size=32, device="cpu")
    assert len(model.layers["table"].shape) == len(model.layers["weights"].shape) == 3
    layers = choose_perceptual_layers(model)
    assert layers.style == layers.content == ("stem",)


def test_style_of_such_a_network_is_that_of_its_maps(wide_photo: Tensor) -> None:
    torch.manual_seed(0)
    model = sl.load(PositionTable().eval(), size=32, device="cpu")
    result = sl.style(model, wide_photo, styles=(wide_photo.flip(3),), steps=2)
    assert list(result.values["style_losses"]) == ["stem"]


# ── the scale of the input ──


def make_network(scale: float = 1.0, *, trained: bool = True) -> nn.Sequential:
    """A convolution and a batch norm after it.

    Trained on `scale` times what mean 0.5 and std 0.25 make of smooth images.
    """
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )
    if trained:
        images = (smooth(16) - 0.5) / 0.25 * scale
        network.train()
        with torch.no_grad():
            for _ in range(200):
                network(images)
    return network.eval()


INPUT = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "size": 32}


@pytest.fixture(scope="module")
def wide_photo() -> Tensor:
    return smooth(1, 44)[..., :32, :]


@pytest.mark.parametrize("scale", [57, 1 / 57])
def test_an_unknown_scale_is_refused(wide_photo: Tensor, scale: float) -> None:
    model = sl.load(make_network(scale), **INPUT)
    with pytest.raises(
        sl.SightlineError, match=r"are ([\d.]+) times as large as in training"
    ) as error:
        refuse_wrong_input_scale(model, wide_photo)
    ratio = float(str(error.value).split("layer are ")[1].split()[0])
    # The image is none of those of the training.
    assert ratio == pytest.approx(1 / scale, rel=0.4)
    with pytest.raises(sl.SightlineError, match="trained on images of another scale"):
        sl.style(model, wide_photo, styles=(wide_photo,), steps=1)


@pytest.mark.parametrize(
    "network",
    [make_network(), make_network(3), make_network(1 / 3), make_network(57, trained=False)],
    ids=["same", "larger", "smaller", "untrained"],
)
def test_a_possible_scale_passes(wide_photo: Tensor, network: nn.Module) -> None:
    refuse_wrong_input_scale(sl.load(network, **INPUT), wide_photo)


def test_a_flat_image_says_nothing_about_the_scale() -> None:
    flat = torch.full((1, 3, 32, 44), 0.4)
    refuse_wrong_input_scale(sl.load(make_network(), **INPUT), flat)


def test_networks_without_batch_norm_pass(tiny: sl.Model, wide_photo: Tensor) -> None:
    refuse_wrong_input_scale(tiny, wide_photo * 1e3)
    dense = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    refuse_wrong_input_scale(sl.load(dense, size=4), wide_photo)


def test_a_network_that_ends_with_its_convolution_passes(wide_photo: Tensor) -> None:
    refuse_wrong_input_scale(sl.load(nn.Sequential(nn.Conv2d(3, 4, 3)), **INPUT), wide_photo)


class ChannelsLast(nn.Module):
    """A patch embedding, then maps N×H×W×C as Swin has them, and tokens N×T×C."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.block = nn.Linear(8, 8)
        self.tokens = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.block(self.stem(x).permute(0, 2, 3, 1)).tanh()
        return self.head(self.tokens(maps.flatten(1, 2)).mean(1))


@pytest.mark.parametrize(
    ("name", "shape"), [("block", "8×16×8"), ("tokens", "128×8"), ("head", "3"), ("logits", "3")]
)
def test_layers_that_are_no_maps_are_refused(name: str, shape: str) -> None:
    torch.manual_seed(0)
    model = sl.load(ChannelsLast().eval(), size=32)
    require_image_maps(model, ["stem"])
    require_image_maps(model, [])
    message = f"{name} gives {shape} for an image of 32×64; choose layers such as stem"
    with pytest.raises(sl.SightlineError, match=message):
        require_image_maps(model, ["stem", name])


@pytest.mark.parametrize("parameter", ["style_layers", "content_layers"])
def test_style_refuses_layers_that_are_no_maps(parameter: str) -> None:
    model = sl.load(ChannelsLast().eval(), size=32)
    with pytest.raises(sl.SightlineError, match="block gives 8×16×8"):
        sl.style(model, smooth(), styles=(smooth(seed=2),), **{parameter: ("block",)})
    with pytest.raises(sl.SightlineError, match="block gives 8×16×8"):
        sl.texture(model, smooth(), layers=("block",))
