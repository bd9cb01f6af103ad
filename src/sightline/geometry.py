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

Indices = NDArray[np.int64]
NOTHING = 1 << 40  # the first pixel of an element that sees none; its last is -1
BORDERS: dict[str, Callable[[Indices, int], Indices]] = {
    "constant": lambda at, end: at,
    "reflect": lambda at, end: end - abs(end - abs(at)),
    "replicate": lambda at, end: at.clip(0, end),
    "circular": lambda at, end: at % (end + 1),
}


@dataclass(frozen=True, eq=False)
class Span:
    """What the elements along one dimension see along one axis of the image (0 rows, 1 columns).

    Element i sees pixels first[i] to last[i]; if the image and all tensors had no edge, low + step·i to high + step·i.
    """

    axis: int
    first: Indices
    last: Indices
    low: int = 0
    high: int = 0
    step: int = 1

    def slide(self, count: int, *, size: int = 1, stride: int = 1, start: int = 0, dilation: int = 1, border: str = "constant") -> "Span":
        """What `count` windows see, `stride` apart, the first at element `start`; each is of `size` elements `dilation` apart."""
        end = len(self.first) - 1
        at = BORDERS[border](start + stride * np.arange(count)[:, None] + dilation * np.arange(size), end)
        inside, near = (at >= 0) & (at <= end), at.clip(0, end)
        first, last = np.where(inside, self.first[near], NOTHING).min(1), np.where(inside, self.last[near], -1).max(1)
        low, high = self.low + self.step * start, self.high + self.step * (start + dilation * (size - 1))
        return Span(self.axis, first, last, low, high, self.step * stride)

    def __or__(self, other: "Span | None") -> "Span | None":
        """What sums of one element of each see; None, the whole axis, unless both go along it at the same pace."""
        if other is None or (self.axis, self.step, len(self.first)) != (other.axis, other.step, len(other.first)):
            return None
        first, last = np.minimum(self.first, other.first), np.maximum(self.last, other.last)
        return Span(self.axis, first, last, min(self.low, other.low), max(self.high, other.high), self.step)

    def pixels(self) -> tuple[tuple[int, int], ...]:
        """Start and end (exclusive) for each element."""
        return tuple((a, b + 1) if a <= b else (0, 0) for a, b in zip(self.first.tolist(), self.last.tolist(), strict=True))


Sight = Mapping[int, Span]  # by dimension; an axis of the image that is not there is seen whole by every element


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list, Mapping)):
        items: Iterable[Any] = value.values() if isinstance(value, Mapping) else value
        for item in items:
            yield from tensors(item)


@dataclass(frozen=True)
class Call:
    """A call of a torch function; those of its tensors that depend on the image, and what they see; one of its results."""

    func: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    inputs: Sequence[tuple[Tensor, Sight]]
    out: Tensor
    index: int = 0

    @property
    def x(self) -> Tensor:
        """The first operand that depends on the image."""
        return self.inputs[0][0]

    @property
    def sight(self) -> Sight:
        """What x sees."""
        return self.inputs[0][1]

    @cached_property
    def name(self) -> str:
        """`add` for torch.add, Tensor.add_, `+`, `+=`."""
        name: str = self.func.__self__.__name__ if self.func.__name__ == "__get__" else self.func.__name__
        return re.sub(r"^[ri](?=(add|sub|mul|truediv|floordiv|pow|and|or|xor)$)", "", name.split(".", 1)[0].strip("_"))

    def get(self, at: int, name: str, default: Any = None) -> Any:
        """An argument by place or name."""
        return self.args[at] if at < len(self.args) else self.kwargs.get(name, default)

    def dims(self, given: int | Iterable[int] | None) -> set[int]:
        """Dimensions of x counted from 0; all if none is given."""
        return {dim % self.x.ndim for dim in (range(self.x.ndim) if given is None else [given] if isinstance(given, int) else given)}

    def without(self, given: int | Iterable[int] | None) -> Sight:
        """What x sees, when positions along these of its dimensions mix."""
        return {dim: span for dim, span in self.sight.items() if dim not in self.dims(given)}


def sees(call: Call) -> Sight | None:
    """What the result of a call sees; None if it doesn't depend on the image."""
    if not call.inputs or call.name.startswith("new_") or call.name.endswith("_like"):
        return None
    rule = JOINS.get(call.name) or (joined if elementwise(call.name) else None)
    if not rule and len(call.inputs) == 1 and call.x is call.get(0, "input"):
        rule = RULES.get(call.name)
    found = rule(call) if rule else {}
    return {dim: span for dim, span in found.items() if dim in range(call.out.ndim) and len(span.first) == call.out.shape[dim]}


@cache
def elementwise(name: str) -> bool:
    """Whether an element of the result depends on the elements at the same place of the operands alone."""
    packet: Any = getattr(torch.ops.aten, name, None)
    kinds = [getattr(packet, kind) for kind in packet.overloads()] if packet else []
    return name in ELEMENTWISE or any(torch.Tag.pointwise in kind.tags for kind in kinds)


def joined(call: Call, new: int | None = None) -> Sight:
    """The union of what the operands see, which are broadcast, or stacked along a `new` dimension."""
    sights: list[Sight] = []
    for x, sight in call.inputs:
        shift = call.out.ndim - x.ndim
        sights.append({dim + (shift if new is None else dim >= new): span for dim, span in sight.items()})
    found = sights[0]
    for other in sights[1:]:
        found = {dim: both for dim, span in found.items() if (both := span | other.get(dim))}
    return found


def windowed(call: Call) -> Sight:
    """Convolution and pooling."""
    conv, n = call.name.startswith("conv"), int(re.findall(r"\d", call.name)[0])

    def each(value: int | Sequence[int]) -> list[int]:
        return [value] * n if isinstance(value, int) else [*value] * (n // len(value))

    at = 3 if conv else 2  # of the stride among the arguments
    sizes = list(call.get(1, "weight").shape[2:]) if conv else each(call.get(1, "kernel_size"))
    strides = each(call.get(at, "stride") or (1 if conv else sizes))
    dilations = each(1 if call.name.startswith("avg") else call.get(at + 2, "dilation", 1))
    padding = call.get(at + 1, "padding", 0)
    if isinstance(padding, str):
        padding = [d * (k - 1) // 2 if padding == "same" else 0 for d, k in zip(dilations, sizes, strict=True)]
    geometry = zip(range(call.x.ndim - n, call.x.ndim), sizes, strides, dilations, each(padding), strict=True)
    return {
        dim: call.sight[dim].slide(call.out.shape[dim], size=size, stride=stride, start=-pad, dilation=dilation)
        for dim, size, stride, dilation, pad in geometry
        if dim in call.sight
    }


def adaptive(call: Call) -> Sight:
    """Adaptive pooling, where it is a regular one."""
    sizes = [divmod(before, after) for before, after in zip(call.x.shape, call.out.shape, strict=True)]
    regular = {dim: sizes[dim][0] for dim in call.sight if not sizes[dim][1]}
    return {dim: call.sight[dim].slide(call.out.shape[dim], size=size, stride=size) for dim, size in regular.items()}


def padded(call: Call) -> Sight:
    """Padding and, where it is negative, cropping."""
    start = {call.x.ndim - 1 - i: -left for i, left in enumerate(call.get(1, "pad")[::2])}
    border = call.get(2, "mode", "constant")
    return {dim: span.slide(call.out.shape[dim], start=start.get(dim, 0), border=border) for dim, span in call.sight.items()}


def viewed(call: Call) -> Sight:
    """Views, told by the strides that the operation gives a contiguous tensor."""
    probe = torch.empty(call.x.shape, dtype=call.x.dtype, device="meta")
    args, kwargs = ((probe, *call.args[1:]), call.kwargs) if call.args else ((), {**call.kwargs, "input": probe})
    view = list(tensors(call.func(*args, **kwargs)))[call.index]
    found: dict[int, Span] = {}
    for dim, span in call.sight.items():
        unit, length = probe.stride(dim), len(span.first)
        along = [d for d, (stride, n) in enumerate(zip(view.stride(), view.shape, strict=True)) if n > 1 and unit <= stride < unit * length]
        if len(along) == 1 and view.stride(along[0]) % unit == 0:
            start, step, count = int(view.storage_offset()) // unit % length, view.stride(along[0]) // unit, view.shape[along[0]]
            if start + step * (count - 1) < length:
                found[along[0]] = span.slide(count, stride=step, start=start)
    return found


def indexed(call: Call) -> Sight:
    """Slices; what index tensors pick may come from anywhere."""
    index: Any = call.args[1]
    plain = (int, slice, NoneType, EllipsisType)
    return viewed(call) if all(isinstance(i, plain) for i in (index if isinstance(index, tuple) else (index,))) else {}


def reduced(call: Call) -> Sight:
    """Reductions along some dimensions, and max and min of two tensors."""
    dims = call.get(1, "dim")
    if isinstance(dims, Tensor) or "other" in call.kwargs:
        return joined(call)
    gone = () if call.out.ndim == call.x.ndim else call.dims(dims)
    return {dim - sum(d < dim for d in gone): span for dim, span in call.without(dims).items()}


JOINS: dict[str, Callable[[Call], Sight]] = {
    "stack": lambda call: joined(call, call.get(1, "dim", 0) % call.out.ndim),
    "max": reduced,
    "min": reduced,
}
RULES: dict[str, Callable[[Call], Sight]] = {
    **{f"{kind}{n}d": windowed for kind in ("conv", "max_pool", "avg_pool") for n in (1, 2, 3)},
    **{f"adaptive_{kind}_pool{n}d": adaptive for kind in ("avg", "max") for n in (1, 2, 3)},
    "max_pool2d_with_indices": windowed,
    "pad": padded,
    "getitem": indexed,
    **dict.fromkeys(("permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "mT", "squeeze", "unsqueeze"), viewed),
    **dict.fromkeys(("flatten", "unflatten", "view", "reshape", "expand"), viewed),
    **dict.fromkeys(("chunk", "split", "tensor_split", "unbind", "select", "narrow"), viewed),
    **dict.fromkeys(("mean", "sum", "amax", "amin", "std", "var", "logsumexp"), reduced),
    **dict.fromkeys(("softmax", "log_softmax"), lambda call: call.without(call.get(1, "dim"))),
    "glu": lambda call: call.without(call.get(1, "dim", -1)),
    "normalize": lambda call: call.without(call.get(2, "dim", 1)),
    **dict.fromkeys(("linear", "matmul"), lambda call: call.without(-1) if call.out.ndim <= call.x.ndim else {}),
    **dict.fromkeys(("layer_norm", "rms_norm"), lambda call: call.without(range(-len(call.get(1, "normalized_shape")), 0))),
    "batch_norm": lambda call: {} if call.get(5, "training", False) else joined(call),
}
# In eval mode, and besides what torch itself tags as pointwise.
ELEMENTWISE = {
    *("cat", "concat", "copy", "contiguous", "to", "type", "type_as", "float", "double", "half", "bfloat16", "cpu", "cuda", "detach"),
    *("data", "invert", "and", "or", "xor", "truediv", "floordiv", "prelu", "hardswish", "softsign", "log_sigmoid", "logsigmoid"),
    *("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout", "feature_alpha_dropout"),
    *("tanhshrink", "expit", "local_response_norm", "channel_shuffle"),
}
