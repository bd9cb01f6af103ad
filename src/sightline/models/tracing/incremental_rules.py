"""How operations act on a batch of maps that are clean but for a patch each.

A rule is a function of a `PatchedCall` that returns the result as `PatchedMaps`, or None: then, as
where there is no rule, the operation is run on whole maps.

To add a rule for an operation:

1. find its name in torch.ops.aten, and the order of its arguments (`torch.ops.aten.NAME.default`);
2. return None for every argument that your rule does not handle;
3. say which regions of the result change, from `call.operand.regions`;
4. return `call.make_patched_maps(regions, make_patches)`, where `make_patches(regions)` computes
   the patches, for instance by the operation itself on `call.operand.cut_windows(…)`;
5. enter it in `PATCH_RULES`, and a network with it in tests/models/tracing/test_incremental.py.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.models.overrides.onednn import convolve_packed
from sightline.models.tracing.intervals import AxisWindow, ChangedRegions, count_pooled_elements
from sightline.models.tracing.patches import (
    LOWEST_BORDER,
    ZERO_BORDER,
    PatchedCall,
    PatchedMaps,
    PatchRuleResult,
    require_patches,
)

aten: Any = torch.ops.aten

# A patch that fills more of its map than this is not worth cutting out.
MAX_PATCH_SHARE = 0.8

SlidingWindow = tuple[AxisWindow, AxisWindow]  # along rows, along columns


def apply_patch_rule(call: PatchedCall) -> PatchRuleResult:
    """The result of a call on patches; None where there is no rule for it."""
    operation = call.func.overloadpacket
    if operation in PATCH_RULES:
        patched = find_patched_maps((*call.args, *call.kwargs.values()))
        is_only_operand = len(patched) == 1 and isinstance(call.args[0], PatchedMaps)
        return PATCH_RULES[operation](call) if is_only_operand else None
    if operation is aten.cat:
        return concatenate_patches(call)
    if torch.Tag.pointwise in call.func.tags:
        return apply_pointwise_to_patches(call)
    return None


def find_patched_maps(value: Any) -> list[PatchedMaps]:
    """The patched maps in nested tuples and lists."""
    if isinstance(value, PatchedMaps):
        return [value]
    patched: list[PatchedMaps] = []
    if isinstance(value, (tuple, list)):
        for item in value:
            patched += find_patched_maps(item)
    return patched


# ── sliding windows ──


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
        total = F.avg_pool2d(windows, size, stride, divisor_override=1)
        if divisor:
            return total / divisor
        rows = rows_pooled[regions.rows.start[:, None] + np.arange(regions.height)]
        cols = cols_pooled[regions.cols.start[:, None] + np.arange(regions.width)]
        areas = rows[:, None, :, None] * cols[:, None, None, :]
        return total / torch.from_numpy(areas).to(windows)

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


# ── position by position ──


def apply_pointwise_to_patches(call: PatchedCall) -> PatchedMaps | None:
    """Functions of the elements at one position; constants must be the same at all positions."""
    inputs = find_patched_maps((*call.args, *call.kwargs.values()))
    if not are_alike(inputs) or not has_uniform_constants(call, inputs[0].clean_map.tensor.ndim):
        return None
    return call.make_patched_maps(
        unite_changed_regions(inputs),
        lambda regions: call.run_operation(lambda maps: maps.cut_regions(regions)),
    )


def are_alike(inputs: Sequence[PatchedMaps]) -> bool:
    """Whether all maps have the same size and number of axes."""
    first = inputs[0]
    return all(
        maps.map_size == first.map_size
        and maps.clean_map.tensor.ndim == first.clean_map.tensor.ndim
        for maps in inputs
    )


def has_uniform_constants(call: PatchedCall, ndim: int) -> bool:
    """Whether all constants are the same in each image of the batch and at all positions."""
    for value in (*call.args, *call.kwargs.values()):
        if not isinstance(value, Tensor):
            continue
        varies_with_position = any(size != 1 for size in value.shape[-2:])
        varies_with_image = value.ndim >= ndim and value.shape[0] != 1
        if varies_with_position or varies_with_image:
            return False
    return True


def unite_changed_regions(inputs: Sequence[PatchedMaps]) -> ChangedRegions:
    """What any of the inputs changes; the regions themselves where they are the same object."""
    regions = inputs[0].regions
    for maps in inputs[1:]:
        if maps.regions is not regions:
            regions = regions | maps.regions
    return regions


def concatenate_patches(call: PatchedCall) -> PatchedMaps | None:
    """aten.cat(tensors, dim) along channels."""
    inputs = call.args[0]
    if not all(isinstance(maps, PatchedMaps) for maps in inputs):
        return None
    if not are_alike(inputs) or inputs[0].clean_map.tensor.ndim != 4:
        return None
    if call.get_argument(1, "dim", 0) not in (1, -3):
        return None
    return call.make_patched_maps(
        unite_changed_regions(inputs),
        lambda regions: torch.cat([maps.cut_regions(regions) for maps in inputs], 1),
    )


def batch_normalize_patches(call: PatchedCall) -> PatchRuleResult:
    """aten.native_batch_norm(input, weight, bias, mean, variance, training, momentum, eps).

    Only with the running statistics.
    """
    never_trains = call.func.overloadpacket is aten._native_batch_norm_legit_no_training
    uses_batch_statistics = call.args[5] and not never_trains
    if uses_batch_statistics or call.operand.clean_map.tensor.ndim != 4:
        return None

    def normalize(regions: ChangedRegions) -> Tensor:
        return call.func(call.operand.cut_regions(regions), *call.args[1:])[0]

    return call.make_patched_maps(call.operand.regions, normalize), None, None


# Which arguments of a view are dimensions; the first one after the input where none are named.
DIMENSION_ARGUMENTS = {"transpose": (1, 2), "split": (2,), "split_with_sizes": (2,)}


def rearrange_patch_channels(call: PatchedCall) -> PatchRuleResult:
    """Views that leave the batch and the positions as they are."""
    name = call.func.overloadpacket.__name__
    ndim = call.operand.clean_map.tensor.ndim
    if name == "unsqueeze":
        ndim += 1
    for argument in DIMENSION_ARGUMENTS.get(name, (1,)):
        dimension = call.get_argument(argument, "dim", 0) % ndim
        if not 0 < dimension < ndim - 2:
            return None

    regions = call.operand.regions
    clean_results = call.run_operation(lambda maps: maps.clean_map.tensor)
    if isinstance(clean_results, Tensor):
        return call.make_patched_maps(regions, lambda _: call.run_operation(require_patches))
    results: list[PatchedMaps | None] = []
    for index in range(len(clean_results)):

        def take_result(_: ChangedRegions, index: int = index) -> Tensor:
            return call.run_operation(require_patches)[index]

        results.append(call.make_patched_maps(regions, take_result, index))
    return results


def reshape_patch_channels(call: PatchedCall) -> PatchedMaps | None:
    """aten.view(input, size) of the dimensions between the batch and the positions."""
    maps = call.operand
    shape = tuple(call.args[1])
    if len(shape) < 3 or shape[0] != call.image_count or shape[-2:] != maps.map_size:
        return None
    channel_shape = shape[1:-2]
    call.get_clean_map(compute=lambda: maps.clean_map.tensor.reshape(1, *shape[1:]))

    def reshape(regions: ChangedRegions) -> Tensor:
        patches = require_patches(maps)
        return patches.reshape(-1, *channel_shape, regions.height, regions.width)

    return call.make_patched_maps(maps.regions, reshape)


def copy_patches(call: PatchedCall) -> PatchedMaps:
    """Copies. Patches are never written to, so they need not be copied."""
    return call.make_patched_maps(call.operand.regions, lambda _: require_patches(call.operand))


def pad_patched_maps(call: PatchedCall) -> PatchedMaps | None:
    """aten.constant_pad_nd(input, pad, value) around the positions."""
    maps = call.operand
    padding = call.args[1]
    if len(padding) > 4 or min(padding) < 0:
        return None
    left, _, top, _ = (*padding, 0, 0)[:4]
    height, width = call.get_clean_map().tensor.shape[-2:]
    regions = ChangedRegions(
        maps.regions.rows.shift_starts(top, height), maps.regions.cols.shift_starts(left, width)
    )
    return call.make_patched_maps(regions, lambda _: require_patches(maps))


def average_patched_maps(call: PatchedCall, dims: Sequence[int] | None) -> Tensor | None:
    """A mean over all positions: that of the clean map, plus what the patch changes."""
    maps = call.operand
    ndim = maps.clean_map.tensor.ndim
    if dims is None or {dim % ndim for dim in dims} != {ndim - 2, ndim - 1}:
        return None
    clean_mean = call.get_clean_map().tensor
    if call.survey:
        return clean_mean.repeat(call.image_count, *[1] * (clean_mean.ndim - 1))
    clean_patches = maps.cut_regions(maps.regions, without_patches=True)
    change = (require_patches(maps) - clean_patches).sum((-2, -1)) / math.prod(maps.map_size)
    return clean_mean + change.reshape(len(change), *clean_mean.shape[1:])


PATCH_RULES: dict[Any, Callable[[PatchedCall], PatchRuleResult]] = {
    aten.convolution: convolve_patches,
    aten.max_pool2d_with_indices: max_pool_patches,
    aten.avg_pool2d: average_pool_patches,
    aten._adaptive_avg_pool2d: adaptive_pool_patches,
    aten.mean: lambda call: average_patched_maps(call, call.get_argument(1, "dim")),
    aten.native_batch_norm: batch_normalize_patches,
    aten._native_batch_norm_legit_no_training: batch_normalize_patches,
    aten.cudnn_batch_norm: batch_normalize_patches,
    aten.constant_pad_nd: pad_patched_maps,
    aten.view: reshape_patch_channels,
    aten._unsafe_view: reshape_patch_channels,
    aten.reshape: reshape_patch_channels,
    aten.clone: copy_patches,
    aten.detach: copy_patches,
    aten.alias: copy_patches,
    aten.select: rearrange_patch_channels,
    aten.slice: rearrange_patch_channels,
    aten.split: rearrange_patch_channels,
    aten.split_with_sizes: rearrange_patch_channels,
    aten.unbind: rearrange_patch_channels,
    aten.unsqueeze: rearrange_patch_channels,
    aten.transpose: rearrange_patch_channels,
}
