"""Activation maps are what plain hooks see, the strongest first."""

import base64
import itertools
import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sightline as sl
from sightline.models.tracing.receptive_field import receptive_field


class Net(nn.Module):
    """ReLU as a module, and an in-place one without a module, which overwrites what a hook on the convolution saw."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (
            nn.Conv2d(3, 5, 3, padding=1),
            nn.Conv2d(5, 6, 3, stride=2),
            nn.Conv2d(6, 40, 3),
        )
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(40, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv1(x))
        x = F.relu(self.conv2(x), inplace=True)
        return self.head(F.relu(self.conv3(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def model() -> sl.Model:
    torch.manual_seed(0)
    return sl.load(Net(), mean=(0.5,) * 3, std=(0.25,) * 3, size=16, device="cpu")


def pictures(count: int = 2) -> Tensor:
    return torch.rand(count, 3, 16, 20, generator=torch.Generator().manual_seed(1))


def by_hand(model: sl.Model, image: Tensor) -> dict[str, Tensor]:
    """Each layer's own output, computed one after the other."""
    with torch.no_grad():
        x = (image - 0.5) / 0.25
        conv1 = model.module("conv1")(x).clone()
        conv2 = model.module("conv2")(conv1.relu()).clone()
        return {
            "conv1": conv1,
            "relu": conv1.relu(),
            "conv2": conv2,
            "conv3": model.module("conv3")(conv2.relu()),
        }


@pytest.mark.parametrize("layer", ["conv1", "relu", "conv2", "conv3"])
def test_maps_are_the_layers_outputs_and_the_strongest_come_first(
    model: sl.Model, layer: str
) -> None:
    values = sl.activations(model, pictures(), layers=(layer,), k=4).values
    expected = by_hand(model, pictures())[layer]
    assert torch.allclose(values[f"{layer}_maps"], expected, atol=1e-5)
    for i in range(2):
        peaks = [float(channel.max()) for channel in expected[i]]
        order = sorted(range(len(peaks)), key=lambda u: -peaks[u])[:4]
        assert [peaks[u] for u in values[f"{layer}_order"][i].tolist()] == pytest.approx(
            [peaks[u] for u in order], abs=1e-5
        )


def test_several_layers_at_once(model: sl.Model) -> None:
    result = sl.activations(model, pictures(1), layers=("conv3", "conv1", "relu"), k=200)
    assert list(result.panels) == ["conv3", "conv1", "relu"]
    expected = by_hand(model, pictures(1))
    for name in result.panels:
        assert torch.allclose(result.values[f"{name}_maps"], expected[name], atol=1e-5)
        assert sorted(result.values[f"{name}_order"][0].tolist()) == list(
            range(expected[name].shape[1])
        )
    landmarks = sl.activations(model, pictures(1)).values
    assert torch.allclose(landmarks["first_maps"], expected["conv1"], atol=1e-5)


def test_signed_layers_are_red_and_blue_and_others_gray(model: sl.Model) -> None:
    signed = sl.activations(model, pictures(1), layers=("conv1",))
    assert signed.values["conv1_maps"].min() < 0
    assert "red positive" in signed.captions["conv1"]
    picture = signed.panels["conv1"][0]
    assert (picture.amax(0) - picture.amin(0)).max() > 0.3
    plain = sl.activations(model, pictures(1), layers=("relu",))
    assert plain.values["relu_maps"].min() >= 0
    assert "Black is zero" in plain.captions["relu"]
    picture = plain.panels["relu"][0]
    assert (picture.amax(0) - picture.amin(0)).max() < 1e-6


def test_a_dead_layer_is_black_and_not_nan(model: sl.Model) -> None:
    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        net.conv1.bias.fill_(-1e3)
    result = sl.activations(sl.load(net, size=16, device="cpu"), pictures(1), layers=("relu",))
    assert result.values["relu_maps"].abs().max() == 0
    assert torch.isfinite(result.panels["relu"]).all()
    assert "0% of all channels" in result.captions["relu"]


def test_a_layer_without_places_is_refused(model: sl.Model) -> None:
    with pytest.raises(sl.SightlineError, match="no places"):
        sl.activations(model, pictures(1), layers=("head",))
    with pytest.raises(sl.SightlineError, match="no layer named 'conv9'"):
        sl.activations(model, pictures(1), layers=("conv9",))


# ── one unit and what it sees ──


@pytest.mark.parametrize(("layer", "unit"), [("conv1", 2), ("conv2", 5), ("conv3", 7)])
def test_a_unit_is_shown_at_its_strongest_place_with_what_it_sees(
    model: sl.Model, layer: str, unit: int
) -> None:
    result = sl.activations(model, pictures(), layers=(layer,), unit=unit)
    maps = by_hand(model, pictures())[layer][:, unit]
    assert list(result.panels) == [layer, f"{layer}_unit"]
    field = sl.receptive_field(model, layer, 16, 20)
    for i in range(2):
        row, column = int(result.values["row"][i]), int(result.values["column"][i])
        assert maps[i, row, column] == maps[i].max()
        assert result.values["activation"][i].item() == pytest.approx(
            float(maps[i].max()), abs=1e-5
        )
        assert tuple(result.values["box"][i].tolist()) == field.box(row, column, 16, 20)
    row, column = int(result.values["row"][0]), int(result.values["column"][0])
    words = f"Unit {unit} of {layer} is strongest at row {row}, column {column} of its {maps.shape[1]}×{maps.shape[2]} places"
    assert words in result.captions[f"{layer}_unit"]


def test_the_frame_is_drawn_round_what_the_unit_sees(model: sl.Model) -> None:
    image = 0.1 + 0.3 * pictures(1)
    result = sl.activations(model, image, layers=("conv2",), unit=1)
    changed = ((result.panels["conv2_unit"][..., :20] - image).abs().amax(1)[0] > 0.3).nonzero()
    assert [*changed.amin(0).tolist(), *(changed.amax(0) + 1).tolist()] == result.values["box"][
        0
    ].tolist()


def test_a_unit_leaves_the_rest_as_it_is(model: sl.Model) -> None:
    plain, more = (
        sl.activations(model, pictures(), layers=("relu",), unit=unit) for unit in (None, 0)
    )
    assert torch.equal(plain.panels["relu"], more.panels["relu"])
    assert plain.captions["relu"] == more.captions["relu"]
    assert plain.values.keys() == {"relu_maps", "relu_order"}


def test_a_unit_that_is_not_there_or_of_several_layers_is_refused(model: sl.Model) -> None:
    with pytest.raises(sl.SightlineError, match="unit is 5; conv1 has units 0 to 4"):
        sl.activations(model, pictures(1), layers=("conv1",), unit=5)
    with pytest.raises(
        sl.SightlineError, match="unit is 1, of one layer; given were 2: conv1, relu"
    ):
        sl.activations(model, pictures(1), layers=("conv1", "relu"), unit=1)


# ── the page to browse ──


def layers_of(page: str) -> list[dict[str, Any]]:
    """What the page knows of each layer."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_the_page_has_the_maps_and_what_each_place_sees(model: sl.Model) -> None:
    result = sl.activations(model, pictures(1), layers=("conv1", "conv3"), k=4)
    assert list(result.pages) == ["browse"]
    first, last = layers_of(result.pages["browse"])
    for layer, name in ((first, "conv1"), (last, "conv3")):
        maps, order = result.values[f"{name}_maps"][0], result.values[f"{name}_order"][0].tolist()
        assert [channel["unit"] for channel in layer["channels"]] == order
        steps = np.frombuffer(base64.b64decode(layer["bytes"]), dtype=np.uint8).reshape(
            len(order), *maps.shape[1:]
        )
        for channel, step, unit in zip(layer["channels"], steps, order, strict=True):
            shown = channel["low"] + step / 255 * (channel["high"] - channel["low"])
            assert (
                np.abs(shown - maps[unit].numpy()).max() <= (channel["high"] - channel["low"]) / 500
            )
            assert maps[unit, channel["row"], channel["column"]] == maps[unit].max()
    field = receptive_field(model, "conv3", 16, 20)
    for row, column in itertools.product(range(len(last["rows"])), range(len(last["columns"]))):
        (top, bottom), (left, right) = last["rows"][row], last["columns"][column]
        assert (top, left, bottom, right) == field.box(row, column, 16, 20)


def test_a_batch_has_a_page_for_each_image(model: sl.Model) -> None:
    pages = sl.activations(model, pictures(2), layers=("conv2",), k=3).pages
    assert list(pages) == ["browse_0", "browse_1"]
    for i, page in enumerate(pages.values()):
        alone = sl.activations(model, pictures(2)[i : i + 1], layers=("conv2",), k=3).pages[
            "browse"
        ]
        assert [c["unit"] for c in layers_of(page)[0]["channels"]] == [
            c["unit"] for c in layers_of(alone)[0]["channels"]
        ]


def test_the_page_stands_alone_and_escapes_names() -> None:
    torch.manual_seed(0)
    evil = sl.Model(Net(), mean=(0.5,) * 3, std=(0.25,) * 3, size=16, name="</script><b>")
    page = sl.activations(evil, pictures(1), layers=("conv1",), k=2).pages["browse"]
    assert "</script><b>" not in page
    assert "http" not in page
    assert page.count("<script") == page.count("</script>") == 2


def test_a_map_of_one_value_has_a_page() -> None:
    flat = Net()
    nn.init.zeros_(flat.conv1.weight)
    nn.init.zeros_(flat.conv1.bias)
    page = sl.activations(sl.load(flat, size=16), pictures(1), layers=("conv1",), k=2).pages[
        "browse"
    ]
    (layer,) = layers_of(page)
    assert layer["top"] > 0
    assert [channel["high"] for channel in layer["channels"]] == [0.0, 0.0]
