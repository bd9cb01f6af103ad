"""How operations carry along what the elements of a tensor see of the image.

`propagate_spans` answers for one call what the elements of its result see, given what those of its
operands see. The result of an operation without a rule is taken to see the whole image.
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

# Which element stands at an index beyond the border, given the index of the last element.
BORDER_INDEX_RULES: dict[str, Callable[[PixelIndices, int], PixelIndices]] = {
    "constant": lambda index, last: index,
    "reflect": lambda index, last: last - abs(last - abs(index)),
    "replicate": lambda index, last: index.clip(0, last),
    "circular": lambda index, last: index % (last + 1),
}


@dataclass(frozen=True, eq=False)
class ReceptiveSpan:
    """What the elements along one dimension see along one axis of the image.

    Attributes:
        axis: 0 for rows, 1 for columns.
        first, last: the first and last pixel that each element sees.
        low, high, step: element i would see pixels low + step·i to high + step·i, if the image and
            all tensors had no border.
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
        """What windows see, `stride` apart, the first at element `start`.

        Each window is of `size` elements, `dilation` apart.
        """
        last_index = len(self.first) - 1
        window_starts = start + stride * np.arange(window_count)[:, None]
        indices = window_starts + dilation * np.arange(size)
        indices = BORDER_INDEX_RULES[border](indices, last_index)
        is_inside = (indices >= 0) & (indices <= last_index)
        clipped = indices.clip(0, last_index)
        first = np.where(is_inside, self.first[clipped], NO_PIXEL).min(1)
        last = np.where(is_inside, self.last[clipped], -1).max(1)
        low = self.low + self.step * start
        high = self.high + self.step * (start + dilation * (size - 1))
        return ReceptiveSpan(self.axis, first, last, low, high, self.step * stride)

    def __or__(self, other: "ReceptiveSpan | None") -> "ReceptiveSpan | None":
        """What the sum of an element of each sees.

        None (the whole axis) unless both go along the same axis with the same step.
        """
        if other is None or self.axis != other.axis or self.step != other.step:
            return None
        if len(self.first) != len(other.first):
            return None
        return ReceptiveSpan(
            self.axis,
            np.minimum(self.first, other.first),
            np.maximum(self.last, other.last),
            min(self.low, other.low),
            max(self.high, other.high),
            self.step,
        )

    def list_pixel_ranges(self) -> tuple[tuple[int, int], ...]:
        """Start and end (exclusive) for each element; (0, 0) for one that sees no pixel."""
        ranges: list[tuple[int, int]] = []
        for first, last in zip(self.first.tolist(), self.last.tolist(), strict=True):
            ranges.append((first, last + 1) if first <= last else (0, 0))
        return tuple(ranges)


# The spans of a tensor by dimension. An axis of the image without a span is seen whole by every
# element.
SpansByDim = Mapping[int, ReceptiveSpan]


def iterate_nested_tensors(value: Any, visited: frozenset[int] = frozenset()) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and dicts; `visited` are the ids of those around it."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list, Mapping)) and id(value) not in visited:
        items: Iterable[Any] = value.values() if isinstance(value, Mapping) else value
        for item in items:
            yield from iterate_nested_tensors(item, visited | {id(value)})


@dataclass(frozen=True)
class TracedCall:
    """A call of a torch function.

    Attributes:
        func, args, kwargs: the call.
        inputs: the tensors among the arguments that depend on the image, with their spans.
        result: one of the call's results.
        result_index: which one.
    """

    func: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    inputs: Sequence[tuple[Tensor, SpansByDim]]
    result: Tensor
    result_index: int = 0

    @property
    def operand(self) -> Tensor:
        """The first argument that depends on the image."""
        return self.inputs[0][0]

    @property
    def operand_spans(self) -> SpansByDim:
        """What the operand sees."""
        return self.inputs[0][1]

    @cached_property
    def name(self) -> str:
        """`add` for torch.add, Tensor.add_, `+` and `+=`."""
        is_property = self.func.__name__ == "__get__"
        name: str = self.func.__self__.__name__ if is_property else self.func.__name__
        name = name.split(".", 1)[0].strip("_")
        reflected_or_in_place = "^[ri](?=(add|sub|mul|truediv|floordiv|pow|and|or|xor)$)"
        return re.sub(reflected_or_in_place, "", name)

    def get_argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by position or name."""
        return self.args[position] if position < len(self.args) else self.kwargs.get(name, default)

    def normalize_dims(self, dims: int | Iterable[int] | None) -> set[int]:
        """Dimensions of the operand counted from 0; all of them for None."""
        if dims is None:
            dims = range(self.operand.ndim)
        elif isinstance(dims, int):
            dims = [dims]
        return {dim % self.operand.ndim for dim in dims}

    def drop_mixed_dims(self, mixed_dims: int | Iterable[int] | None) -> SpansByDim:
        """What the result sees when elements along these dimensions of the operand are mixed."""
        mixed = self.normalize_dims(mixed_dims)
        return {dim: span for dim, span in self.operand_spans.items() if dim not in mixed}


def propagate_spans(call: TracedCall) -> SpansByDim | None:
    """What the result of a call sees; None if it does not depend on the image."""
    if not call.inputs or call.name.startswith("new_") or call.name.endswith("_like"):
        return None
    rule = find_span_rule(call)
    if rule is None:
        return {}
    spans: dict[int, ReceptiveSpan] = {}
    for dim, span in rule(call).items():
        if 0 <= dim < call.result.ndim and len(span.first) == call.result.shape[dim]:
            spans[dim] = span
    return spans


def find_span_rule(call: TracedCall) -> "Callable[[TracedCall], SpansByDim] | None":
    """The rule for a call; None where there is none."""
    if call.name in JOIN_RULES:
        return JOIN_RULES[call.name]
    if is_elementwise(call.name):
        return join_input_spans
    if len(call.inputs) == 1 and call.operand is call.get_argument(0, "input"):
        return SPAN_RULES.get(call.name)
    return None


@cache
def is_elementwise(name: str) -> bool:
    """Whether each element of the result depends only on the operands at the same position."""
    if name in ELEMENTWISE_NAMES:
        return True
    packet: Any = getattr(torch.ops.aten, name, None)
    if not packet:
        return False
    overloads = [getattr(packet, overload) for overload in packet.overloads()]
    return any(torch.Tag.pointwise in overload.tags for overload in overloads)


def join_input_spans(call: TracedCall, stacked_dim: int | None = None) -> SpansByDim:
    """The union of what the operands see.

    They are broadcast, or stacked along a new dimension.
    """
    spans_by_input: list[SpansByDim] = []
    for tensor, spans in call.inputs:
        broadcast_shift = call.result.ndim - tensor.ndim
        moved: dict[int, ReceptiveSpan] = {}
        for dim, span in spans.items():
            shift = broadcast_shift if stacked_dim is None else int(dim >= stacked_dim)
            moved[dim + shift] = span
        spans_by_input.append(moved)

    joined = dict(spans_by_input[0])
    for spans in spans_by_input[1:]:
        for dim in list(joined):
            union = joined[dim] | spans.get(dim)
            if union is None:
                del joined[dim]
            else:
                joined[dim] = union
    return joined


def slide_window_spans(call: TracedCall) -> SpansByDim:
    """Convolution and pooling."""
    is_convolution = call.name.startswith("conv")
    spatial_dims = int(re.findall(r"\d", call.name)[0])

    def expand(value: int | Sequence[int]) -> list[int]:
        """One number for each spatial dimension."""
        if isinstance(value, int):
            return [value] * spatial_dims
        return [*value] * (spatial_dims // len(value))

    # The positions of stride, padding and dilation among the arguments follow one another.
    if is_convolution:
        stride_position = 3
        sizes = list(call.get_argument(1, "weight").shape[2:])
        default_strides = 1
    else:
        stride_position = 2
        sizes = expand(call.get_argument(1, "kernel_size"))
        default_strides = sizes
    strides = expand(call.get_argument(stride_position, "stride") or default_strides)
    if call.name.startswith("avg"):
        dilations = expand(1)
    else:
        dilations = expand(call.get_argument(stride_position + 2, "dilation", 1))
    padding = call.get_argument(stride_position + 1, "padding", 0)
    if padding == "same":
        paddings = [
            dilation * (size - 1) // 2 for dilation, size in zip(dilations, sizes, strict=True)
        ]
    else:
        paddings = expand(0 if padding == "valid" else padding)

    spans: dict[int, ReceptiveSpan] = {}
    first_dim = call.operand.ndim - spatial_dims
    for index in range(spatial_dims):
        dim = first_dim + index
        if dim in call.operand_spans:
            spans[dim] = call.operand_spans[dim].slide_window(
                call.result.shape[dim],
                size=sizes[index],
                stride=strides[index],
                start=-paddings[index],
                dilation=dilations[index],
            )
    return spans


def adapt_pool_spans(call: TracedCall) -> SpansByDim:
    """Adaptive pooling, where it is a regular one."""
    spans: dict[int, ReceptiveSpan] = {}
    for dim, span in call.operand_spans.items():
        size, remainder = divmod(call.operand.shape[dim], call.result.shape[dim])
        if not remainder:
            spans[dim] = span.slide_window(call.result.shape[dim], size=size, stride=size)
    return spans


def pad_spans(call: TracedCall) -> SpansByDim:
    """Padding and, where it is negative, cropping."""
    # The padding lists (before, after) from the last dimension on.
    padding_before = call.get_argument(1, "pad")[::2]
    last_dim = call.operand.ndim - 1
    start = {last_dim - index: -before for index, before in enumerate(padding_before)}
    border = call.get_argument(2, "mode", "constant")
    spans: dict[int, ReceptiveSpan] = {}
    for dim, span in call.operand_spans.items():
        spans[dim] = span.slide_window(
            call.result.shape[dim], start=start.get(dim, 0), border=border
        )
    return spans


def view_spans(call: TracedCall) -> SpansByDim:
    """Views, found by the strides that the operation gives a contiguous tensor."""
    probe = torch.empty(call.operand.shape, dtype=call.operand.dtype, device="meta")
    if call.args:
        results = call.func(probe, *call.args[1:], **call.kwargs)
    else:
        results = call.func(**{**call.kwargs, "input": probe})
    view = list(iterate_nested_tensors(results))[call.result_index]

    spans: dict[int, ReceptiveSpan] = {}
    for dim, span in call.operand_spans.items():
        unit = probe.stride(dim)
        length = len(span.first)
        # The dimensions of the view that go along this one.
        view_dims = [
            view_dim
            for view_dim, (stride, size) in enumerate(zip(view.stride(), view.shape, strict=True))
            if size > 1 and unit <= stride < unit * length
        ]
        if len(view_dims) != 1 or view.stride(view_dims[0]) % unit:
            continue
        view_dim = view_dims[0]
        start = int(view.storage_offset()) // unit % length
        step = view.stride(view_dim) // unit
        count = view.shape[view_dim]
        if start + step * (count - 1) < length:
            spans[view_dim] = span.slide_window(count, stride=step, start=start)
    return spans


def index_spans(call: TracedCall) -> SpansByDim:
    """Slices. What index tensors pick may come from anywhere."""
    index: Any = call.args[1]
    entries = index if isinstance(index, tuple) else (index,)
    if all(isinstance(entry, (int, slice, NoneType, EllipsisType)) for entry in entries):
        return view_spans(call)
    return {}


def reduce_spans(call: TracedCall) -> SpansByDim:
    """Reductions along some dimensions, and max and min of two tensors."""
    dims = call.get_argument(1, "dim")
    if isinstance(dims, Tensor) or "other" in call.kwargs:
        return join_input_spans(call)
    keeps_dims = call.result.ndim == call.operand.ndim
    removed = set[int]() if keeps_dims else call.normalize_dims(dims)
    spans: dict[int, ReceptiveSpan] = {}
    for dim, span in call.drop_mixed_dims(dims).items():
        removed_in_front = sum(removed_dim < dim for removed_dim in removed)
        spans[dim - removed_in_front] = span
    return spans


def drop_flipped_dims(call: TracedCall) -> SpansByDim:
    """`flip` leaves all but the flipped dimensions as they are."""
    flipped = call.args[1:] or (call.kwargs["dims"],)
    dims = flipped[0] if isinstance(flipped[0], (tuple, list)) else flipped
    return call.drop_mixed_dims(dims)


def drop_softmax_dim(call: TracedCall) -> SpansByDim:
    """Softmax mixes one dimension."""
    return call.drop_mixed_dims(call.get_argument(1, "dim"))


def drop_glu_dim(call: TracedCall) -> SpansByDim:
    """Gated linear units mix one dimension, by default the last."""
    return call.drop_mixed_dims(call.get_argument(1, "dim", -1))


def drop_normalized_dim(call: TracedCall) -> SpansByDim:
    """`normalize` mixes one dimension, by default that of the channels."""
    return call.drop_mixed_dims(call.get_argument(2, "dim", 1))


def drop_last_dim(call: TracedCall) -> SpansByDim:
    """Linear layers and matrix products mix the last dimension."""
    return call.drop_mixed_dims(-1) if call.result.ndim <= call.operand.ndim else {}


def drop_layer_norm_dims(call: TracedCall) -> SpansByDim:
    """Layer norm mixes its normalized dimensions, the last ones."""
    normalized_shape = call.get_argument(1, "normalized_shape")
    return call.drop_mixed_dims(range(-len(normalized_shape), 0))


def join_batch_norm_spans(call: TracedCall) -> SpansByDim:
    """Batch norm is elementwise with its running statistics."""
    return {} if call.get_argument(5, "training", False) else join_input_spans(call)


def stack_spans(call: TracedCall) -> SpansByDim:
    """Stacking along a new dimension."""
    return join_input_spans(call, call.get_argument(1, "dim", 0) % call.result.ndim)


# Rules of operations with several operands that may depend on the image.
JOIN_RULES: dict[str, Callable[[TracedCall], SpansByDim]] = {
    "stack": stack_spans,
    "max": reduce_spans,
    "min": reduce_spans,
}

SLIDING_WINDOWS = [
    f"{kind}{dims}d" for kind in ("conv", "max_pool", "avg_pool") for dims in (1, 2, 3)
]
ADAPTIVE_POOLS = [f"adaptive_{kind}_pool{dims}d" for kind in ("avg", "max") for dims in (1, 2, 3)]
VIEWS = [
    "permute",
    "transpose",
    "swapaxes",
    "swapdims",
    "movedim",
    "moveaxis",
    "mT",
    "squeeze",
    "unsqueeze",
    "flatten",
    "unflatten",
    "view",
    "reshape",
    "expand",
    "chunk",
    "split",
    "tensor_split",
    "unbind",
    "select",
    "narrow",
]
REDUCTIONS = ["mean", "sum", "amax", "amin", "std", "var", "logsumexp"]

# Rules of operations with one operand that depends on the image.
SPAN_RULES: dict[str, Callable[[TracedCall], SpansByDim]] = {
    **dict.fromkeys(SLIDING_WINDOWS, slide_window_spans),
    "max_pool2d_with_indices": slide_window_spans,
    **dict.fromkeys(ADAPTIVE_POOLS, adapt_pool_spans),
    "pad": pad_spans,
    "getitem": index_spans,
    **dict.fromkeys(VIEWS, view_spans),
    **dict.fromkeys(REDUCTIONS, reduce_spans),
    "flip": drop_flipped_dims,
    "softmax": drop_softmax_dim,
    "log_softmax": drop_softmax_dim,
    "glu": drop_glu_dim,
    "normalize": drop_normalized_dim,
    "linear": drop_last_dim,
    "matmul": drop_last_dim,
    "layer_norm": drop_layer_norm_dims,
    "rms_norm": drop_layer_norm_dims,
    "batch_norm": join_batch_norm_spans,
}

# Elementwise in evaluation mode, besides what torch itself tags as pointwise. Concatenation is
# along channels; a span along the concatenated dimension would have another length, and be dropped.
ELEMENTWISE_NAMES = {
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
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "alpha_dropout",
    "feature_dropout",
    "feature_alpha_dropout",
    "tanhshrink",
    "expit",
    "local_response_norm",
    "channel_shuffle",
}
