"""How layers are asked for."""

import pytest
import torch
from torch import nn

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
