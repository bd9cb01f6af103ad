"""How operations move and mix places: what the elements of a result see of the image, given what those of the operands see.

`sees` answers that for one call. What an operation without a rule gives is taken to see the whole image.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from types import EllipsisType, NoneType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PixelIndices = NDArray[np.int64]

NO_PIXEL = 1 << 40  # the first pixel of an element that sees none; its last is -1

BORDER_INDEX_RULES: dict[str, Callable[[PixelIndices, int], PixelIndices]] = {
    "constant": lambda at, end: at,
    "reflect": lambda at, end: end - abs(end - abs(at)),
    "replicate": lambda at, end: at.clip(0, end),
    "circular": lambda at, end: at % (end + 1),
}


@dataclass(frozen=True, eq=False)
class ReceptiveSpan:
    """What the elements along one dimension see along one axis of the image (0 rows, 1 columns).

    Element i sees pixels first[i] to last[i]; if the image and all tensors had no edge, low + step·i to high + step·i.
    """

    axis: int
    first: PixelIndices
    last: PixelIndices
    low: int = 0
    high: int = 0
    step: int = 1

    def slide_window(
        self,
        window_count: int,
        *,
        size: int = 1,
        stride: int = 1,
        start: int = 0,
        dilation: int = 1,
        border: str = "constant",
    ) -> "ReceptiveSpan":
        """What `count` windows see, `stride` apart, the first at element `start`; each is of `size` elements `dilation` apart."""
        end = len(self.first) - 1
        at = BORDER_INDEX_RULES[border](
            start + stride * np.arange(window_count)[:, None] + dilation * np.arange(size), end
        )
        inside, near = (at >= 0) & (at <= end), at.clip(0, end)
        first, last = (
            np.where(inside, self.first[near], NO_PIXEL).min(1),
            np.where(inside, self.last[near], -1).max(1),
        )
        low, high = (
            self.low + self.step * start,
            self.high + self.step * (start + dilation * (size - 1)),
        )
        return ReceptiveSpan(self.axis, first, last, low, high, self.step * stride)

    def __or__(self, other: "ReceptiveSpan | None") -> "ReceptiveSpan | None":
        """What sums of one element of each see; None, the whole axis, unless both go along it at the same pace."""
        if other is None or (self.axis, self.step, len(self.first)) != (
            other.axis,
            other.step,
            len(other.first),
        ):
            return None
        first, last = np.minimum(self.first, other.first), np.maximum(self.last, other.last)
        return ReceptiveSpan(
            self.axis, first, last, min(self.low, other.low), max(self.high, other.high), self.step
        )

    def list_pixel_ranges(self) -> tuple[tuple[int, int], ...]:
        """Start and end (exclusive) for each element."""
        return tuple(
            (a, b + 1) if a <= b else (0, 0)
            for a, b in zip(self.first.tolist(), self.last.tolist(), strict=True)
        )


SpansByDim = Mapping[
    int, ReceptiveSpan
]  # by dimension; an axis of the image that is not there is seen whole by every element


def iterate_nested_tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list, Mapping)):
        items: Iterable[Any] = value.values() if isinstance(value, Mapping) else value
        for item in items:
            yield from iterate_nested_tensors(item)


@dataclass(frozen=True)
class TracedCall:
    """A call of a torch function; those of its tensors that depend on the image, and what they see; one of its results."""

    func: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    inputs: Sequence[tuple[Tensor, SpansByDim]]
    result: Tensor
    result_index: int = 0

    @property
    def operand(self) -> Tensor:
        """The first operand that depends on the image."""
        return self.inputs[0][0]

    @property
    def operand_spans(self) -> SpansByDim:
        """What x sees."""
        return self.inputs[0][1]

    @cached_property
    def name(self) -> str:
        """`add` for torch.add, Tensor.add_, `+`, `+=`."""
        name: str = (
            self.func.__self__.__name__ if self.func.__name__ == "__get__" else self.func.__name__
        )
        return re.sub(
            r"^[ri](?=(add|sub|mul|truediv|floordiv|pow|and|or|xor)$)",
            "",
            name.split(".", 1)[0].strip("_"),
        )

    def get_argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by place or name."""
        return self.args[position] if position < len(self.args) else self.kwargs.get(name, default)

    def normalize_dims(self, dims: int | Iterable[int] | None) -> set[int]:
        """Dimensions of x counted from 0; all if none is given."""
        return {
            dim % self.operand.ndim
            for dim in (
                range(self.operand.ndim)
                if dims is None
                else [dims]
                if isinstance(dims, int)
                else dims
            )
        }

    def drop_mixed_dims(self, mixed_dims: int | Iterable[int] | None) -> SpansByDim:
        """What x sees, when positions along these of its dimensions mix."""
        return {
            dim: span
            for dim, span in self.operand_spans.items()
            if dim not in self.normalize_dims(mixed_dims)
        }


def propagate_spans(call: TracedCall) -> SpansByDim | None:
    """What the result of a call sees; None if it doesn't depend on the image."""
    if not call.inputs or call.name.startswith("new_") or call.name.endswith("_like"):
        return None
    rule = JOIN_RULES.get(call.name) or (join_input_spans if is_elementwise(call.name) else None)
    if not rule and len(call.inputs) == 1 and call.operand is call.get_argument(0, "input"):
        rule = SPAN_RULES.get(call.name)
    found = rule(call) if rule else {}
    return {
        dim: span
        for dim, span in found.items()
        if dim in range(call.result.ndim) and len(span.first) == call.result.shape[dim]
    }


@cache
def is_elementwise(name: str) -> bool:
    """Whether an element of the result depends on the elements at the same place of the operands alone."""
    packet: Any = getattr(torch.ops.aten, name, None)
    kinds = [getattr(packet, kind) for kind in packet.overloads()] if packet else []
    return name in ELEMENTWISE_NAMES or any(torch.Tag.pointwise in kind.tags for kind in kinds)


def join_input_spans(call: TracedCall, stacked_dim: int | None = None) -> SpansByDim:
    """The union of what the operands see, which are broadcast, or stacked along a `new` dimension."""
    sights: list[SpansByDim] = []
    for x, sight in call.inputs:
        shift = call.result.ndim - x.ndim
        sights.append(
            {
                dim + (shift if stacked_dim is None else dim >= stacked_dim): span
                for dim, span in sight.items()
            }
        )
    found = sights[0]
    for other in sights[1:]:
        found = {dim: both for dim, span in found.items() if (both := span | other.get(dim))}
    return found


def slide_window_spans(call: TracedCall) -> SpansByDim:
    """Convolution and pooling."""
    conv, n = call.name.startswith("conv"), int(re.findall(r"\d", call.name)[0])

    def each(value: int | Sequence[int]) -> list[int]:
        return [value] * n if isinstance(value, int) else [*value] * (n // len(value))

    at = 3 if conv else 2  # of the stride among the arguments
    sizes = (
        list(call.get_argument(1, "weight").shape[2:])
        if conv
        else each(call.get_argument(1, "kernel_size"))
    )
    strides = each(call.get_argument(at, "stride") or (1 if conv else sizes))
    dilations = each(1 if call.name.startswith("avg") else call.get_argument(at + 2, "dilation", 1))
    padding = call.get_argument(at + 1, "padding", 0)
    if isinstance(padding, str):
        padding = [
            d * (k - 1) // 2 if padding == "same" else 0
            for d, k in zip(dilations, sizes, strict=True)
        ]
    geometry = zip(
        range(call.operand.ndim - n, call.operand.ndim),
        sizes,
        strides,
        dilations,
        each(padding),
        strict=True,
    )
    return {
        dim: call.operand_spans[dim].slide_window(
            call.result.shape[dim], size=size, stride=stride, start=-pad, dilation=dilation
        )
        for dim, size, stride, dilation, pad in geometry
        if dim in call.operand_spans
    }


def adapt_pool_spans(call: TracedCall) -> SpansByDim:
    """Adaptive pooling, where it is a regular one."""
    sizes = [
        divmod(before, after)
        for before, after in zip(call.operand.shape, call.result.shape, strict=True)
    ]
    regular = {dim: sizes[dim][0] for dim in call.operand_spans if not sizes[dim][1]}
    return {
        dim: call.operand_spans[dim].slide_window(call.result.shape[dim], size=size, stride=size)
        for dim, size in regular.items()
    }


def pad_spans(call: TracedCall) -> SpansByDim:
    """Padding and, where it is negative, cropping."""
    start = {
        call.operand.ndim - 1 - i: -left for i, left in enumerate(call.get_argument(1, "pad")[::2])
    }
    border = call.get_argument(2, "mode", "constant")
    return {
        dim: span.slide_window(call.result.shape[dim], start=start.get(dim, 0), border=border)
        for dim, span in call.operand_spans.items()
    }


def view_spans(call: TracedCall) -> SpansByDim:
    """Views, told by the strides that the operation gives a contiguous tensor."""
    probe = torch.empty(call.operand.shape, dtype=call.operand.dtype, device="meta")
    args, kwargs = (
        ((probe, *call.args[1:]), call.kwargs)
        if call.args
        else ((), {**call.kwargs, "input": probe})
    )
    view = list(iterate_nested_tensors(call.func(*args, **kwargs)))[call.result_index]
    found: dict[int, ReceptiveSpan] = {}
    for dim, span in call.operand_spans.items():
        unit, length = probe.stride(dim), len(span.first)
        along = [
            d
            for d, (stride, n) in enumerate(zip(view.stride(), view.shape, strict=True))
            if n > 1 and unit <= stride < unit * length
        ]
        if len(along) == 1 and view.stride(along[0]) % unit == 0:
            start, step, count = (
                int(view.storage_offset()) // unit % length,
                view.stride(along[0]) // unit,
                view.shape[along[0]],
            )
            if start + step * (count - 1) < length:
                found[along[0]] = span.slide_window(count, stride=step, start=start)
    return found


def index_spans(call: TracedCall) -> SpansByDim:
    """Slices; what index tensors pick may come from anywhere."""
    index: Any = call.args[1]
    plain = (int, slice, NoneType, EllipsisType)
    return (
        view_spans(call)
        if all(isinstance(i, plain) for i in (index if isinstance(index, tuple) else (index,)))
        else {}
    )


def reduce_spans(call: TracedCall) -> SpansByDim:
    """Reductions along some dimensions, and max and min of two tensors."""
    dims = call.get_argument(1, "dim")
    if isinstance(dims, Tensor) or "other" in call.kwargs:
        return join_input_spans(call)
    gone = () if call.result.ndim == call.operand.ndim else call.normalize_dims(dims)
    return {
        dim - sum(d < dim for d in gone): span for dim, span in call.drop_mixed_dims(dims).items()
    }


JOIN_RULES: dict[str, Callable[[TracedCall], SpansByDim]] = {
    "stack": lambda call: join_input_spans(call, call.get_argument(1, "dim", 0) % call.result.ndim),
    "max": reduce_spans,
    "min": reduce_spans,
}

SPAN_RULES: dict[str, Callable[[TracedCall], SpansByDim]] = {
    **{
        f"{kind}{n}d": slide_window_spans
        for kind in ("conv", "max_pool", "avg_pool")
        for n in (1, 2, 3)
    },
    **{f"adaptive_{kind}_pool{n}d": adapt_pool_spans for kind in ("avg", "max") for n in (1, 2, 3)},
    "max_pool2d_with_indices": slide_window_spans,
    "pad": pad_spans,
    "getitem": index_spans,
    **dict.fromkeys(
        (
            "permute",
            "transpose",
            "swapaxes",
            "swapdims",
            "movedim",
            "moveaxis",
            "mT",
            "squeeze",
            "unsqueeze",
        ),
        view_spans,
    ),
    **dict.fromkeys(("flatten", "unflatten", "view", "reshape", "expand"), view_spans),
    **dict.fromkeys(("chunk", "split", "tensor_split", "unbind", "select", "narrow"), view_spans),
    **dict.fromkeys(("mean", "sum", "amax", "amin", "std", "var", "logsumexp"), reduce_spans),
    **dict.fromkeys(
        ("softmax", "log_softmax"), lambda call: call.drop_mixed_dims(call.get_argument(1, "dim"))
    ),
    "glu": lambda call: call.drop_mixed_dims(call.get_argument(1, "dim", -1)),
    "normalize": lambda call: call.drop_mixed_dims(call.get_argument(2, "dim", 1)),
    **dict.fromkeys(
        ("linear", "matmul"),
        lambda call: call.drop_mixed_dims(-1) if call.result.ndim <= call.operand.ndim else {},
    ),
    **dict.fromkeys(
        ("layer_norm", "rms_norm"),
        lambda call: call.drop_mixed_dims(range(-len(call.get_argument(1, "normalized_shape")), 0)),
    ),
    "batch_norm": lambda call: (
        {} if call.get_argument(5, "training", False) else join_input_spans(call)
    ),
}

# In eval mode, and besides what torch itself tags as pointwise.
ELEMENTWISE_NAMES = {
    *(
        "cat",
        "concat",
        "copy",
        "contiguous",
        "to",
        "type",
        "type_as",
        "float",
        "double",
        "half",
        "bfloat16",
        "cpu",
        "cuda",
        "detach",
    ),
    *(
        "data",
        "invert",
        "and",
        "or",
        "xor",
        "truediv",
        "floordiv",
        "prelu",
        "hardswish",
        "softsign",
        "log_sigmoid",
        "logsigmoid",
    ),
    *(
        "dropout",
        "dropout1d",
        "dropout2d",
        "dropout3d",
        "alpha_dropout",
        "feature_dropout",
        "feature_alpha_dropout",
    ),
    *("tanhshrink", "expit", "local_response_norm", "channel_shuffle"),
}
