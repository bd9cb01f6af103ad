"""Correlations and neighbours against loops in double precision."""

import math

import numpy as np
import pytest
import torch

import sightline as sl
from sightline.data.units import correlation
from sightline.data.units.correlation import (
    find_first_duplicates,
    find_nearest_units,
    iterate_correlations,
    select_largest,
    split_range,
)


def correlate(first: list[float], second: list[float]) -> float:
    """Pearson's correlation of two lists; NaN where one is constant."""
    if len(set(first)) == 1 or len(set(second)) == 1:
        return math.nan
    count = len(first)
    first_mean = math.fsum(first) / count
    second_mean = math.fsum(second) / count
    products = [(a - first_mean) * (b - second_mean) for a, b in zip(first, second, strict=True)]
    first_squares = math.fsum((a - first_mean) ** 2 for a in first)
    second_squares = math.fsum((b - second_mean) ** 2 for b in second)
    return math.fsum(products) / math.sqrt(first_squares * second_squares)


def list_columns(scan: sl.Scan) -> list[tuple[str, int, list[float]]]:
    """Layer, number and responses of every unit."""
    return [
        (layer, unit, column)
        for layer in scan.layers
        for unit, column in enumerate(scan.responses(layer).T.astype(np.float64).tolist())
    ]


@pytest.fixture(params=["whole", "in pieces"])
def sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All at once, or blocks of 5 images, products of 4 units, and 3 ranked together."""
    if request.param == "in pieces":
        monkeypatch.setattr(correlation, "MAX_BLOCK_VALUES", 22 * 5)
        monkeypatch.setattr(correlation, "MAX_PRODUCT_VALUES", 22 * 4)
        monkeypatch.setattr(correlation, "MAX_RANKED_VALUES", 22 * 3)


@pytest.mark.usefixtures("sizes")
def test_correlations_are_pearsons(odd: sl.Scan) -> None:
    columns = [column for _, _, column in list_columns(odd)]
    assert len(columns) == 22
    rows: list[int] = []
    for units in odd.description.unit_slices.values():
        for numbers, correlations in iterate_correlations(odd, units):
            assert correlations.shape == (len(numbers), 22)
            for number, row in zip(numbers, correlations, strict=True):
                expected = [correlate(columns[number], column) for column in columns]
                np.testing.assert_allclose(row.numpy(), expected, atol=2e-6)
            rows += numbers
    assert rows == list(range(22))


@pytest.mark.usefixtures("sizes")
def test_nearest_units_are_those_of_a_loop(odd: sl.Scan) -> None:
    everything = list_columns(odd)
    for own_layer in odd.layers:
        nearest = find_nearest_units(odd, own_layer)
        own = [entry for entry in everything if entry[0] == own_layer]
        for unit, (_, _, column) in enumerate(own):
            sides: dict[bool, list[tuple[float, str, int]]] = {True: [], False: []}
            for layer, number, other in everything:
                value = correlate(column, other)
                if (layer, number) != (own_layer, unit) and not math.isnan(value):
                    sides[layer == own_layer].append((value, layer, number))
            expected = (
                sorted(sides[True], reverse=True)[:5] + sorted(sides[False], reverse=True)[:5]
            )
            expected.sort(key=lambda entry: -entry[0])
            values = [value for value, _, _ in expected]
            count = len(expected)
            np.testing.assert_allclose(nearest.correlations[unit, :count], values, atol=2e-6)
            # Which of two equal ones is listed is not said, so the listed ones are looked up.
            listed = [
                (odd.layers[layer], int(number))
                for layer, number in zip(
                    nearest.layers[unit, :count], nearest.units[unit, :count], strict=True
                )
            ]
            assert len(set(listed)) == count
            known = {
                (layer, number): value for side in sides.values() for value, layer, number in side
            }
            looked_up = [known[entry] for entry in listed]
            np.testing.assert_allclose(looked_up, values, atol=2e-6)
            own_count = sum(layer == own_layer for layer, _ in listed)
            assert own_count == min(5, len(sides[True]))
            assert np.isnan(nearest.correlations[unit, count:]).all()
            assert (nearest.units[unit, count:] == -1).all()
            assert (nearest.layers[unit, count:] == -1).all()


def test_duplicates_and_units_without_neighbours(odd: sl.Scan) -> None:
    nearest = find_nearest_units(odd, "conv1")
    assert nearest.duplicate_of.tolist() == [-1, -1, -1, -1, 1, -1]
    assert nearest.units[5].tolist() == [-1] * 10  # constant
    # The dead unit varies below 0, but not behind the ReLU.
    assert (nearest.units[2] >= 0).any()
    assert (find_nearest_units(odd, "relu1").units[2] == -1).all()
    assert 5 not in nearest.units[nearest.layers == 0].tolist()


def test_first_duplicates_come_before() -> None:
    high, low = 0.96, 0.9
    correlations = torch.tensor(
        [
            [-torch.inf, low, high, low],
            [low, -torch.inf, low, high],
            [high, low, -torch.inf, 0.95],
            [low, high, 0.95, -torch.inf],
        ],
        dtype=torch.float64,
    )
    assert find_first_duplicates(correlations, 0).tolist() == [-1, -1, 0, 1]
    assert find_first_duplicates(correlations[2:], 2).tolist() == [0, 1]
    assert find_first_duplicates(correlations[3:], 3).tolist() == [1]


def test_largest_of_few_are_filled_up() -> None:
    values, indices = select_largest(torch.tensor([[1.0, 3.0, 3.0]]), 5)
    assert values.tolist() == [[3, 3, 1, -torch.inf, -torch.inf]]
    assert indices.tolist()[0][:3] == [1, 2, 0]


def test_large_means_cost_no_digits(odd: sl.Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Responses around 1000 that vary by a few units of float16 only."""
    generator = np.random.default_rng(3)
    blocks = [(1000 + generator.integers(0, 9, (40, 22)) / 2).astype(np.float16) for _ in range(30)]
    scan = sl.Scan.open(odd.path)
    scan.images = 40 * 30
    monkeypatch.setattr(scan, "iterate_responses", lambda *_: iter(blocks))
    [(_, correlations)] = iterate_correlations(scan, slice(6, 12))
    expected = np.corrcoef(np.concatenate(blocks).astype(np.float64).T)[6:12]
    np.testing.assert_allclose(correlations.numpy(), expected, atol=2e-6)


def test_ranges_are_split_in_order() -> None:
    assert list(split_range(range(3, 10), 3)) == [range(3, 6), range(6, 9), range(9, 10)]
    assert list(split_range(range(3, 5), 0)) == [range(3, 4), range(4, 5)]
