"""Cones of influence: what a change inside a window of the image can reach, layer by layer, and which windows to run together.

Along each axis a change stays in an interval. `Reach` holds one for each window, `Cone` two of them, `classes` sorts
windows into those whose intervals stay about equally long, so that their patches fit one shape.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IndexArray = NDArray[np.int64]

FloatArray = NDArray[np.float64]

AxisWindow = Sequence[int]  # a sliding window: size, stride, padding, dilation


@dataclass(frozen=True, eq=False)
class ChangedIntervals:
    """For each window the interval that it changes along one axis of `length` elements: from `start`, `size` ≥ 1 of them."""

    start: IndexArray
    size: IndexArray
    length: int

    def slide_window(
        self, output_count: int, size: int, stride: int, padding: int, dilation: int = 1
    ) -> "ChangedIntervals":
        """What it changes of `count` outputs, each of `size` elements `dilation` apart, the first at −`padding`, `stride` apart."""
        first = -((dilation * (size - 1) - self.start - padding) // stride)
        last = (self.start + self.size - 1 + padding) // stride
        return clip_intervals(first, last, output_count)

    def shift_starts(self, offset: int, length: int) -> "ChangedIntervals":
        """The same in an axis with `by` more elements in front, `length` in all."""
        return ChangedIntervals(self.start + offset, self.size, length)

    def __or__(self, other: "ChangedIntervals") -> "ChangedIntervals":
        return clip_intervals(
            np.minimum(self.start, other.start),
            np.maximum(self.start + self.size, other.start + other.size) - 1,
            self.length,
        )

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, ChangedIntervals)
            and np.array_equal(self.start, other.start)
            and np.array_equal(self.size, other.size)
        )

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def equalize_sizes(self) -> "ChangedIntervals":
        """All as long as the longest; moved inward where that would leave the axis."""
        most = self.size.max()
        if self.size.min() == most:
            return self
        return ChangedIntervals(
            np.minimum(self.start, self.length - most), np.full_like(self.size, most), self.length
        )


def count_pooled_elements(
    window: AxisWindow, input_length: int, output_length: int, *, count_padding: bool
) -> IndexArray:
    """By how many elements average pooling of `before` divides along one axis, for each of `after` results."""
    size, stride, padding, _ = window
    first = np.arange(output_length) * stride - padding
    last = np.minimum(first + size, input_length + padding)
    return last - first if count_padding else np.minimum(last, input_length) - first.clip(0)


def clip_intervals(first: IndexArray, last: IndexArray, length: int) -> ChangedIntervals:
    """Intervals from first to last, clipped; one that is empty becomes one element, which then is computed for nothing."""
    first = first.clip(0, length - 1)
    return ChangedIntervals(first, last.clip(first, length - 1) - first + 1, length)


@dataclass(frozen=True)
class ChangedRegions:
    """The rectangle that each window changes in a map."""

    rows: ChangedIntervals
    cols: ChangedIntervals

    def __or__(self, other: "ChangedRegions") -> "ChangedRegions":
        return ChangedRegions(self.rows | other.rows, self.cols | other.cols)

    def equalize_sizes(self) -> "ChangedRegions":
        """All of one height and width."""
        return ChangedRegions(self.rows.equalize_sizes(), self.cols.equalize_sizes())

    def slide_window(
        self, shape: Sequence[int], rows: AxisWindow, cols: AxisWindow
    ) -> "ChangedRegions":
        """Behind a sliding window that gives a map of this shape; a window for each axis."""
        return ChangedRegions(
            self.rows.slide_window(shape[-2], *rows), self.cols.slide_window(shape[-1], *cols)
        )

    @property
    def height(self) -> int:
        return int(self.rows.size.max())

    @property
    def width(self) -> int:
        return int(self.cols.size.max())

    @property
    def map_share(self) -> float:
        """Share of the map that the largest one fills."""
        return self.height * self.width / (self.rows.length * self.cols.length)


def group_window_positions(
    positions: Sequence[tuple[int, int]],
    layer_costs: Sequence[tuple[float, ChangedRegions]],
    batch_overhead: float,
    max_batch: int,
) -> list[list[int]]:
    """Sorts places (top, left) into batches of at most `batch` that are cheap to run as patches of one shape.

    `layers` holds for each layer the multiply-adds of one position and the cones, whose rows are those of the distinct
    tops and whose columns those of the distinct lefts, sorted. `overhead` is what one more batch costs.
    """
    tops, row = np.unique([y for y, _ in positions], return_inverse=True)
    lefts, col = np.unique([x for _, x in positions], return_inverse=True)
    price = np.array([price for price, _ in layer_costs])
    heights = np.array([cone.rows.size for _, cone in layer_costs], float).reshape(
        len(layer_costs), len(tops)
    )
    widths = np.array([cone.cols.size for _, cone in layer_costs], float).reshape(
        len(layer_costs), len(lefts)
    )
    by_row, by_col = (
        merge_size_classes(heights, price * widths.mean(1)),
        merge_size_classes(widths, price * heights.mean(1)),
    )
    best: tuple[float, list[list[int]]] = (np.inf, [])
    for r in by_row:
        for c in by_col:
            pair = r[row] * (c.max() + 1) + c[col]
            found, cost = list[list[int]](), 0.0
            for key in np.unique(pair):
                members = np.flatnonzero(pair == key)
                tallest, widest = (
                    heights[:, np.unique(row[members])].max(1),
                    widths[:, np.unique(col[members])].max(1),
                )
                parts = -(-len(members) // max_batch)
                cost += (
                    float((price * tallest * widest).sum()) * len(members) + batch_overhead * parts
                )
                found += [part.tolist() for part in np.array_split(members, parts)]
            best = min(best, (cost, found), key=lambda pair: pair[0])
    return best[1]


def merge_size_classes(
    sizes: FloatArray, prices: FloatArray, max_classes: int = 8
) -> list[IndexArray]:
    """Partitions of the columns of `sizes` (layers × positions) into 1 to `most` classes, each as an array of class numbers.

    Joins the two classes whose common maximum costs least, again and again.
    """
    peaks, label, count = np.unique(sizes, axis=1, return_inverse=True, return_counts=True)
    peaks, count = list(peaks.T), list(count)
    names, found = [[i] for i in range(len(peaks))], list[IndexArray]()
    while peaks:
        if len(peaks) <= max_classes:
            number = {name: k for k, group in enumerate(names) for name in group}
            found.append(np.array([number[int(i)] for i in label.reshape(-1)]))
        table, weight = np.array(peaks), np.array(count)
        own = table @ prices
        joint = (
            np.maximum(table[:, None], table[None]) @ prices * (weight[:, None] + weight)
            - (own * weight)[:, None]
            - own * weight
        )
        np.fill_diagonal(joint, np.inf)
        i, j = sorted(divmod(int(joint.argmin()), len(peaks)))
        if i == j:
            break
        peaks[i], count[i], names[i] = (
            np.maximum(peaks[i], peaks[j]),
            count[i] + count[j],
            names[i] + names[j],
        )
        del peaks[j], count[j], names[j]
    return found
