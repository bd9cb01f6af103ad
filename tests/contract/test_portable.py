"""Without torch's fast private operations every kind of method gives the same numbers.

Each runs twice in this process: with the fast operations, and with torch's public ones only.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import needs_fast_operations, smooth
from torch import Tensor

import sightline as sl
from sightline.methods import load_methods
from sightline.models.overrides import frozen_layers, max_pooling, onednn
from sightline.models.overrides.fast_operations import is_available
from sightline.models.overrides.onednn import LayerSizes

pytestmark = needs_fast_operations

ATTRIBUTIONS = sorted(
    name
    for name, method in load_methods().items()
    if method.attribution is not None and name != "attention"  # which needs a transformer
)
# Parameters that keep a run short.
SHORT: dict[str, dict[str, Any]] = {
    "occlusion": {"window": 8, "stride": 8},
    "rise": {"samples": 6, "cells": 4},
}
HEIGHT, WIDTH = 32, 40


@pytest.fixture(autouse=True)
def every_size(tiny: sl.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small layers count as large, so that the fast operations take them."""
    monkeypatch.setattr(max_pooling, "MIN_COMPACT_POOL_ELEMENTS", 1)
    monkeypatch.setattr(frozen_layers, "MIN_SPARSE_LINEAR_ELEMENTS", 1)
    monkeypatch.setattr(frozen_layers, "MIN_PACKED_MULTIPLY_ADDS", 1)
    monkeypatch.setattr(onednn, "MIN_PACKED_WEIGHT_ELEMENTS", 1)
    monkeypatch.setattr(tiny, "layer_sizes", LayerSizes.LARGE)


def make_images(count: int) -> Tensor:
    return smooth(count, side=WIDTH, seed=5)[..., :HEIGHT, :]


def assert_same_values(values: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Equal names, and tensors equal to 1e-4 of their largest value."""
    assert list(values) == list(expected)
    for name, tensor in expected.items():
        if isinstance(tensor, Tensor):
            scale = float(tensor.double().abs().max())
            torch.testing.assert_close(values[name], tensor, rtol=0, atol=1e-4 * scale, msg=name)


def compare_runs(run: Callable[[], Mapping[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs with the fast operations and without, which must give the same."""
    packed: list[Any] = []
    get_packed_weight = onednn.get_packed_weight

    def note_weight(*args: Any) -> Any:
        packed.append(args)
        return get_packed_weight(*args)

    monkeypatch.setattr(onednn, "get_packed_weight", note_weight)
    expected = run()
    fast_calls = len(packed)
    if torch.backends.mkldnn.is_available():
        assert fast_calls > 0
    monkeypatch.setenv("SIGHTLINE_PORTABLE", "1")
    is_available.cache_clear()
    try:
        assert_same_values(run(), expected)
    finally:
        is_available.cache_clear()
    assert len(packed) == fast_calls


@pytest.mark.parametrize("name", ATTRIBUTIONS)
def test_attributions_are_the_same(
    name: str, tiny: sl.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = load_methods()[name]
    images = make_images(2)
    compare_runs(lambda: method.function(tiny, images, **SHORT.get(name, {})).values, monkeypatch)


def test_a_scan_is_the_same(
    tiny: sl.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, image in enumerate(make_images(7)):
        sl.write(image, folder / f"{number}.png")
    stores = iter(("fast.scan", "portable.scan"))

    def scan_folder() -> dict[str, Tensor]:
        scan = sl.scan(tiny, folder, store=tmp_path / next(stores), k=3)
        values: dict[str, Tensor] = {}
        for layer in scan.layers:
            top = scan.top(layer)
            values[f"{layer} values"] = top.values
            values[f"{layer} ids"] = top.ids
        return values

    compare_runs(scan_folder, monkeypatch)


def test_synthesis_is_the_same(tiny: sl.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = sl.logit(1) - 0.1 * sl.tv()
    compare_runs(
        lambda: sl.synthesis(tiny, objective, size=32, steps=2, seed=3).values, monkeypatch
    )


def test_style_is_the_same(tiny: sl.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    content, painting = make_images(2).split(1)
    compare_runs(lambda: sl.style(tiny, content, styles=(painting,), steps=2).values, monkeypatch)
