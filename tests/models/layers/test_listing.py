"""How layers are asked for."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sightline as sl
from sightline.models.model import Model


def make_model() -> Model:
    torch.manual_seed(0)
    stages = [nn.Sequential() for _ in range(2)]
    for i, stage in enumerate(stages):
        stage.add_module("conv", nn.Conv2d(4 if i else 3, 4, 3))
        stage.add_module("act", nn.ReLU())
    network = nn.Sequential()
    network.add_module("stage1", stages[0])
    network.add_module("stage2", stages[1])
    network.add_module("pool", nn.AdaptiveAvgPool2d(1))
    network.add_module("flat", nn.Flatten())
    network.add_module("fc", nn.Linear(4, 5))
    return Model(network.eval(), size=32)


NAMES = [
    "stage1.conv",
    "stage1.act",
    "stage1",
    "stage2.conv",
    "stage2.act",
    "stage2",
    "pool",
    "flat",
    "fc",
]
IMAGE = torch.rand(1, 3, 32, 40, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("index", range(-9, 9))
def test_an_index_counts_from_zero_or_from_the_end(index: int) -> None:
    model = make_model()
    assert list(model.layers) == NAMES
    assert model.layer(index) == NAMES[index]
    assert model.layer(str(index)) == NAMES[index]


def test_a_layer_that_has_the_number_for_its_name_comes_first() -> None:
    conv = nn.Sequential(nn.Conv2d(3, 4, 3))
    model = Model(nn.Sequential(conv, nn.Flatten(), nn.Linear(3600, 5)).eval(), size=32)
    assert list(model.layers) == ["0.0", "0", "1", "2"]
    assert model.layer(1) == "1"
    assert model.layer(3) == "2"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (9, "layer is 9; there are 9 layers: give an index from -9 to 8, or a name"),
        ("-10", "layer is -10; there are 9 layers"),
        ("stage*.conv", "matches 2 layers: give one of stage1.conv, stage2.conv"),
        ("head*", "it matches none of the 9 layers"),
        ("stage3.conv", "did you mean stage"),
    ],
)
def test_what_is_refused(name: str | int, why: str) -> None:
    with pytest.raises(sl.SightlineError) as caught:
        make_model().layer(name)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_pattern_stands_for_the_one_layer_that_it_matches() -> None:
    model = make_model()
    assert model.layer("*2.conv") == "stage2.conv"
    by_name = sl.gradcam(model, IMAGE, layer="stage2.act", label=0).values["cam"]
    for request in ("*2.act", 4, "-5"):
        assert torch.equal(sl.gradcam(model, IMAGE, layer=request, label=0).values["cam"], by_name)


def test_where_several_layers_are_taken_a_pattern_stands_for_all_matches() -> None:
    values = sl.activations(make_model(), IMAGE, layers=("*.conv", 5), k=2).values
    maps = {name.removesuffix("_maps") for name in values if name.endswith("_maps")}
    assert maps == {"stage1_conv", "stage2_conv", "5"}
    assert make_model().match_layers(["fc", "*.act"]) == ("fc", "stage1.act", "stage2.act")


class Frequencies(nn.Module):
    """Complex maps of the frequencies of features."""

    def forward(self, maps: Tensor) -> Tensor:
        return torch.fft.rfft2(maps)


class BySpectrum(nn.Module):
    """Classifies by the spectrum of its features; a container is never called."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.parts = nn.ModuleDict({"conv": nn.Conv2d(3, 6, 3), "spectrum": Frequencies()})
        self.head = nn.Linear(6, 4)

    def forward(self, image: Tensor) -> Tensor:
        spectrum = self.parts["spectrum"](self.parts["conv"](image))
        return self.head(spectrum.abs().mean((2, 3)))


def test_modules_without_features_are_no_layers(tmp_path: Path) -> None:
    model = sl.load(BySpectrum(), size=24)
    assert list(model.layers) == ["parts.conv", "head"]
    assert model.landmarks["last_conv"] == "parts.conv"
    image = model.blank()
    sl.write(image, tmp_path / "gray.png")
    for name in ("parts.spectrum", "parts"):
        for ask in (
            lambda name=name: sl.gradcam(model, image, layer=name),
            lambda name=name: sl.activations(model, image, layers=(name,)),
            lambda name=name: sl.inversion(model, image, layer=name),
            lambda name=name: sl.scan(model, tmp_path, layers=(name,), store=tmp_path / "s"),
        ):
            with pytest.raises(sl.SightlineError, match=f"{name} is a module of BySpectrum and no"):
                ask()
