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

from .cones import Axis, Cone, divisors
from .local import LOWEST, ZERO, Call, Local, Result, patch_of
from .packed import convolve

aten: Any = torch.ops.aten
# A patch that fills more of its map is not worth cutting out.
NEARLY_ALL = 0.8
Window = tuple[Axis, Axis]  # along rows, along columns


def localized(call: Call) -> Result:
    """What a call gives, if it can be localized."""
    kind = call.func.overloadpacket
    if kind in RULES:
        alone = len(locals_of((*call.args, *call.kwargs.values()))) == 1 and isinstance(call.args[0], Local)
        return RULES[kind](call) if alone else None
    if kind is aten.cat:
        return cat(call)
    return pointwise(call) if torch.Tag.pointwise in call.func.tags else None


def locals_of(value: Any) -> list[Local]:
    """The Locals in nested tuples and lists."""
    if isinstance(value, Local):
        return [value]
    return [found for item in value for found in locals_of(item)] if isinstance(value, (tuple, list)) else []


# ── sliding windows ──


def windowed(call: Call, window: Window, beyond: int, run: Callable[[Tensor, Cone], Tensor]) -> Local | None:
    """A sliding window over one Local; `run` does it without padding on cut-outs, for a cone of the result."""
    x, (rows, cols) = call.x, window
    cone = x.cone.slide(call.clean().map.shape, rows, cols)
    if not call.survey and cone.even().share > NEARLY_ALL:
        return None

    def patch(cone: Cone) -> Tensor:
        height, width = (
            (count - 1) * stride + dilation * (size - 1) + 1
            for count, (size, stride, _, dilation) in ((cone.height, rows), (cone.width, cols))
        )
        top, left = cone.rows.start * rows[1] - rows[2], cone.cols.start * cols[1] - cols[2]
        return run(x.around(top, left, height, width, beyond), cone)

    return call.local(cone, patch)


def convolution(call: Call) -> Local | None:
    """aten.convolution(input, weight, bias, stride, padding, dilation, transposed, output_padding, groups)."""
    x, weight, bias, stride, padding, dilation, transposed, _, groups = call.args
    if weight.ndim != 4 or x.clean.map.ndim != 4 or transposed:
        return None
    window = [(weight.shape[2 + i], stride[i % len(stride)], padding[i % len(padding)], dilation[i % len(dilation)]) for i in (0, 1)]

    def run(x: Tensor, _cone: Cone) -> Tensor:
        return convolve(x, weight, bias, stride, [0, 0], dilation, groups)

    return windowed(call, (window[0], window[1]), ZERO, run)


def max_pool(call: Call) -> Result:
    """aten.max_pool2d_with_indices(input, kernel_size, stride, padding, dilation, ceil_mode); the indices are not for use."""
    window = pool_window(call, dilated=True)
    size, stride, _, dilation = ([axis[i] for axis in window] for i in range(4))
    pooled = windowed(call, window, LOWEST, lambda x, _cone: torch.max_pool2d(x, size, stride, 0, dilation))
    return pooled and (pooled, None)


def avg_pool(call: Call) -> Local | None:
    """aten.avg_pool2d(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)."""
    window = pool_window(call, dilated=False)
    size, stride = ([axis[i] for axis in window] for i in range(2))
    shape = call.clean().map.shape
    padded, forced = bool(call.get(5, "", True)), call.get(6, "")
    areas = [divisors(axis, n, count, padded=padded) for axis, n, count in zip(window, call.x.size, shape[-2:], strict=True)]

    def run(x: Tensor, cone: Cone) -> Tensor:
        total = torch.nn.functional.avg_pool2d(x, size, stride, divisor_override=1)
        if forced:
            return total / forced
        rows, cols = areas[0][cone.rows.start[:, None] + np.arange(cone.height)], areas[1][cone.cols.start[:, None] + np.arange(cone.width)]
        return total / torch.from_numpy(rows[:, None, :, None] * cols[:, None, None, :]).to(x)

    return windowed(call, window, ZERO, run)


def pool_window(call: Call, *, dilated: bool) -> Window:
    """A pooling operation's window."""

    def pair(value: Sequence[int], i: int) -> int:
        return value[i % len(value)]

    sizes = call.args[1]
    strides, paddings, dilations = call.get(2, "") or sizes, call.get(3, "", [0]), call.get(4, "", [1]) if dilated else [1]
    rows, cols = ([pair(sizes, i), pair(strides, i), pair(paddings, i), pair(dilations, i)] for i in (0, 1))
    return rows, cols


def adaptive_pool(call: Call) -> Result:
    """aten._adaptive_avg_pool2d(input, output_size): a mean, nothing at all, or a regular pooling."""
    shape, size = call.args[1], call.x.size
    if tuple(shape) == (1, 1):
        return reduced(call, (-2, -1))
    if call.x.clean.map.ndim != 4 or size[0] % shape[0] or size[1] % shape[1]:
        return None
    step = [before // after for before, after in zip(size, shape, strict=True)]
    rows, cols = ([n, n, 0, 1] for n in step)
    return windowed(call, (rows, cols), ZERO, lambda x, _cone: torch.nn.functional.avg_pool2d(x, step))


# ── place by place ──


def pointwise(call: Call) -> Local | None:
    """Functions of the elements at one place; constants must be the same at all places."""
    xs = [found for value in (*call.args, *call.kwargs.values()) for found in locals_of(value)]
    if any(x.size != xs[0].size or x.clean.map.ndim != xs[0].clean.map.ndim for x in xs) or not spread(call, xs[0].clean.map.ndim):
        return None
    return call.local(joint(xs), lambda cone: call.run(lambda x: x.at(cone)))


def spread(call: Call, ndim: int) -> bool:
    """Whether all constants are the same in each image of the batch and at all places."""
    constants = [value for value in (*call.args, *call.kwargs.values()) if isinstance(value, Tensor)]
    return all(all(n == 1 for n in value.shape[-2:]) and (value.ndim < ndim or value.shape[0] == 1) for value in constants)


def joint(xs: Sequence[Local]) -> Cone:
    """What any of them changes; the cone itself where it is one and the same."""
    cone = xs[0].cone
    for x in xs[1:]:
        cone = cone if x.cone is cone else cone | x.cone
    return cone


def cat(call: Call) -> Local | None:
    """Concatenation along channels: the clean surroundings in one piece, then each patch."""
    xs, dim = call.args[0], call.get(1, "dim", 0)
    if not all(isinstance(x, Local) for x in xs) or any(x.size != xs[0].size or x.clean.map.ndim != 4 for x in xs) or dim not in (1, -3):
        return None
    return call.local(joint(xs), lambda cone: torch.cat([x.at(cone) for x in xs], 1))


def batch_norm(call: Call) -> Result:
    """aten.native_batch_norm(input, weight, bias, mean, variance, training, momentum, eps), with known statistics."""
    legit = call.func.overloadpacket is aten._native_batch_norm_legit_no_training
    if (call.args[5] and not legit) or call.x.clean.map.ndim != 4:
        return None
    return call.local(call.x.cone, lambda cone: call.func(call.x.at(cone), *call.args[1:])[0]), None, None


def middle(call: Call) -> Result:
    """Views that leave the batch and the places alone."""
    ndim, name = call.x.clean.map.ndim, call.func.overloadpacket.__name__
    ndim += name == "unsqueeze"
    at = {"transpose": (1, 2), "split": (2,), "split_with_sizes": (2,)}.get(name, (1,))
    if not all(0 < call.get(i, "dim", 0) % ndim < ndim - 2 for i in at):
        return None
    found = call.run(lambda x: x.clean.map)
    if isinstance(found, Tensor):
        return call.local(call.x.cone, lambda _: call.run(patch_of))
    return [call.local(call.x.cone, lambda _, i=i: call.run(patch_of)[i], i) for i in range(len(found))]


def viewed(call: Call) -> Local | None:
    """aten.view(input, size) of the dimensions between the batch and the places."""
    x, shape = call.x, tuple(call.args[1])
    if len(shape) < 3 or shape[0] != call.count or shape[-2:] != x.size:
        return None
    call.clean(make=lambda: x.clean.map.reshape(1, *shape[1:]))
    return call.local(x.cone, lambda cone: patch_of(x).reshape(-1, *shape[1:-2], cone.height, cone.width))


def same(call: Call) -> Local:
    """Copies; patches are never written to, so one will do."""
    return call.local(call.x.cone, lambda _: patch_of(call.x))


def padded(call: Call) -> Local | None:
    """aten.constant_pad_nd(input, pad, value) around the places."""
    x, pad = call.x, call.args[1]
    if len(pad) > 4 or min(pad) < 0:
        return None
    left, _, top, _ = (*pad, 0, 0)[:4]
    shape = call.clean().map.shape
    cone = Cone(x.cone.rows.shift(top, shape[-2]), x.cone.cols.shift(left, shape[-1]))
    return call.local(cone, lambda _: patch_of(x))


def reduced(call: Call, dims: Sequence[int] | None) -> Tensor | None:
    """A mean over all places: the clean one, moved by what the patch differs."""
    x, ndim = call.x, call.x.clean.map.ndim
    if dims is None or {dim % ndim for dim in dims} != {ndim - 2, ndim - 1}:
        return None
    clean = call.clean().map
    if call.survey:
        return clean.repeat(call.count, *[1] * (clean.ndim - 1))
    change = (patch_of(x) - x.at(x.cone, clean=True)).sum((-2, -1))
    return clean + (change / math.prod(x.size)).reshape(len(change), *clean.shape[1:])


RULES: dict[Any, Callable[[Call], Result]] = {
    aten.convolution: convolution,
    aten.max_pool2d_with_indices: max_pool,
    aten.avg_pool2d: avg_pool,
    aten._adaptive_avg_pool2d: adaptive_pool,
    aten.mean: lambda call: reduced(call, call.get(1, "dim")),
    aten.native_batch_norm: batch_norm,
    aten._native_batch_norm_legit_no_training: batch_norm,
    aten.cudnn_batch_norm: batch_norm,
    aten.constant_pad_nd: padded,
    **dict.fromkeys((aten.view, aten._unsafe_view, aten.reshape), viewed),
    **dict.fromkeys((aten.clone, aten.detach, aten.alias), same),
    **dict.fromkeys((aten.select, aten.slice, aten.split, aten.split_with_sizes, aten.unbind, aten.unsqueeze, aten.transpose), middle),
}
