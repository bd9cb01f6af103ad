"""Connections between channels, against weights that are known and channels that are changed."""

import pytest
import torch
from torch import Tensor, nn

import sightline as sl
from sightline.models.tracing.connections import (
    count_input_channels,
    find_classifier,
    find_source_layer,
    read_channel_weights,
)


class Branching(nn.Module):
    """A chain, a shortcut, a depthwise convolution, and a shuffle that mixes channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=3)
        self.mixed = nn.Conv2d(6, 4, 1)
        self.fc = nn.Linear(4, 5)

    def forward(self, image: Tensor) -> Tensor:
        stem = torch.relu(self.norm(self.first(image)))
        block = stem + self.second(stem)
        grouped = self.depthwise(torch.relu(block))
        mixed = self.mixed(grouped.flip(1))
        return self.fc(torch.nn.functional.max_pool2d(mixed, 2).mean((2, 3)))


@pytest.fixture(scope="module")
def branching() -> sl.Model:
    torch.manual_seed(1)
    return sl.load(Branching(), mean=[0.5] * 3, std=[0.5] * 3, size=16, labels=list("abcde"))


@pytest.mark.parametrize(
    ("layer", "source"),
    [
        ("second", "first"),  # through batch norm and ReLU
        ("depthwise", "second"),  # a shortcut beside it
        ("mixed", None),  # channel c of its input is another channel of the layer before
        ("fc", "mixed"),  # through pooling
        ("first", None),
    ],
)
def test_sources(branching: sl.Model, layer: str, source: str | None) -> None:
    candidates = ["first", "second", "depthwise", "mixed"]
    before = candidates[: candidates.index(layer)] if layer in candidates else candidates
    assert find_source_layer(branching, layer, before) == source


def test_a_layer_of_other_size_is_no_source(branching: sl.Model) -> None:
    assert find_source_layer(branching, "mixed", ["fc"]) is None
    assert find_source_layer(branching, "fc", []) is None


def test_weights_of_a_convolution_are_signed_norms(branching: sl.Model) -> None:
    weights = read_channel_weights(branching, "second")
    filters = branching.module("second").weight
    for unit in (0, 5):
        for channel in (1, 4):
            part = filters[unit, channel].flatten().tolist()
            norm = sum(value**2 for value in part) ** 0.5
            expected = norm if sum(part) > 0 else -norm
            assert float(weights[unit, channel]) == pytest.approx(expected, rel=1e-5)


def test_units_of_a_group_read_only_its_channels(branching: sl.Model) -> None:
    weights = read_channel_weights(branching, "depthwise")
    assert weights.shape == (6, 6)
    expected = torch.zeros(6, 6, dtype=torch.bool)
    for unit in range(6):
        group = unit // 2
        expected[unit, 2 * group : 2 * group + 2] = True
    assert torch.equal(weights != 0, expected)


def test_weights_of_a_linear_layer_are_its_own(branching: sl.Model) -> None:
    assert torch.equal(read_channel_weights(branching, "fc"), branching.module("fc").weight)
    assert count_input_channels(branching, "fc") == 4
    assert count_input_channels(branching, "norm") == 0
    with pytest.raises(sl.SightlineError, match="norm has no weights"):
        read_channel_weights(branching, "norm")


def test_the_classifier_is_the_last_linear_layer(branching: sl.Model, tiny: sl.Model) -> None:
    assert find_classifier(branching) == "fc"
    assert find_classifier(tiny) == "fc"
    headless = sl.load(nn.Sequential(nn.Conv2d(3, 4, 3)), mean=[0.5] * 3, std=[0.5] * 3, size=8)
    assert find_classifier(headless) is None
