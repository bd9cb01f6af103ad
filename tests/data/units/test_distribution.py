"""Frequencies, quantiles and ranks against loops over lists of numbers."""

import math
import statistics
from collections.abc import Iterator

import numpy as np
import pytest

import sightline as sl
from sightline.data.units import distribution
from sightline.data.units.distribution import (
    make_sort_keys,
    measure_distribution,
    measure_units,
    split_rows,
)


def compute_quantile(numbers: list[float], level: float) -> float:
    """A quantile on the line between the two values beside it."""
    ordered = sorted(numbers)
    position = level * (len(ordered) - 1)
    lower = ordered[math.floor(position)]
    upper = ordered[math.ceil(position)]
    return lower + (upper - lower) * (position - math.floor(position))


def assert_distribution_of(responses: np.ndarray, measured: object) -> None:
    """Asserts that a distribution is that of responses, images × units."""
    for unit, column in enumerate(responses.T.astype(np.float64).tolist()):
        count = len(column)
        listed = min(9, count)
        falling = sorted(range(count), key=lambda id: (-column[id], id))
        rising = sorted(range(count), key=lambda id: (column[id], id))
        start = (count - listed) // 2
        expected = {
            "is_dead": max(column) <= 0 or len(set(column)) == 1,
            "frequency": sum(value > 0 for value in column) / count,
            "mean": statistics.fmean(column),
            "deviation": statistics.pstdev(column),
            "quantiles": [compute_quantile(column, level / 10) for level in range(11)],
            "top_images": falling[:listed],
            "middle_images": falling[start : start + listed],
            "bottom_images": rising[:listed],
        }
        for name, value in expected.items():
            np.testing.assert_allclose(
                getattr(measured, name)[unit], value, rtol=1e-12, atol=1e-12, err_msg=name
            )


def make_responses(images: int, units: int) -> np.ndarray:
    """Responses with many ties, zeros of both signs, dead and constant units."""
    generator = np.random.default_rng(images)
    numbers = generator.integers(-6, 7, (images, units)).astype(np.float16) / 4
    numbers[:, 1] = -np.abs(numbers[:, 1]) - 1
    numbers[:, 2] = 3.5
    numbers[::2, 3] = 0.0
    numbers[1::2, 3] = -0.0
    numbers[:, 4] *= np.float16(1000)
    numbers[0, 5] = 65504
    numbers[-1, 5] = 6e-8
    return numbers


@pytest.mark.parametrize("images", [2, 3, 8, 9, 10, 31])
def test_each_unit_as_a_list_of_numbers(images: int) -> None:
    responses = make_responses(images, 7)
    measured = measure_units(np.ascontiguousarray(responses.T))
    assert_distribution_of(responses, measured)
    assert measured.is_dead[[1, 2, 3]].all()
    assert measured.top_images.shape == (7, min(9, images))


def test_sort_keys_are_in_the_order_of_the_numbers() -> None:
    numbers = np.arange(2**16, dtype=np.uint16).view(np.float16)
    numbers = numbers[np.isfinite(numbers)]
    keys = make_sort_keys(numbers[None])[0]
    order = np.argsort(numbers, kind="stable")
    assert (np.diff(numbers[order].astype(np.float32)) >= 0).all()
    assert (np.diff(keys[order].astype(np.int64)) >= 0).all()
    assert keys[numbers == 0].tolist() == [keys[numbers == 0][0]] * 2
    assert len(set(keys.tolist())) == len(numbers) - 1


def test_a_layer_of_a_scan(odd: sl.Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one piece, and a unit or two at a time."""
    for read, sorted_together in ((10**9, 10**9), (43 * 3, 43 * 2), (1, 1)):
        monkeypatch.setattr(distribution, "MAX_READ_VALUES", read)
        monkeypatch.setattr(distribution, "MAX_SORTED_VALUES", sorted_together)
        for layer in odd.layers:
            measured = measure_distribution(odd, layer)
            assert_distribution_of(odd.responses(layer), measured)
    assert measure_distribution(odd, "relu1").is_dead.tolist() == [
        False, False, True, False, False, True,
    ]  # fmt: skip


def test_rows_are_split_evenly() -> None:
    def list_lengths(max_values: int) -> Iterator[int]:
        return (len(rows) for rows in split_rows(np.zeros((7, 4)), max_values))

    assert list(list_lengths(12)) == [3, 3, 1]
    assert list(list_lengths(11)) == [2, 2, 2, 1]
    assert list(list_lengths(1)) == [1] * 7
    assert list(list_lengths(100)) == [7]
