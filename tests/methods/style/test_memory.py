"""The estimate of memory, by hand for a network whose layers one can count."""

from typing import Any

import pytest
import torch
from helpers import small_network
from torch import nn

import sightline as sl
from sightline.methods.style.memory import OptimizationMemory, count_feature_bytes

# Channels of small_network up to relu3, by the share of the pixels that a layer has.
CONV1, POOL1, CONV2, POOL2, CONV3 = 8, 8 / 4, 12 / 4, 12 / 16, 16 / 16


@pytest.fixture(scope="module")
def model() -> sl.Model:
    return sl.load(small_network(), mean=(0.5,) * 3, std=(0.25,) * 3, size=32)


@pytest.mark.parametrize(
    ("layers", "numbers"),
    [
        (("conv1",), CONV1),
        (("relu1",), 2 * CONV1),
        (("conv1:in", "pool1"), 2 * CONV1 + POOL1),
        (("relu3", "relu1"), 2 * CONV1 + POOL1 + 2 * CONV2 + POOL2 + 2 * CONV3),
    ],
)
def test_outputs_are_counted_up_to_the_deepest_layer(
    layers: tuple[str, ...], numbers: float, model: sl.Model
) -> None:
    assert count_feature_bytes(model, layers) == pytest.approx(4 * numbers)


def test_what_a_container_passes_on_is_counted_again() -> None:
    block = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU())
    nested = sl.load(nn.Sequential(block, nn.Conv2d(5, 7, 3, stride=2, padding=1)), size=32)
    assert count_feature_bytes(nested, ["0.1"]) == pytest.approx(4 * (5 + 5))
    assert count_feature_bytes(nested, ["1"]) == pytest.approx(4 * (5 + 5 + 5 + 7 / 4))


def make_memory(**changes: Any) -> OptimizationMemory:
    return OptimizationMemory(**{"limit_gb": 1.0, "feature_bytes": 200.0, **changes})


def test_a_pixel_has_features_history_and_eight_images() -> None:
    memory = make_memory(history_size=3)
    # 200 bytes of features, 3 pairs of two RGB images, 8 RGB images, at 4 bytes a number.
    assert memory.estimate_total((50, 80)) == pytest.approx(
        50 * 80 * (200 + 3 * 2 * 3 * 4 + 8 * 3 * 4) / 1e9
    )


@pytest.mark.parametrize(
    ("feature_bytes", "pair_count"),
    [
        (200.0, 20),
        (1600.0 - 96 - 24 * 20, 20),
        (1600.0 - 96 - 24 * 15 - 1, 15),
        (1600.0 - 96 - 24 * 10, 10),
        (5000.0, 10),
    ],
)
def test_pairs_keep_a_pixel_below_1600_bytes(feature_bytes: float, pair_count: int) -> None:
    memory = make_memory(feature_bytes=feature_bytes, limit_gb=100.0)
    assert memory.choose_pair_count((50, 80)) == pair_count


def test_pairs_keep_the_whole_within_the_limit() -> None:
    pixels = 1000 * 2000
    limit_gb = pixels * (200 + 96 + 24 * 13 + 1) / 1e9
    memory = make_memory(limit_gb=limit_gb)
    assert memory.choose_pair_count((1000, 2000)) == 13
    assert memory.fits((1000, 2000))
    assert memory.choose_pair_count((100, 200)) == 20
    assert not make_memory(limit_gb=limit_gb, history_size=14).fits((1000, 2000))


def test_a_tile_and_its_margins_take_what_the_images_leave() -> None:
    memory = make_memory(history_size=2, limit_gb=1.0)
    size, margin = (1500, 2500), 12
    side = memory.choose_tile_side(size, margin)
    image_bytes = 1500 * 2500 * (2 * 24 + 96)

    def count_bytes(tile_side: int) -> float:
        return image_bytes + (tile_side + 2 * margin) ** 2 * 200

    assert count_bytes(side) <= 1e9 < count_bytes(side + 1)


def test_a_limit_below_the_smallest_tile_is_refused_with_its_need() -> None:
    size, margin = (1500, 2500), 12
    smallest_gb = (1500 * 2500 * (2 * 24 + 96) + (128 + 24) ** 2 * 200) / 1e9
    enough = make_memory(history_size=2, limit_gb=smallest_gb * 1.0001)
    assert enough.choose_tile_side(size, margin) == 128
    too_little = make_memory(history_size=2, limit_gb=smallest_gb * 0.999)
    message = (
        rf"1500×2500 pixels need about 1\.29 GB, more than memory={too_little.limit_gb:g},"
        rf" and in tiles of 128 pixels about {smallest_gb:.3g} GB"
    )
    with pytest.raises(sl.SightlineError, match=message):
        too_little.choose_tile_side(size, margin)


def test_half_precision_halves_the_features(model: sl.Model) -> None:
    """The estimate takes the size of a number from the network, as that of batches does."""
    half_network = small_network().to(torch.bfloat16)
    half = sl.load(half_network, mean=(0.5,) * 3, std=(0.25,) * 3, size=32)
    assert half.mean.element_size() == 2
    assert count_feature_bytes(half, ["relu2"]) == count_feature_bytes(model, ["relu2"]) / 2
