"""Filters are the weights, and their colours are the weights on one scale."""

import math
import re

import pytest
import torch
from torch import Tensor, nn

import sightline as sl


class Net(nn.Module):
    """Convolutions of all sorts; the first has filters of 3×5 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 10, (3, 5))
        self.depthwise = nn.Conv2d(10, 10, 5, groups=10)
        self.grouped = nn.Conv2d(10, 12, (2, 3), groups=2)
        self.point = nn.Conv2d(12, 30, 1)
        self.relu = nn.ReLU()
        self.hidden = nn.Linear(30, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.point(self.grouped(self.depthwise(self.first(x)))))
        return self.head(self.hidden(x.mean((2, 3))))


@pytest.fixture(scope="module")
def network() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.fixture(scope="module")
def model(network: Net) -> sl.Model:
    return sl.load(network, size=16, device="cpu")


def split_tiles(panel: Tensor, size: tuple[int, int], gap: int, columns: int) -> list[Tensor]:
    """The tiles of a sheet, row by row, each 3×height×width."""
    height, width = size
    rows = (panel.shape[2] + gap) // (height + gap)
    assert panel.shape[2] == rows * (height + gap) - gap
    assert panel.shape[3] == columns * (width + gap) - gap
    tiles: list[Tensor] = []
    for row in range(rows):
        for column in range(columns):
            top, left = row * (height + gap), column * (width + gap)
            tiles.append(panel[0, :, top : top + height, left : left + width])
    return tiles


@pytest.mark.parametrize("layer", ["first", "depthwise", "grouped", "point"])
def test_values_are_the_weights(network: Net, model: sl.Model, layer: str) -> None:
    result = sl.filters(model, layer=layer)
    assert torch.equal(result.values["filters"], network.get_submodule(layer).weight)
    panel = result.panels["filters"]
    assert 0 <= panel.min() <= panel.max() <= 1


@pytest.mark.parametrize("k", [256, 10, 7, 1])
def test_colours_are_around_gray_on_one_scale(network: Net, model: sl.Model, k: int) -> None:
    weight = network.first.weight.detach()
    largest = float(weight.abs().max())
    result = sl.filters(model, k=k)
    count = min(k, 10)
    assert f"{count} of the 10 filters of first, 3×5 pixels each" in result.captions["filters"]
    assert f"±{largest:.3g} is full colour" in result.captions["filters"]
    norms = [float(kernel.norm()) for kernel in weight]
    assert result.values["norm"].tolist() == pytest.approx(norms)

    tile_size = (3 * 14, 5 * 14)
    columns = min(count, math.ceil(math.sqrt(count * tile_size[0] / tile_size[1])))
    tiles = split_tiles(result.panels["filters"], tile_size, 4, columns)
    for number in range(count):
        for y in range(3):
            for x in range(5):
                expected = [0.5 + 0.5 * float(weight[number, c, y, x]) / largest for c in range(3)]
                for corner in (0, 13):
                    pixel = tiles[number][:, 14 * y + corner, 14 * x + corner]
                    assert pixel.tolist() == pytest.approx(expected, abs=1e-5)


def test_filters_of_many_channels_are_gray_and_the_strongest_come_first(
    network: Net, model: sl.Model
) -> None:
    weight = network.point.weight.detach()
    largest = float(weight.abs().max())
    result = sl.filters(model, layer="point", k=5, inputs=4)
    norms = [float(kernel.norm()) for kernel in weight]
    units = sorted(range(30), key=lambda unit: -norms[unit])[:5]
    assert result.values["units"].tolist() == units
    assert f"±{largest:.3g} is full colour" in result.captions["filters"]

    tiles = split_tiles(result.panels["filters"], (24, 24), 3, 4)
    shares: list[float] = []
    for row, unit in enumerate(units):
        channel_norms = [float(weight[unit, channel].norm()) for channel in range(12)]
        channels = sorted(range(12), key=lambda channel: -channel_norms[channel])[:4]
        assert result.values["inputs"][row].tolist() == channels
        for column, channel in enumerate(channels):
            gray = 0.5 + 0.5 * float(weight[unit, channel, 0, 0]) / largest
            assert torch.allclose(tiles[4 * row + column], torch.tensor(gray), atol=1e-5)
        shares.append(sum(channel_norms[c] ** 2 for c in channels) / norms[unit] ** 2)
    assert result.values["share"] == pytest.approx(sum(shares) / 5, abs=1e-5)


def test_depthwise_and_grouped_filters_have_fewer_inputs(model: sl.Model) -> None:
    depthwise = sl.filters(model, layer="depthwise", k=10)
    assert depthwise.values["inputs"].tolist() == [[0]] * 10
    assert len(split_tiles(depthwise.panels["filters"], (25, 25), 3, 1)) == 10
    assert depthwise.values["share"] == pytest.approx(1)
    grouped = sl.filters(model, layer="grouped", k=3)
    assert grouped.values["inputs"].shape == (3, 5)
    assert len(split_tiles(grouped.panels["filters"], (24, 36), 3, 5)) == 15


def test_no_more_than_24_rows_are_drawn(model: sl.Model) -> None:
    assert sl.filters(model, layer="point", k=30).values["units"].shape == (24,)


def test_a_network_that_sees_gray() -> None:
    torch.manual_seed(1)
    network = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)
    )
    result = sl.filters(sl.load(network, mean=(0.5,), std=(0.25,), size=8, device="cpu"))
    assert torch.equal(result.values["filters"], network[0].weight)
    panel = result.panels["filters"]
    assert (panel.amax(1) - panel.amin(1)).max() < 1e-6


def test_dead_filters_are_gray_and_not_nan() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3), nn.Flatten(), nn.LazyLinear(2))
    network(torch.zeros(1, 3, 8, 8))
    with torch.no_grad():
        network[0].weight.zero_()
        network[1].weight.zero_()
    model = sl.load(network, size=8, device="cpu")
    for layer in ("0", "1"):
        result = sl.filters(model, layer=layer)
        assert torch.isfinite(result.panels["filters"]).all()
        assert "nan" not in result.captions["filters"]
        assert not re.search("nan", str(result.values.get("share")))


def test_a_layer_without_filters_stands_for_the_convolution_before_it(model: sl.Model) -> None:
    result = sl.filters(model, layer="relu")
    assert torch.equal(result.values["filters"], sl.filters(model, layer="point").values["filters"])
    assert "of point (" in result.captions["filters"]


@pytest.mark.parametrize("layer", ["hidden", "head", "logits", "penultimate", "conv9"])
def test_layers_without_a_convolution_are_refused(model: sl.Model, layer: str) -> None:
    with pytest.raises(sl.SightlineError) as caught:
        sl.filters(model, layer=layer)
    assert "\n" not in str(caught.value)


def test_a_network_without_convolutions_is_refused() -> None:
    network = nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(48, 2))
    model = sl.load(network, size=4, device="cpu")
    for layer in ("first", "1", "2", "logits"):
        with pytest.raises(sl.SightlineError) as caught:
            sl.filters(model, layer=layer)
        assert "\n" not in str(caught.value)


def test_normalized_weights_are_shown_as_they_are_used() -> None:
    network = Net()
    nn.utils.parametrizations.weight_norm(network.first)
    with torch.no_grad():
        network.first.parametrizations.weight.original0.mul_(3)
    result = sl.filters(sl.load(network, size=16, device="cpu"))
    torch.testing.assert_close(result.values["filters"], network.first.weight.detach())
