"""The regions that a change reaches, layer by layer, and which windows to run together.

A change inside a window of the image changes a rectangle of every map behind it. Along one axis:

    image      . . . . X X X . . . . .     a window of 3 elements at 4 is covered
    conv 3     . . . X X X X X . . . .     5 outputs see it: 3 to 7
    pool 2     . X X X . .                 of half as many, 3 see it: 1 to 3

All other elements are those of the clean image. `ChangedIntervals` holds such an interval for each
window, `ChangedRegions` one for each axis. `group_window_positions` sorts windows into batches
whose regions have about one size in every layer, so that their patches fit into one tensor.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

IndexArray = NDArray[np.int64]

FloatArray = NDArray[np.float64]

AxisWindow = Sequence[int]  # a sliding window along one axis: size, stride, padding, dilation

MAX_SIZE_CLASSES = 8  # along one axis


@dataclass(frozen=True, eq=False)
class ChangedIntervals:
    """The interval of one axis that each window changes.

    Attributes:
        start: first element, one for each window.
        size: number of elements, at least 1.
        length: elements of the axis.
    """

    start: IndexArray
    size: IndexArray
    length: int

    def slide_window(
        self, output_count: int, size: int, stride: int, padding: int, dilation: int = 1
    ) -> "ChangedIntervals":
        """The intervals of the outputs of a sliding window that see a change.

        There are `output_count` outputs, `stride` apart. Each sees `size` elements, `dilation`
        apart; the first output begins at −`padding`.
        """
        # The first output that reaches the first changed element, rounded up.
        first = -((dilation * (size - 1) - self.start - padding) // stride)
        last = (self.start + self.size - 1 + padding) // stride
        return clip_intervals(first, last, output_count)

    def shift_starts(self, offset: int, length: int) -> "ChangedIntervals":
        """The same intervals in an axis of `length`, with `offset` more elements in front."""
        return ChangedIntervals(self.start + offset, self.size, length)

    def __or__(self, other: "ChangedIntervals") -> "ChangedIntervals":
        first = np.minimum(self.start, other.start)
        end = np.maximum(self.start + self.size, other.start + other.size)
        return clip_intervals(first, end - 1, self.length)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ChangedIntervals):
            return False
        same_start = np.array_equal(self.start, other.start)
        return same_start and np.array_equal(self.size, other.size)

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def equalize_sizes(self) -> "ChangedIntervals":
        """All as long as the longest, moved inwards where they would leave the axis."""
        largest = self.size.max()
        if self.size.min() == largest:
            return self
        start = np.minimum(self.start, self.length - largest)
        return ChangedIntervals(start, np.full_like(self.size, largest), self.length)


def clip_intervals(first: IndexArray, last: IndexArray, length: int) -> ChangedIntervals:
    """Intervals from first to last (inclusive), clipped to the axis.

    An empty one becomes one element, which is then computed without need.
    """
    first = first.clip(0, length - 1)
    last = last.clip(first, length - 1)
    return ChangedIntervals(first, last - first + 1, length)


def count_pooled_elements(
    window: AxisWindow, input_length: int, output_length: int, *, count_padding: bool
) -> IndexArray:
    """The number of elements that average pooling divides each output by, along one axis."""
    size, stride, padding, _ = window
    first = np.arange(output_length) * stride - padding
    last = np.minimum(first + size, input_length + padding)
    if count_padding:
        return last - first
    return np.minimum(last, input_length) - first.clip(0)


@dataclass(frozen=True)
class ChangedRegions:
    """The rectangle of a map that each window changes."""

    rows: ChangedIntervals
    cols: ChangedIntervals

    def __or__(self, other: "ChangedRegions") -> "ChangedRegions":
        return ChangedRegions(self.rows | other.rows, self.cols | other.cols)

    def equalize_sizes(self) -> "ChangedRegions":
        """All of one height and one width."""
        return ChangedRegions(self.rows.equalize_sizes(), self.cols.equalize_sizes())

    def slide_window(
        self, shape: Sequence[int], rows: AxisWindow, cols: AxisWindow
    ) -> "ChangedRegions":
        """The regions of a sliding window's output, which has this shape."""
        return ChangedRegions(
            self.rows.slide_window(shape[-2], *rows), self.cols.slide_window(shape[-1], *cols)
        )

    @property
    def height(self) -> int:
        """Rows of the largest region."""
        return int(self.rows.size.max())

    @property
    def width(self) -> int:
        """Columns of the largest region."""
        return int(self.cols.size.max())

    @property
    def map_share(self) -> float:
        """Share of the map that the largest region fills."""
        return self.height * self.width / (self.rows.length * self.cols.length)


# ── which windows to run together ──


class WindowGroups(NamedTuple):
    """Windows by batches, as indices, and about what these cost together, in multiply-adds."""

    batches: list[list[int]]
    cost: float


def group_window_positions(
    positions: Sequence[tuple[int, int]],
    layer_costs: Sequence[tuple[float, ChangedRegions]],
    batch_overhead: float,
    max_batch: int,
) -> WindowGroups:
    """Batches of windows that are cheap to run as patches of one shape.

    Args:
        positions: (top, left) of each window.
        layer_costs: of each layer the multiply-adds of one position, and the regions, whose rows
            are those of the distinct tops and whose columns those of the distinct lefts, sorted.
        batch_overhead: what one more batch costs, in multiply-adds.
        max_batch: windows in a batch.
    """
    tops, top_index = np.unique([top for top, _ in positions], return_inverse=True)
    lefts, left_index = np.unique([left for _, left in positions], return_inverse=True)
    position_costs = np.array([cost for cost, _ in layer_costs])
    heights = np.array([regions.rows.size for _, regions in layer_costs], float)
    heights = heights.reshape(len(layer_costs), len(tops))
    widths = np.array([regions.cols.size for _, regions in layer_costs], float)
    widths = widths.reshape(len(layer_costs), len(lefts))

    best = WindowGroups([], np.inf)
    for row_classes in merge_size_classes(heights, position_costs * widths.mean(1)):
        for col_classes in merge_size_classes(widths, position_costs * heights.mean(1)):
            col_class_count = col_classes.max() + 1
            class_pair = row_classes[top_index] * col_class_count + col_classes[left_index]
            batches: list[list[int]] = []
            total_cost = 0.0
            for pair in np.unique(class_pair):
                members = np.flatnonzero(class_pair == pair)
                tallest = heights[:, np.unique(top_index[members])].max(1)
                widest = widths[:, np.unique(left_index[members])].max(1)
                window_cost = float((position_costs * tallest * widest).sum())
                batch_count = -(-len(members) // max_batch)  # rounded up
                total_cost += window_cost * len(members) + batch_overhead * batch_count
                batches += [batch.tolist() for batch in np.array_split(members, batch_count)]
            if total_cost < best.cost:
                best = WindowGroups(batches, total_cost)
    return best


def merge_size_classes(
    sizes: FloatArray, prices: FloatArray, max_classes: int = MAX_SIZE_CLASSES
) -> list[IndexArray]:
    """Ways to sort positions along one axis into 1 to `max_classes` classes of about one size.

    `sizes` is layers×positions. Each way is an array of class numbers, one for each position.
    Beginning with one class for each distinct column of sizes, the two classes whose common maximum
    costs least are merged, again and again.
    """
    peak_columns, first_class, members = np.unique(
        sizes, axis=1, return_inverse=True, return_counts=True
    )
    peaks = list(peak_columns.T)  # the largest size of each class in each layer
    counts = list(members)  # positions of each class
    merged_from = [[index] for index in range(len(peaks))]
    partitions: list[IndexArray] = []
    while peaks:
        if len(peaks) <= max_classes:
            class_of: dict[int, int] = {}
            for number, group in enumerate(merged_from):
                class_of.update(dict.fromkeys(group, number))
            partitions.append(np.array([class_of[int(i)] for i in first_class.reshape(-1)]))

        i, j = find_cheapest_merge(np.array(peaks), np.array(counts), prices)
        if i == j:
            break
        peaks[i] = np.maximum(peaks[i], peaks[j])
        counts[i] += counts[j]
        merged_from[i] += merged_from[j]
        del peaks[j], counts[j], merged_from[j]
    return partitions


def find_cheapest_merge(
    peaks: FloatArray, counts: IndexArray, prices: FloatArray
) -> tuple[int, int]:
    """The two classes that cost least more when merged, the smaller first; (0, 0) for one class."""
    own_cost = (peaks @ prices) * counts
    joint_price = np.maximum(peaks[:, None], peaks[None]) @ prices
    joint_count = counts[:, None] + counts
    extra_cost = joint_price * joint_count - own_cost[:, None] - own_cost
    np.fill_diagonal(extra_cost, np.inf)
    i, j = sorted(divmod(int(extra_cost.argmin()), len(peaks)))
    return i, j
