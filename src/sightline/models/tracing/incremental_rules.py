"""How operations act on a batch of maps that are clean but for a patch each.

A rule gives the patch behind an operation from the patches before it and the clean maps around them, or None: then, as
where there is no rule, the operation is run on whole maps.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

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

# A patch that fills more of its map is not worth cutting out.
MAX_PATCH_SHARE = 0.8

SlidingWindow = tuple[AxisWindow, AxisWindow]  # along rows, along columns


def apply_patch_rule(call: PatchedCall) -> PatchRuleResult:
    """What a call gives, if it can be localized."""
    kind = call.func.overloadpacket
    if kind in PATCH_RULES:
        alone = len(find_patched_maps((*call.args, *call.kwargs.values()))) == 1 and isinstance(
            call.args[0], PatchedMaps
        )
        return PATCH_RULES[kind](call) if alone else None
    if kind is aten.cat:
        return concatenate_patches(call)
    return apply_pointwise_to_patches(call) if torch.Tag.pointwise in call.func.tags else None


def find_patched_maps(value: Any) -> list[PatchedMaps]:
    """The Locals in nested tuples and lists."""
    if isinstance(value, PatchedMaps):
        return [value]
    return (
        [found for item in value for found in find_patched_maps(item)]
        if isinstance(value, (tuple, list))
        else []
    )


# ── sliding windows ──


def slide_window_over_patches(
    call: PatchedCall,
    window: SlidingWindow,
    border: int,
    apply_window: Callable[[Tensor, ChangedRegions], Tensor],
) -> PatchedMaps | None:
    """A sliding window over one Local; `run` does it without padding on cut-outs, for a cone of the result."""
    x, (rows, cols) = call.operand, window
    cone = x.regions.slide_window(call.get_clean_map().tensor.shape, rows, cols)
    if not call.survey and cone.equalize_sizes().map_share > MAX_PATCH_SHARE:
        return None

    def patch(cone: ChangedRegions) -> Tensor:
        height, width = (
            (count - 1) * stride + dilation * (size - 1) + 1
            for count, (size, stride, _, dilation) in ((cone.height, rows), (cone.width, cols))
        )
        top, left = cone.rows.start * rows[1] - rows[2], cone.cols.start * cols[1] - cols[2]
        return apply_window(x.cut_windows(top, left, height, width, border), cone)

    return call.make_patched_maps(cone, patch)


def convolve_patches(call: PatchedCall) -> PatchedMaps | None:
    """aten.convolution(input, weight, bias, stride, padding, dilation, transposed, output_padding, groups)."""
    x, weight, bias, stride, padding, dilation, transposed, _, groups = call.args
    if weight.ndim != 4 or x.clean_map.tensor.ndim != 4 or transposed:
        return None
    window = [
        (
            weight.shape[2 + i],
            stride[i % len(stride)],
            padding[i % len(padding)],
            dilation[i % len(dilation)],
        )
        for i in (0, 1)
    ]

    def run(x: Tensor, _cone: ChangedRegions) -> Tensor:
        return convolve_packed(x, weight, bias, stride, [0, 0], dilation, groups)

    return slide_window_over_patches(call, (window[0], window[1]), ZERO_BORDER, run)


def max_pool_patches(call: PatchedCall) -> PatchRuleResult:
    """aten.max_pool2d_with_indices(input, kernel_size, stride, padding, dilation, ceil_mode); the indices are not for use."""
    window = read_pool_window(call, dilated=True)
    size, stride, _, dilation = ([axis[i] for axis in window] for i in range(4))
    pooled = slide_window_over_patches(
        call, window, LOWEST_BORDER, lambda x, _cone: torch.max_pool2d(x, size, stride, 0, dilation)
    )
    return pooled and (pooled, None)


def average_pool_patches(call: PatchedCall) -> PatchedMaps | None:
    """aten.avg_pool2d(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)."""
    window = read_pool_window(call, dilated=False)
    size, stride = ([axis[i] for axis in window] for i in range(2))
    shape = call.get_clean_map().tensor.shape
    padded, forced = bool(call.get_argument(5, "", True)), call.get_argument(6, "")
    areas = [
        count_pooled_elements(axis, n, count, count_padding=padded)
        for axis, n, count in zip(window, call.operand.map_size, shape[-2:], strict=True)
    ]

    def run(x: Tensor, cone: ChangedRegions) -> Tensor:
        total = torch.nn.functional.avg_pool2d(x, size, stride, divisor_override=1)
        if forced:
            return total / forced
        rows, cols = (
            areas[0][cone.rows.start[:, None] + np.arange(cone.height)],
            areas[1][cone.cols.start[:, None] + np.arange(cone.width)],
        )
        return total / torch.from_numpy(rows[:, None, :, None] * cols[:, None, None, :]).to(x)

    return slide_window_over_patches(call, window, ZERO_BORDER, run)


def read_pool_window(call: PatchedCall, *, dilated: bool) -> SlidingWindow:
    """A pooling operation's window."""

    def pair(value: Sequence[int], i: int) -> int:
        return value[i % len(value)]

    sizes = call.args[1]
    strides, paddings, dilations = (
        call.get_argument(2, "") or sizes,
        call.get_argument(3, "", [0]),
        call.get_argument(4, "", [1]) if dilated else [1],
    )
    rows, cols = (
        [pair(sizes, i), pair(strides, i), pair(paddings, i), pair(dilations, i)] for i in (0, 1)
    )
    return rows, cols


def adaptive_pool_patches(call: PatchedCall) -> PatchRuleResult:
    """aten._adaptive_avg_pool2d(input, output_size): a mean, nothing at all, or a regular pooling."""
    shape, size = call.args[1], call.operand.map_size
    if tuple(shape) == (1, 1):
        return average_patched_maps(call, (-2, -1))
    if call.operand.clean_map.tensor.ndim != 4 or size[0] % shape[0] or size[1] % shape[1]:
        return None
    step = [before // after for before, after in zip(size, shape, strict=True)]
    rows, cols = ([n, n, 0, 1] for n in step)
    return slide_window_over_patches(
        call, (rows, cols), ZERO_BORDER, lambda x, _cone: torch.nn.functional.avg_pool2d(x, step)
    )


# ── place by place ──


def apply_pointwise_to_patches(call: PatchedCall) -> PatchedMaps | None:
    """Functions of the elements at one place; constants must be the same at all places."""
    xs = [
        found for value in (*call.args, *call.kwargs.values()) for found in find_patched_maps(value)
    ]
    if any(
        x.map_size != xs[0].map_size or x.clean_map.tensor.ndim != xs[0].clean_map.tensor.ndim
        for x in xs
    ) or not has_uniform_constants(call, xs[0].clean_map.tensor.ndim):
        return None
    return call.make_patched_maps(
        unite_changed_regions(xs), lambda cone: call.run_operation(lambda x: x.cut_regions(cone))
    )


def has_uniform_constants(call: PatchedCall, ndim: int) -> bool:
    """Whether all constants are the same in each image of the batch and at all places."""
    constants = [
        value for value in (*call.args, *call.kwargs.values()) if isinstance(value, Tensor)
    ]
    return all(
        all(n == 1 for n in value.shape[-2:]) and (value.ndim < ndim or value.shape[0] == 1)
        for value in constants
    )


def unite_changed_regions(inputs: Sequence[PatchedMaps]) -> ChangedRegions:
    """What any of them changes; the cone itself where it is one and the same."""
    cone = inputs[0].regions
    for x in inputs[1:]:
        cone = cone if x.regions is cone else cone | x.regions
    return cone


def concatenate_patches(call: PatchedCall) -> PatchedMaps | None:
    """Concatenation along channels: the clean surroundings in one piece, then each patch."""
    xs, dim = call.args[0], call.get_argument(1, "dim", 0)
    if (
        not all(isinstance(x, PatchedMaps) for x in xs)
        or any(x.map_size != xs[0].map_size or x.clean_map.tensor.ndim != 4 for x in xs)
        or dim not in (1, -3)
    ):
        return None
    return call.make_patched_maps(
        unite_changed_regions(xs), lambda cone: torch.cat([x.cut_regions(cone) for x in xs], 1)
    )


def batch_normalize_patches(call: PatchedCall) -> PatchRuleResult:
    """aten.native_batch_norm(input, weight, bias, mean, variance, training, momentum, eps), with known statistics."""
    legit = call.func.overloadpacket is aten._native_batch_norm_legit_no_training
    if (call.args[5] and not legit) or call.operand.clean_map.tensor.ndim != 4:
        return None
    return (
        call.make_patched_maps(
            call.operand.regions,
            lambda cone: call.func(call.operand.cut_regions(cone), *call.args[1:])[0],
        ),
        None,
        None,
    )


def rearrange_patch_channels(call: PatchedCall) -> PatchRuleResult:
    """Views that leave the batch and the places alone."""
    ndim, name = call.operand.clean_map.tensor.ndim, call.func.overloadpacket.__name__
    ndim += name == "unsqueeze"
    at = {"transpose": (1, 2), "split": (2,), "split_with_sizes": (2,)}.get(name, (1,))
    if not all(0 < call.get_argument(i, "dim", 0) % ndim < ndim - 2 for i in at):
        return None
    found = call.run_operation(lambda x: x.clean_map.tensor)
    if isinstance(found, Tensor):
        return call.make_patched_maps(
            call.operand.regions, lambda _: call.run_operation(require_patches)
        )
    return [
        call.make_patched_maps(
            call.operand.regions, lambda _, i=i: call.run_operation(require_patches)[i], i
        )
        for i in range(len(found))
    ]


def reshape_patch_channels(call: PatchedCall) -> PatchedMaps | None:
    """aten.view(input, size) of the dimensions between the batch and the places."""
    x, shape = call.operand, tuple(call.args[1])
    if len(shape) < 3 or shape[0] != call.image_count or shape[-2:] != x.map_size:
        return None
    call.get_clean_map(compute=lambda: x.clean_map.tensor.reshape(1, *shape[1:]))
    return call.make_patched_maps(
        x.regions,
        lambda cone: require_patches(x).reshape(-1, *shape[1:-2], cone.height, cone.width),
    )


def copy_patches(call: PatchedCall) -> PatchedMaps:
    """Copies; patches are never written to, so one will do."""
    return call.make_patched_maps(call.operand.regions, lambda _: require_patches(call.operand))


def pad_patched_maps(call: PatchedCall) -> PatchedMaps | None:
    """aten.constant_pad_nd(input, pad, value) around the places."""
    x, pad = call.operand, call.args[1]
    if len(pad) > 4 or min(pad) < 0:
        return None
    left, _, top, _ = (*pad, 0, 0)[:4]
    shape = call.get_clean_map().tensor.shape
    cone = ChangedRegions(
        x.regions.rows.shift_starts(top, shape[-2]), x.regions.cols.shift_starts(left, shape[-1])
    )
    return call.make_patched_maps(cone, lambda _: require_patches(x))


def average_patched_maps(call: PatchedCall, dims: Sequence[int] | None) -> Tensor | None:
    """A mean over all places: the clean one, moved by what the patch differs."""
    x, ndim = call.operand, call.operand.clean_map.tensor.ndim
    if dims is None or {dim % ndim for dim in dims} != {ndim - 2, ndim - 1}:
        return None
    clean = call.get_clean_map().tensor
    if call.survey:
        return clean.repeat(call.image_count, *[1] * (clean.ndim - 1))
    change = (require_patches(x) - x.cut_regions(x.regions, without_patches=True)).sum((-2, -1))
    return clean + (change / math.prod(x.map_size)).reshape(len(change), *clean.shape[1:])


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
    **dict.fromkeys((aten.view, aten._unsafe_view, aten.reshape), reshape_patch_channels),
    **dict.fromkeys((aten.clone, aten.detach, aten.alias), copy_patches),
    **dict.fromkeys(
        (
            aten.select,
            aten.slice,
            aten.split,
            aten.split_with_sizes,
            aten.unbind,
            aten.unsqueeze,
            aten.transpose,
        ),
        rearrange_patch_channels,
    ),
}
