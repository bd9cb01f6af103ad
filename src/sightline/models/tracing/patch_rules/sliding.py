"""Rules for what slides a window over the positions: convolution and pooling."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.models.overrides.onednn import convolve_packed
from sightline.models.tracing.patch_rules.intervals import (
    AxisWindow,
    ChangedRegions,
    count_pooled_elements,
)
from sightline.models.tracing.patch_rules.patches import (
    LOWEST_BORDER,
    ZERO_BORDER,
    PatchedCall,
    PatchedMaps,
    PatchRuleResult,
)
from sightline.models.tracing.patch_rules.reductions import average_patched_maps

# A patch that fills more of its map than this is not worth cutting out.
MAX_PATCH_SHARE = 0.8

SlidingWindow = tuple[AxisWindow, AxisWindow]  # along rows, along columns


def slide_window_over_patches(
    call: PatchedCall,
    window: SlidingWindow,
    border: int,
    apply_window: Callable[[Tensor, ChangedRegions], Tensor],
) -> PatchedMaps | None:
    """A sliding window over patched maps.

    `apply_window(windows, regions)` computes the patches of the result at these regions from what
    the window sees there; the windows contain the padding already.
    """
    maps = call.operand
    rows, cols = window
    changed = maps.regions.slide_window(call.get_clean_map().tensor.shape, rows, cols)
    if not call.survey and changed.equalize_sizes().map_share > MAX_PATCH_SHARE:
        return None

    def make_patches(regions: ChangedRegions) -> Tensor:
        height = count_seen_elements(rows, regions.height)
        width = count_seen_elements(cols, regions.width)
        tops = locate_first_seen(rows, regions.rows.start)
        lefts = locate_first_seen(cols, regions.cols.start)
        return apply_window(maps.cut_windows(tops, lefts, height, width, border), regions)

    return call.make_patched_maps(changed, make_patches)


def count_seen_elements(window: AxisWindow, output_count: int) -> int:
    """How many elements so many neighbouring outputs see along one axis."""
    size, stride, _, dilation = window
    return (output_count - 1) * stride + dilation * (size - 1) + 1


def locate_first_seen(window: AxisWindow, output_index: Any) -> Any:
    """The first element that an output sees along one axis; negative in the padding."""
    _, stride, padding, _ = window
    return output_index * stride - padding


def convolve_patches(call: PatchedCall) -> PatchedMaps | None:
    """aten.convolution(input, weight, bias, stride, padding, dilation, transposed, _, groups)."""
    maps, weight, bias, stride, padding, dilation, transposed, _, groups = call.args
    if weight.ndim != 4 or maps.clean_map.tensor.ndim != 4 or transposed:
        return None

    def read_axis(axis: int) -> AxisWindow:
        return (
            weight.shape[2 + axis],
            stride[axis % len(stride)],
            padding[axis % len(padding)],
            dilation[axis % len(dilation)],
        )

    def convolve(windows: Tensor, _regions: ChangedRegions) -> Tensor:
        return convolve_packed(windows, weight, bias, stride, [0, 0], dilation, groups)

    return slide_window_over_patches(call, (read_axis(0), read_axis(1)), ZERO_BORDER, convolve)


def max_pool_patches(call: PatchedCall) -> PatchRuleResult:
    """aten.max_pool2d_with_indices(input, kernel_size, stride, padding, dilation, ceil_mode).

    The indices must not be used.
    """
    window = read_pool_window(call, dilated=True)
    size, stride, _, dilation = zip(*window, strict=True)

    def pool(windows: Tensor, _regions: ChangedRegions) -> Tensor:
        return torch.max_pool2d(windows, size, stride, 0, dilation)

    pooled = slide_window_over_patches(call, window, LOWEST_BORDER, pool)
    return None if pooled is None else (pooled, None)


def average_pool_patches(call: PatchedCall) -> PatchedMaps | None:
    """aten.avg_pool2d(input, size, stride, padding, ceil_mode, count_include_pad, divisor)."""
    window = read_pool_window(call, dilated=False)
    size, stride, _, _ = zip(*window, strict=True)
    count_padding = bool(call.get_argument(5, "", True))
    divisor = call.get_argument(6, "")
    output_size = call.get_clean_map().tensor.shape[-2:]
    rows_pooled, cols_pooled = (
        count_pooled_elements(axis, before, after, count_padding=count_padding)
        for axis, before, after in zip(window, call.operand.map_size, output_size, strict=True)
    )

    def pool(windows: Tensor, regions: ChangedRegions) -> Tensor:
        # A sum may be beyond half precision.
        wide_dtype = torch.promote_types(windows.dtype, torch.float32)
        total = F.avg_pool2d(windows.to(wide_dtype), size, stride, divisor_override=1)
        if divisor:
            return (total / divisor).to(windows)
        rows = rows_pooled[regions.rows.start[:, None] + np.arange(regions.height)]
        cols = cols_pooled[regions.cols.start[:, None] + np.arange(regions.width)]
        areas = rows[:, None, :, None] * cols[:, None, None, :]
        return (total / torch.from_numpy(areas).to(total)).to(windows)

    return slide_window_over_patches(call, window, ZERO_BORDER, pool)


def read_pool_window(call: PatchedCall, *, dilated: bool) -> SlidingWindow:
    """The window of a pooling operation, from arguments of one number or one for each axis."""
    sizes = call.args[1]
    strides = call.get_argument(2, "") or sizes
    paddings = call.get_argument(3, "", [0])
    dilations = call.get_argument(4, "", [1]) if dilated else [1]

    def read_axis(axis: int) -> AxisWindow:
        per_axis: list[Sequence[int]] = [sizes, strides, paddings, dilations]
        return [values[axis % len(values)] for values in per_axis]

    return read_axis(0), read_axis(1)


def adaptive_pool_patches(call: PatchedCall) -> PatchRuleResult:
    """aten._adaptive_avg_pool2d(input, output_size): a mean, or a regular pooling."""
    output_height, output_width = call.args[1]
    height, width = call.operand.map_size
    if (output_height, output_width) == (1, 1):
        return average_patched_maps(call, (-2, -1))
    is_regular = height % output_height == 0 and width % output_width == 0
    if call.operand.clean_map.tensor.ndim != 4 or not is_regular:
        return None
    row_step = height // output_height
    col_step = width // output_width

    def pool(windows: Tensor, _regions: ChangedRegions) -> Tensor:
        return F.avg_pool2d(windows, (row_step, col_step))

    window = ((row_step, row_step, 0, 1), (col_step, col_step, 0, 1))
    return slide_window_over_patches(call, window, ZERO_BORDER, pool)
