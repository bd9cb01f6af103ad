"""The page to browse activation maps has the maps, and what each position sees."""

import base64
import itertools
import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sightline as sl
from sightline.models.tracing.receptive_field import receptive_field


def make_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(5, 6, 3, stride=2),
        nn.Conv2d(6, 8, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


@pytest.fixture(scope="module")
def model() -> sl.Model:
    return sl.load(make_network(), mean=(0.5,) * 3, std=(0.25,) * 3, size=16, device="cpu")


def make_images(count: int) -> Tensor:
    return torch.rand(count, 3, 16, 20, generator=torch.Generator().manual_seed(1))


def read_layers(page: str) -> list[dict[str, Any]]:
    """The data of each layer on a page."""
    pattern = r'<script type="application/json" id="data">(.*?)</script>'
    (text,) = re.findall(pattern, page, re.DOTALL)
    return json.loads(text)


def flatten_numbers(value: Any) -> list[float]:
    """All numbers in lists and dicts, in order."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for item in value for number in flatten_numbers(item)]
    return [value] if isinstance(value, (int, float)) else []


def test_the_page_has_the_maps_and_what_each_position_sees(model: sl.Model) -> None:
    result = sl.activations(model, make_images(1), layers=("0", "3"), k=4)
    assert list(result.pages) == ["browse"]
    first, last = read_layers(result.pages["browse"])
    for layer, name in ((first, "0"), (last, "3")):
        maps = result.values[f"{name}_maps"][0]
        order = result.values[f"{name}_order"][0].tolist()
        assert [channel["unit"] for channel in layer["channels"]] == order
        steps = np.frombuffer(base64.b64decode(layer["bytes"]), dtype=np.uint8)
        steps = steps.reshape(len(order), *maps.shape[1:])
        for channel, map_steps, unit in zip(layer["channels"], steps, order, strict=True):
            value_range = channel["high"] - channel["low"]
            shown = channel["low"] + map_steps / 255 * value_range
            assert np.abs(shown - maps[unit].numpy()).max() <= value_range / 500
            assert maps[unit, channel["row"], channel["column"]] == maps[unit].max()
    field = receptive_field(model, "3", 16, 20)
    positions = itertools.product(range(len(last["rows"])), range(len(last["columns"])))
    for row, column in positions:
        top, bottom = last["rows"][row]
        left, right = last["columns"][column]
        assert (top, left, bottom, right) == field.box(row, column, 16, 20)


def test_the_scale_is_that_of_the_sheet(model: sl.Model) -> None:
    result = sl.activations(model, make_images(1), layers=("0", "1"), k=5)
    for layer in read_layers(result.pages["browse"]):
        caption = result.captions[layer["name"]]
        assert layer["signed"] == ("red positive" in caption)
        assert f"{layer['limit']:.3g} or more" in caption


def test_a_batch_has_a_page_for_each_image(model: sl.Model) -> None:
    images = make_images(2)
    pages = sl.activations(model, images, layers=("2",), k=3).pages
    assert list(pages) == ["browse_0", "browse_1"]
    for image, page in zip(images.split(1), pages.values(), strict=True):
        single = sl.activations(model, image, layers=("2",), k=3).pages["browse"]
        # Some processors round a batch's images otherwise than a single image.
        assert flatten_numbers(read_layers(page)) == pytest.approx(
            flatten_numbers(read_layers(single)), rel=1e-5, abs=1e-6
        )


def test_the_page_stands_alone_and_escapes_names() -> None:
    name = "</script><b>"
    model = sl.Model(make_network(), mean=(0.5,) * 3, std=(0.25,) * 3, size=16, name=name)
    page = sl.activations(model, make_images(1), layers=("0",), k=2).pages["browse"]
    assert name not in page
    assert "http" not in page
    assert page.count("<script") == page.count("</script>") == 2


def test_a_map_of_one_value_has_a_page() -> None:
    network = make_network()
    nn.init.zeros_(network[0].weight)
    nn.init.zeros_(network[0].bias)
    model = sl.load(network, size=16)
    page = sl.activations(model, make_images(1), layers=("0",), k=2).pages["browse"]
    (layer,) = read_layers(page)
    assert layer["limit"] > 0
    assert [channel["high"] for channel in layer["channels"]] == [0.0, 0.0]
