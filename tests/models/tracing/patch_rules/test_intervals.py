"""Changed intervals, against changing one element and looking which outputs change."""

import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from sightline.models.tracing.patch_rules.intervals import (
    ChangedIntervals,
    ChangedRegions,
    clip_intervals,
    count_pooled_elements,
    find_cheapest_merge,
    group_window_positions,
    merge_size_classes,
)


def make_intervals(starts: list[int], sizes: list[int], length: int) -> ChangedIntervals:
    return ChangedIntervals(np.array(starts), np.array(sizes), length)


def list_elements(intervals: ChangedIntervals) -> list[list[int]]:
    return [
        list(range(start, start + size))
        for start, size in zip(intervals.start.tolist(), intervals.size.tolist(), strict=True)
    ]


@pytest.mark.parametrize(
    ("size", "stride", "padding", "dilation"),
    [
        (1, 1, 0, 1),
        (3, 1, 1, 1),
        (3, 2, 1, 1),
        (2, 2, 0, 1),
        (3, 1, 2, 2),
        (4, 3, 0, 1),
        (1, 2, 0, 1),
    ],
)
def test_outputs_that_see_a_change_are_those_that_change(
    size: int, stride: int, padding: int, dilation: int
) -> None:
    """A convolution of ones: its output changes exactly where it sees a changed element."""
    length = 13
    starts = list(range(length - 1))
    sizes = [2] * len(starts)
    weight = torch.ones(1, 1, size)
    settings = {"stride": stride, "padding": padding, "dilation": dilation}
    signals = torch.zeros(len(starts), 1, length)
    for signal, start in zip(signals, starts, strict=True):
        signal[0, start : start + 2] = 1
    outputs = F.conv1d(signals, weight, **settings)[:, 0]
    expected = [row.nonzero()[:, 0].tolist() for row in outputs]

    changed = make_intervals(starts, sizes, length).slide_window(
        outputs.shape[1], size, stride, padding, dilation
    )
    assert changed.length == outputs.shape[1]
    for elements, seen in zip(list_elements(changed), expected, strict=True):
        # Between dilated or strided elements there may be outputs that see no change.
        assert set(seen) <= set(elements)
        assert len(elements) >= 1
        if seen:
            assert (elements[0], elements[-1]) == (seen[0], seen[-1])


def test_a_union_covers_both_and_nothing_more() -> None:
    first = make_intervals([2, 5, 0], [3, 1, 2], 9)
    second = make_intervals([4, 1, 0], [2, 2, 1], 9)
    union = first | second
    assert list_elements(union) == [[2, 3, 4, 5], [1, 2, 3, 4, 5], [0, 1]]
    assert union.length == 9
    assert union == second | first
    assert union != first
    assert union != "intervals"


def test_equal_sizes_stay_on_the_axis_and_cover_what_they_covered() -> None:
    intervals = make_intervals([0, 7, 4], [1, 2, 4], 9)
    equal = intervals.equalize_sizes()
    assert equal.size.tolist() == [4, 4, 4]
    for elements, before in zip(list_elements(equal), list_elements(intervals), strict=True):
        assert set(before) <= set(elements) <= set(range(9))
    assert equal.equalize_sizes() is equal


def test_clipped_intervals_hold_one_element_at_least() -> None:
    clipped = clip_intervals(np.array([-3, 4, 8, 12]), np.array([-1, 2, 20, 15]), 10)
    assert list_elements(clipped) == [[0], [4], [8, 9], [9]]


def test_more_elements_in_front_shift_the_starts() -> None:
    shifted = make_intervals([0, 3], [2, 1], 5).shift_starts(4, 12)
    assert list_elements(shifted) == [[4, 5], [7]]
    assert shifted.length == 12


@pytest.mark.parametrize("count_padding", [False, True])
@pytest.mark.parametrize(("size", "stride", "padding"), [(3, 2, 1), (2, 1, 0), (4, 3, 2)])
def test_divisors_are_those_of_torchs_average_pooling(
    size: int, stride: int, padding: int, count_padding: bool
) -> None:
    length = 11
    for ceil_mode in (False, True):
        pooled = F.avg_pool1d(
            torch.ones(1, 1, length), size, stride, padding, ceil_mode, count_padding
        )[0, 0]
        sums = F.conv1d(
            F.pad(torch.ones(1, 1, length), (padding, padding + stride)), torch.ones(1, 1, size),
            stride=stride,
        )[0, 0, : len(pooled)]  # fmt: skip
        divisors = count_pooled_elements(
            (size, stride, padding, 1), length, len(pooled), count_padding=count_padding
        )
        torch.testing.assert_close(sums / torch.from_numpy(divisors), pooled, check_dtype=False)


def test_regions_are_intervals_along_both_axes() -> None:
    regions = ChangedRegions(make_intervals([1, 4], [3, 1], 8), make_intervals([0, 2], [2, 6], 10))
    assert (regions.height, regions.width) == (3, 6)
    assert regions.map_share == pytest.approx(18 / 80)
    slid = regions.slide_window((1, 5, 8, 5), (3, 1, 1, 1), (2, 2, 0, 1))
    assert slid.rows == regions.rows.slide_window(8, 3, 1, 1)
    assert slid.cols == regions.cols.slide_window(5, 2, 2, 0)
    united = slid | slid
    assert united.rows == slid.rows
    equal = regions.equalize_sizes()
    assert equal.rows.size.tolist() == [3, 3]
    assert equal.cols.size.tolist() == [6, 6]


# ── batches ──

SIZES = np.array([[3.0, 3, 5, 5, 9, 4], [1, 1, 2, 2, 3, 2]])  # layers×positions
PRICES = np.array([2.0, 7.0])


def compute_cost(classes: NDArray[np.int64]) -> float:
    """What the positions cost if each is as large as the largest of its class."""
    total = 0.0
    for number in np.unique(classes):
        members = classes == number
        total += members.sum() * float(PRICES @ SIZES[:, members].max(1))
    return total


def test_the_cheapest_pair_is_merged() -> None:
    peaks, counts = np.unique(SIZES, axis=1, return_counts=True)
    columns = peaks.T
    costs: dict[tuple[int, int], float] = {}
    for i, j in itertools.combinations(range(len(columns)), 2):
        joint = np.maximum(columns[i], columns[j]) @ PRICES * (counts[i] + counts[j])
        own = columns[i] @ PRICES * counts[i] + columns[j] @ PRICES * counts[j]
        costs[i, j] = joint - own
    found = find_cheapest_merge(columns, counts, PRICES)
    assert costs[found] == min(costs.values())
    assert find_cheapest_merge(columns[:1], counts[:1], PRICES) == (0, 0)


def test_classes_are_merged_down_to_one() -> None:
    ways = merge_size_classes(SIZES, PRICES)
    assert [len(np.unique(way)) for way in ways] == [4, 3, 2, 1]
    assert ways[0][0] == ways[0][1]
    assert ways[0][2] == ways[0][3]
    costs = [compute_cost(way) for way in ways]
    assert costs == sorted(costs)
    assert costs[0] == float((PRICES @ SIZES).sum())
    assert [len(np.unique(way)) for way in merge_size_classes(SIZES, PRICES, 2)] == [2, 1]


@pytest.mark.parametrize("batch_overhead", [0.0, 50.0, 1e9])
@pytest.mark.parametrize("max_batch", [1, 3, 100])
def test_batches_hold_each_window_once(batch_overhead: float, max_batch: int) -> None:
    rows = make_intervals([0, 3, 6, 9], [4, 5, 5, 3], 12)
    cols = make_intervals([0, 5, 9], [3, 5, 4], 13)
    positions = [(top, left) for top in (0, 3, 6, 9) for left in (0, 5, 9)]
    regions = ChangedRegions(rows, cols)
    batches, cost = group_window_positions(positions, [(2.0, regions)], batch_overhead, max_batch)
    assert sorted(index for batch in batches for index in batch) == list(range(12))
    assert all(1 <= len(batch) <= max_batch for batch in batches)
    # Each window is as large as the largest of its batch.
    expected_cost = sum(
        2.0
        * len(batch)
        * max(rows.size[i // 3] for i in batch)
        * max(cols.size[i % 3] for i in batch)
        for batch in batches
    )
    if max_batch == 100:
        assert cost == expected_cost + batch_overhead * len(batches)
    assert cost >= expected_cost + batch_overhead * len(batches)
    if batch_overhead == 1e9:  # as few batches as possible
        assert len(batches) == -(-12 // max_batch)
    if batch_overhead == 0 and max_batch == 100:  # each size by itself
        sizes = {
            (int(rows.size[index // 3]), int(cols.size[index % 3])): set[int]()
            for index in range(12)
        }
        for index in range(12):
            sizes[int(rows.size[index // 3]), int(cols.size[index % 3])].add(index)
        assert sorted(map(sorted, batches)) == sorted(map(sorted, sizes.values()))
