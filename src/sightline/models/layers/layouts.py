"""How the axes of a layer's output may lie on the image."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from sightline.errors import SightlineError

# Class and register tokens stand before those of the image.
MAX_EXTRA_TOKENS = 16

# A grid of tokens has the image's aspect ratio to within this share.
ASPECT_TOLERANCE = 0.1

# Convolutions without padding make a map smaller by a few of its positions.
MAX_LOST_POSITIONS = 3

# The axes of a tensor in order. N is the batch, C the channels, H the rows, W the columns, T the
# tokens, E the heads, which count as channels, K the windows; M is the batch with its windows.
AxisOrder = Literal["NCHW", "NHWC", "NTC", "TNC", "NCT", "NETC", "NKTC", "MTC", "MHWC", "MCHW"]


@dataclass(frozen=True)
class WindowGrid:
    """How an image is cut into windows of tokens.

    Attributes:
        count: windows down and across.
        size: rows and columns of tokens in a window.
        is_strided: whether a window's tokens are spread over the whole image instead of adjacent.
        shift: rows and columns by which the image was rolled up and left before it was cut.
    """

    count: tuple[int, int]
    size: tuple[int, int]
    is_strided: bool = False
    shift: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class FeatureLayout:
    """How a layer's output lies on the image.

    Attributes:
        order: what the axes are.
        rows, columns: of the positions.
        extra_tokens: how many tokens before those of the image have no position.
        windows: how the positions are cut into windows, if they are.
    """

    order: AxisOrder
    rows: int
    columns: int
    extra_tokens: int = 0
    windows: WindowGrid | None = None

    @property
    def needs_evidence(self) -> bool:
        """Whether a shape alone does not tell this layout: many shapes fit it by chance."""
        return self.order == "NCT" or self.windows is not None

    @property
    def unit_axes(self) -> tuple[int, ...]:
        """The axes that count the units; where there are heads, these and their channels."""
        return tuple(axis for axis, letter in enumerate(self.order) if letter in "CE")

    @property
    def batch_axis(self) -> int:
        """The axis that counts the images, or the images' windows."""
        return next(axis for axis, letter in enumerate(self.order) if letter in "NM")

    def is_same_reading(self, other: "FeatureLayout") -> bool:
        """Whether another layout reads the axes the same way, for an image of another size."""
        return self._describe_reading() == other._describe_reading()

    def _describe_reading(self) -> tuple[object, ...]:
        if self.windows is None:
            return (self.order, self.extra_tokens)
        windows = self.windows
        window_part = windows.count if windows.is_strided else windows.size
        return (self.order, self.extra_tokens, windows.is_strided, window_part, windows.shift)

    def arrange_as_maps(self, feature: Tensor) -> Tensor:
        """The features as N×C×rows×columns, a view where that is possible.

        Raises SightlineError for another number of tokens: networks that drop some at random have
        one each time.
        """
        if self.order == "NCHW":
            return feature
        if self.order == "NHWC":
            return feature.permute(0, 3, 1, 2)
        if self.windows is not None:
            return self._join_windows(feature, self.windows)
        image_tokens = self._arrange_tokens(feature)[:, self.extra_tokens :]
        position_count = self.rows * self.columns
        if image_tokens.shape[1] != position_count:
            raise SightlineError(
                f"a layer gives {image_tokens.shape[1]} tokens where it gave {position_count} "
                "before; choose a layer whose tokens are the same each time"
            )
        return image_tokens.transpose(1, 2).unflatten(2, (self.rows, self.columns))

    def _arrange_tokens(self, feature: Tensor) -> Tensor:
        """The features as N×T×C."""
        if self.order == "TNC":
            return feature.transpose(0, 1)
        if self.order == "NCT":
            return feature.transpose(1, 2)
        if self.order == "NETC":
            return feature.transpose(1, 2).flatten(2)
        return feature

    def _join_windows(self, feature: Tensor, windows: WindowGrid) -> Tensor:
        if self.order == "MCHW":
            feature = feature.permute(0, 2, 3, 1)
        if self.order == "NKTC":
            feature = feature.flatten(0, 1)
        channels = feature.shape[-1]
        outer = windows.count
        inner = windows.size
        cells = feature.reshape(-1, *outer, *inner, channels)
        axes = (0, 5, 3, 1, 4, 2) if windows.is_strided else (0, 5, 1, 3, 2, 4)
        maps = cells.permute(axes)
        joined = maps.reshape(len(maps), channels, self.rows, self.columns)
        return joined.roll(windows.shift, (2, 3)) if any(windows.shift) else joined


def list_feature_layouts(
    shape: Sequence[int], batch: int, height: int, width: int
) -> list[FeatureLayout]:
    """The layouts that an output of this shape may have, the most customary one first.

    For a batch of images of height × width pixels.
    """
    axis_count = len(shape)
    if axis_count not in (3, 4):
        return []
    layouts: list[FeatureLayout] = []
    is_batch_first = shape[0] == batch
    if axis_count == 4 and is_batch_first:
        layouts += _list_map_layouts(shape, height, width)
        layouts = layouts or list(_list_grouped_token_layouts(shape, height, width))
    if axis_count == 3:
        layouts += _list_sequence_layouts(shape, batch, height, width)
    if shape[0] > batch and shape[0] % batch == 0:
        layouts += _list_window_layouts(shape, shape[0] // batch, height, width)
    if not layouts and axis_count == 4 and is_batch_first:
        # Pooled maps need not have the shape of the image.
        layouts.append(FeatureLayout("NCHW", shape[2], shape[3]))
    return layouts


def is_map_of_image(rows: int, columns: int, height: int, width: int) -> bool:
    """Whether rows × columns positions come of one stride in both axes of an image.

    Some stride s and padding p give rows = ⌊(height + p)/s⌋ and columns = ⌊(width + p)/s⌋.
    """
    if rows * width == columns * height:
        return True
    smallest = max(1, height // (rows + MAX_LOST_POSITIONS + 1))
    largest = height // max(1, rows - MAX_LOST_POSITIONS) + 1
    for stride in range(smallest, largest + 1):
        lowest = max(rows * stride - height, columns * stride - width)
        highest = min((rows + 1) * stride - height, (columns + 1) * stride - width) - 1
        limit = MAX_LOST_POSITIONS * stride
        if max(lowest, -limit) <= min(highest, limit):
            return True
    return False


def _list_map_layouts(shape: Sequence[int], height: int, width: int) -> Iterator[FeatureLayout]:
    """Layouts N×C×H×W and N×H×W×C."""
    _, first, second, third = shape
    if second * third > 1 and is_map_of_image(second, third, height, width):
        yield FeatureLayout("NCHW", second, third)
    if first * second > 1 and is_map_of_image(first, second, height, width):
        yield FeatureLayout("NHWC", first, second)


def _list_sequence_layouts(
    shape: Sequence[int], batch: int, height: int, width: int
) -> Iterator[FeatureLayout]:
    """Layouts N×T×C, N×C×T and T×N×C."""
    first, second, third = shape
    if first == batch:
        yield from _list_token_layouts("NTC", second, height, width)
        yield from _list_token_layouts("NCT", third, height, width)
    if second == batch:
        yield from _list_token_layouts("TNC", first, height, width)


def _list_grouped_token_layouts(
    shape: Sequence[int], height: int, width: int
) -> Iterator[FeatureLayout]:
    """Layouts N×heads×T×C and N×windows×T×C."""
    _, first, second, _ = shape
    yield from _list_token_layouts("NETC", second, height, width)
    for grid, rows, columns in _list_window_grids(first, second, None, height, width):
        yield FeatureLayout("NKTC", rows, columns, windows=grid)


def _list_token_layouts(
    order: AxisOrder, tokens: int, height: int, width: int
) -> list[FeatureLayout]:
    """The one layout of tokens on a grid of the image's shape.

    A grid that divides the image into equal patches comes first, then fewer extra tokens.
    """
    layouts: list[FeatureLayout] = []
    for extra_tokens in range(min(MAX_EXTRA_TOKENS + 1, tokens - 1)):
        grid = find_position_grid(tokens - extra_tokens, height, width)
        if grid is None:
            continue
        # Among so many numbers of extra tokens one fits nearly every shape by chance.
        if extra_tokens == 0 or is_patch_grid(*grid, height, width):
            layouts.append(FeatureLayout(order, *grid, extra_tokens))
    equal_patches = [
        layout for layout in layouts if height % layout.rows == 0 and width % layout.columns == 0
    ]
    return (equal_patches or layouts)[:1]


def find_position_grid(positions: int, height: int, width: int) -> tuple[int, int] | None:
    """Rows and columns of so many positions, with the image's aspect ratio; None without any."""
    rows = round(math.sqrt(positions * height / width))
    if rows == 0 or positions % rows:
        return None
    columns = positions // rows
    aspect_error = abs(rows * width / (columns * height) - 1)
    return (rows, columns) if aspect_error < ASPECT_TOLERANCE else None


def is_patch_grid(rows: int, columns: int, height: int, width: int) -> bool:
    """Whether an image that is cut into square patches has so many rows and columns.

    With or without the parts of patches at its edges.
    """
    for side in range(height // (rows + 1) + 1, height // max(1, rows - 1) + 1):
        whole_patches = (height // side, width // side)
        all_patches = (math.ceil(height / side), math.ceil(width / side))
        if (rows, columns) in (whole_patches, all_patches):
            return True
    return False


def _list_window_layouts(
    shape: Sequence[int], count: int, height: int, width: int
) -> Iterator[FeatureLayout]:
    """Layouts whose first axis is the batch with its windows."""
    if len(shape) == 3:
        for grid, rows, columns in _list_window_grids(count, shape[1], None, height, width):
            yield FeatureLayout("MTC", rows, columns, windows=grid)
        return
    sizes: dict[AxisOrder, tuple[int, int]] = {
        "MHWC": (shape[1], shape[2]),
        "MCHW": (shape[2], shape[3]),
    }
    for order, size in sizes.items():
        tokens = size[0] * size[1]
        for grid, rows, columns in _list_window_grids(count, tokens, size, height, width):
            yield FeatureLayout(order, rows, columns, windows=grid)


def _list_window_grids(
    count: int, tokens: int, size: tuple[int, int] | None, height: int, width: int
) -> Iterator[tuple[WindowGrid, int, int]]:
    """Ways to cut an image into `count` windows of `tokens`, with the rows and columns of all.

    `size` is that of the window, if it is known.
    """
    positions = find_position_grid(count * tokens, height, width)
    if count < 2 or positions is None:
        return
    rows, columns = positions
    if rows > height or columns > width:
        return
    for inner in _list_factor_pairs(tokens, rows, columns):
        if size in (None, inner):
            outer = (rows // inner[0], columns // inner[1])
            yield WindowGrid(outer, inner), rows, columns
            half = (inner[0] // 2, inner[1] // 2)
            # A window as long as the image is not shifted along it.
            shift = tuple(
                step if windows > 1 else 0 for step, windows in zip(half, outer, strict=True)
            )
            if any(shift):
                yield WindowGrid(outer, inner, shift=(shift[0], shift[1])), rows, columns
            if tokens > 1:
                yield WindowGrid(outer, inner, is_strided=True), rows, columns


def _list_factor_pairs(product: int, rows: int, columns: int) -> list[tuple[int, int]]:
    """Pairs of that product that divide rows and columns, the most square ones first."""
    pairs: list[tuple[int, int]] = []
    for first in range(1, product + 1):
        if product % first == 0 and rows % first == 0 and columns % (product // first) == 0:
            pairs.append((first, product // first))
    return sorted(pairs, key=lambda pair: abs(math.log(pair[0] / pair[1])))
