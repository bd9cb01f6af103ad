"""Filters are the weights, and their colours are the weights on one scale."""

import math
import re

import pytest
import torch
from torch import Tensor, nn

import sightline as sl


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.depthwise = nn.Conv2d(3, 10, 3), nn.Conv2d(10, 10, 5, groups=10)
        self.grouped, self.point = nn.Conv2d(10, 12, 3, groups=2), nn.Conv2d(12, 30, 1)
        self.relu, self.hidden, self.head = nn.ReLU(), nn.Linear(30, 6), nn.Linear(6, 4)

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


def tiles(panel: Tensor, side: tuple[int, int], gap: int, columns: int) -> list[Tensor]:
    """The pictures of a sheet, row by row."""
    rows, found = (panel.shape[2] + gap) // (side[0] + gap), []
    assert panel.shape[2] == rows * (side[0] + gap) - gap
    assert panel.shape[3] == columns * (side[1] + gap) - gap
    for r in range(rows):
        for c in range(columns):
            y, x = r * (side[0] + gap), c * (side[1] + gap)
            found.append(panel[0, :, y : y + side[0], x : x + side[1]])
    return found


@pytest.mark.parametrize("layer", ["first", "depthwise", "grouped", "point"])
def test_values_are_the_weights(network: Net, model: sl.Model, layer: str) -> None:
    result = sl.filters(model, layer=layer)
    assert torch.equal(result.values["filters"], network.get_submodule(layer).weight)
    panel = result.panels["filters"]
    assert 0 <= panel.min() <= panel.max() <= 1


@pytest.mark.parametrize("k", [256, 10, 7, 1])
def test_colours_are_around_gray_on_one_scale(network: Net, model: sl.Model, k: int) -> None:
    weight = network.first.weight.detach()
    top = float(weight.abs().max())
    result = sl.filters(model, k=k)
    count = min(k, 10)
    assert f"{count} of the 10 filters" in result.captions["filters"]
    assert f"±{top:.3g} is full colour" in result.captions["filters"]
    shown = tiles(result.panels["filters"], (42, 42), 4, math.ceil(math.sqrt(count)))
    for i in range(count):
        for y in range(3):
            for x in range(3):
                expected = [0.5 + 0.5 * float(weight[i, c, y, x]) / top for c in range(3)]
                for dy, dx in ((0, 0), (13, 13)):
                    assert shown[i][:, 14 * y + dy, 14 * x + dx].tolist() == pytest.approx(
                        expected, abs=1e-5
                    )


def test_filters_of_many_channels_are_gray_and_the_strongest_come_first(
    network: Net, model: sl.Model
) -> None:
    weight = network.point.weight.detach()
    result = sl.filters(model, layer="point", k=5, inputs=4)
    norms = [float(one.norm()) for one in weight]
    units = sorted(range(30), key=lambda u: -norms[u])[:5]
    assert result.values["units"].tolist() == units
    top = float(weight.abs().max())
    assert f"±{top:.3g} is full colour" in result.captions["filters"]
    shown = tiles(result.panels["filters"], (24, 24), 3, 4)
    for r, unit in enumerate(units):
        inputs = sorted(range(12), key=lambda c: -float(weight[unit, c].norm()))[:4]
        assert result.values["inputs"][r].tolist() == inputs
        for c, channel in enumerate(inputs):
            expected = torch.full((3, 24, 24), 0.5 + 0.5 * float(weight[unit, channel, 0, 0]) / top)
            assert torch.allclose(shown[4 * r + c], expected, atol=1e-5)
    held = [
        sum(sorted((float(v.norm()) ** 2 for v in weight[u]), reverse=True)[:4]) / norms[u] ** 2
        for u in units
    ]
    assert result.values["share"] == pytest.approx(sum(held) / 5, abs=1e-5)


def test_depthwise_and_grouped_filters_have_fewer_inputs(model: sl.Model) -> None:
    depthwise = sl.filters(model, layer="depthwise", k=10)
    assert depthwise.values["inputs"].tolist() == [[0]] * 10
    assert len(tiles(depthwise.panels["filters"], (25, 25), 3, 1)) == 10
    assert depthwise.values["share"] == pytest.approx(1)
    grouped = sl.filters(model, layer="grouped", k=3)
    assert grouped.values["inputs"].shape == (3, 5)


def test_a_network_that_sees_gray() -> None:
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)
    )
    result = sl.filters(sl.load(net, mean=(0.5,), std=(0.25,), size=8, device="cpu"))
    assert torch.equal(result.values["filters"], net[0].weight)
    panel = result.panels["filters"]
    assert (panel.amax(1) - panel.amin(1)).max() < 1e-6


def test_dead_filters_are_gray_and_not_nan() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3), nn.Flatten(), nn.LazyLinear(2))
    net(torch.zeros(1, 3, 8, 8))
    with torch.no_grad():
        net[0].weight.zero_()
        net[1].weight.zero_()
    model = sl.load(net, size=8, device="cpu")
    for layer in ("0", "1"):
        result = sl.filters(model, layer=layer)
        assert torch.isfinite(result.panels["filters"]).all()
        assert "nan" not in result.captions["filters"]
        assert not re.search("nan", str(result.values.get("share")))


def test_a_layer_without_filters_stands_for_the_convolution_before_it(model: sl.Model) -> None:
    result = sl.filters(model, layer="relu")
    assert torch.equal(result.values["filters"], sl.filters(model, layer="point").values["filters"])
    assert "point" in result.captions["filters"]


@pytest.mark.parametrize("layer", ["hidden", "head", "logits", "penultimate", "conv9"])
def test_layers_without_a_convolution_are_refused(model: sl.Model, layer: str) -> None:
    with pytest.raises(sl.SightlineError) as caught:
        sl.filters(model, layer=layer)
    assert "\n" not in str(caught.value)


def test_a_network_without_convolutions_is_refused() -> None:
    flat = sl.load(nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(48, 2)), size=4, device="cpu")
    for layer in ("first", "1", "2", "logits"):
        with pytest.raises(sl.SightlineError) as caught:
            sl.filters(flat, layer=layer)
        assert "\n" not in str(caught.value)
