"""A memory budget splits the work and changes no number."""

from collections.abc import Callable
from math import prod

import pytest
import torch
from helpers import small_network, smooth
from torch import Tensor

import sightline as sl
from sightline.models.tracing.batch_size import (
    CACHE_FRIENDLY_BYTES,
    choose_batch_size,
    estimate_max_batch,
)

SIZES = (
    8 * 32 * 32,
    8 * 32 * 32,
    8 * 16 * 16,
    12 * 16 * 16,
    12 * 16 * 16,
    12 * 8 * 8,
    16 * 8 * 8,
    16 * 8 * 8,
    16,
    16,
    5,
)
METHODS: dict[str, tuple[str, Callable[..., sl.Result]]] = {
    "gradient": ("attribution", sl.saliency),
    "smoothgrad": (
        "attribution",
        lambda model, image, **knobs: sl.saliency(
            model, image, kind="smoothgrad", samples=20, **knobs
        ),
    ),
    "integrated": (
        "attribution",
        lambda model, image, **knobs: sl.saliency(
            model, image, kind="integrated", samples=20, **knobs
        ),
    ),
    "scorecam": (
        "cam",
        lambda model, image, **knobs: sl.cam(model, image, kind="scorecam", **knobs),
    ),
    "occlusion": (
        "drop",
        lambda model, image, **knobs: sl.occlusion(
            model, image, window=40, stride=40, incremental=False, **knobs
        ),
    ),
    "rise": ("map", lambda model, image, **knobs: sl.rise(model, image, samples=20, **knobs)),
}


def test_it_counts_the_layers_outputs(tiny: sl.Model) -> None:
    assert [prod(layer.shape) for layer in tiny.layers.values()] == list(SIZES)
    per_image = 4 * sum(SIZES) / 1e9
    assert estimate_max_batch(tiny, smooth(), 10.5 * per_image) == 10
    assert estimate_max_batch(tiny, torch.zeros(1, 3, 64, 64), 42 * per_image) == 10
    assert estimate_max_batch(tiny, smooth(), 3.5 * 3 * 4 * SIZES[0] / 1e9, gradients=False) == 3
    assert estimate_max_batch(tiny, smooth(), 1e-9) == 1


def test_gradients_are_taken_in_blocks_that_are_fast(tiny: sl.Model) -> None:
    plenty, side = 1e6, 32
    image = torch.zeros(1, 3, 4 * side, 4 * side)
    assert choose_batch_size(tiny, image, plenty) == int(CACHE_FRIENDLY_BYTES / (4 * 16 * SIZES[0]))
    assert choose_batch_size(tiny, torch.zeros(1, 3, 100 * side, 100 * side), plenty) == 1
    assert choose_batch_size(tiny, image, 1e-9) == 1


def test_double_precision_takes_twice_as_much(tiny: sl.Model) -> None:
    double = sl.load(small_network().double(), size=32)
    assert (
        estimate_max_batch(double, smooth(), 0.01) == estimate_max_batch(tiny, smooth(), 0.01) // 2
    )


@pytest.mark.parametrize("name", METHODS)
def test_a_small_budget_makes_smaller_batches_and_the_same_numbers(
    name: str, tiny: sl.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    value, method = METHODS[name]
    image, sizes, run = smooth(4, side=80), list[int](), sl.Model.run

    def watched(self: sl.Model, picture: Tensor, layers: list[str]) -> dict[str, Tensor]:
        sizes.append(len(picture))
        return run(self, picture, layers)

    monkeypatch.setattr(sl.Model, "run", watched)
    large = method(tiny, image, label=1, memory=4.0)
    most = max(sizes)
    sizes.clear()
    budget = (
        3.5 * 4 * (80 / 32) ** 2 * (sum(SIZES) if value == "attribution" else 3 * SIZES[0]) / 1e9
    )
    small = method(tiny, image, label=1, memory=budget)
    of_parts = [size for size in sizes if size != len(image)]
    assert most >= 4
    assert max(of_parts) == 3
    assert small.tensors[value].abs().max() > 0
    torch.testing.assert_close(small.tensors[value], large.tensors[value], rtol=1e-4, atol=1e-6)
