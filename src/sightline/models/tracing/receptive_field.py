"""Receptive fields: the pixels a unit depends on, read off one forward pass of any network.

A function mode meets every operation, whoever calls it, and carries along what the elements of each tensor see of the
image's rows and columns (`geometry` has the rules). Behind attention, global pooling, squeeze-excitation or an operation
without a rule that is the whole image. The field is the architecture's: weights of zero and inactive units count.
"""

from collections import Counter
from collections.abc import Callable, MutableMapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from sightline.errors import SightlineError, make_out_of_range_error
from sightline.models.hooks import find_first_tensor, format_call_name
from sightline.models.model import Model
from sightline.models.overrides.onednn import PackingDisabled
from sightline.models.tracing.receptive_rules import (
    ReceptiveSpan,
    SpansByDim,
    TracedCall,
    iterate_nested_tensors,
    propagate_spans,
)


@dataclass(frozen=True)
class ReceptiveField:
    """What the units of a layer see of an image of `image` pixels; all pairs are rows, columns.

    `size` of what one sees, unclipped; `stride` from one to the next; `offset` of unit (0, 0), negative where the network pads.
    An axis that every unit sees whole has the image's size and stride 0; `whole` if both are.
    """

    size: tuple[int, int]
    stride: tuple[int, int]
    offset: tuple[int, int]
    covers_image: bool
    image_size: tuple[int, int]
    unit_ranges: tuple[tuple[tuple[int, int], ...], ...] = field(
        repr=False
    )  # start and end for each row and each column of units

    def box(self, row: int, column: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, left, bottom, right (exclusive) of what a unit sees of an image of height × width pixels.

        Exact if `image` is that large, else the clipped window. Raises SightlineError for a unit that isn't there.
        """
        (top, bottom), (left, right) = (
            self._locate_unit(0, row, height),
            self._locate_unit(1, column, width),
        )
        return top, left, bottom, right

    def window(self, row: int, column: int) -> tuple[int, int, int, int]:
        """The box unclipped: of one size for all units, it may reach beyond the image."""
        top, left = (
            start + step * i
            for start, step, i in zip(self.offset, self.stride, (row, column), strict=True)
        )
        return top, left, top + self.size[0], left + self.size[1]

    def _locate_unit(self, axis: int, unit: int, length: int) -> tuple[int, int]:
        if not self.stride[axis]:
            return 0, length
        if length != self.image_size[axis]:
            start = self.offset[axis] + self.stride[axis] * unit
            return min(max(start, 0), length), min(max(start + self.size[axis], 0), length)
        if not 0 <= unit < len(self.unit_ranges[axis]):
            raise make_out_of_range_error(
                ("row", "column")[axis], unit, 0, len(self.unit_ranges[axis]) - 1
            )
        return self.unit_ranges[axis][unit]


def receptive_fields(
    model: Model, height: int | None = None, width: int | None = None
) -> dict[str, ReceptiveField]:
    """The field of every layer with more than one place, by name, in an image of the model's own size or the one given.

    Raises SightlineError for a size that the network can't take.
    """
    return {
        name: found
        for name, found in _find_receptive_fields(model, height, width).items()
        if not name.endswith(":in")
    }


def receptive_field(
    model: Model, layer: str, height: int | None = None, width: int | None = None
) -> ReceptiveField:
    """The field of one layer (name, alias or landmark). Raises SightlineError for a layer without places."""
    name, found = model.layer(layer), _find_receptive_fields(model, height, width)
    if name not in found:
        such = [
            f"; choose a spatial one such as {other}"
            for other in found
            if not other.endswith(":in")
        ][-1:]
        raise SightlineError(f"layer {layer!r} has no places in the image{''.join(such)}")
    return found[name]


_FIELD_CACHE: MutableMapping[Model, dict[tuple[int, int], dict[str, ReceptiveField]]] = (
    WeakKeyDictionary()
)


def _find_receptive_fields(
    model: Model, height: int | None, width: int | None
) -> dict[str, ReceptiveField]:
    size = model.size if height is None else height, model.size if width is None else width
    if min(size) < 1:
        raise SightlineError(f"an image has at least 1×1 pixels; given was {size[0]}×{size[1]}")
    cached = _FIELD_CACHE.setdefault(model, {})
    if size not in cached:
        cached[size] = _measure_receptive_fields(model, *size)
    return cached[size]


class ReceptiveTrace(TorchFunctionMode):
    """Knows what tensors see while it is entered.

    That is None for what doesn't depend on the image, and everything for a tensor of unknown origin (numpy, a script, an
    extension) or one written to through another view.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.spans_by_tensor: MutableMapping[Tensor, tuple[int, SpansByDim | None]] = (
            WeakTensorKeyDictionary()
        )
        for constant in iterate_nested_tensors([vars(module) for module in network.modules()]):
            self.set_spans(constant, None)

    def set_spans(self, tensor: Tensor, spans: SpansByDim | None) -> None:
        """Sets what a tensor sees."""
        self.spans_by_tensor[tensor] = count_tensor_writes(tensor), spans

    def get_spans(self, tensor: Tensor) -> SpansByDim | None:
        """What a tensor sees."""
        when, sight = self.spans_by_tensor.get(tensor, (-1, {}))
        return sight if when == count_tensor_writes(tensor) else {}

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        given = [
            (tensor, self.get_spans(tensor), count_tensor_writes(tensor))
            for tensor in iterate_nested_tensors((args, kwargs))
        ]
        result = func(*args, **kwargs)
        inputs = [(tensor, sight) for tensor, sight, _ in given if sight is not None]
        for tensor, _, before in given:
            if (
                count_tensor_writes(tensor) != before
            ):  # written in place; if it is also the result, its rule overrides this
                self.set_spans(tensor, {} if inputs else None)
        for i, out in enumerate(iterate_nested_tensors(result)):
            self.set_spans(out, propagate_spans(TracedCall(func, args, kwargs, inputs, out, i)))
        return result


def count_tensor_writes(tensor: Tensor) -> int:
    """Counts the writes to a tensor's storage, through whichever view."""
    return 0 if tensor.is_inference() else tensor._version


def _measure_receptive_fields(model: Model, height: int, width: int) -> dict[str, ReceptiveField]:
    """The fields of all outputs, and of what modules are first given, as NAME:in, from one pass of a gray image."""
    found: dict[str, ReceptiveField] = {}
    calls: Counter[str] = Counter()
    trace = ReceptiveTrace(model.network)

    def look(name: str, value: Any) -> None:
        tensor = find_first_tensor(value)
        if tensor is not None and tensor.ndim == 4 and tensor.shape[-2:].numel() > 1:
            found[name] = _build_receptive_field(trace.get_spans(tensor) or {}, (height, width))

    def start(_module: nn.Module, args: tuple[Any, ...]) -> None:
        trace.set_spans(
            args[0],
            {
                2: ReceptiveSpan(0, np.arange(height), np.arange(height)),
                3: ReceptiveSpan(1, np.arange(width), np.arange(width)),
            },
        )

    def before(path: str) -> Callable[[nn.Module, Any], None]:
        return lambda _module, args: None if calls[path] else look(f"{path}:in", args)

    def after(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            look(format_call_name(path, calls[path]), output)
            calls[path] += 1

        return hook

    last = list(model.layers)[-1:]
    lock = model.lock  # keeps other threads' passes from these hooks
    with (
        lock,
        torch.inference_mode(False),
        torch.no_grad(),
        PackingDisabled(),
        trace,
        ExitStack() as undo,
    ):
        undo.callback(model.network.register_forward_pre_hook(start).remove)
        for path in {name.split(":", 1)[0] for name in model.layers}:
            undo.callback(model.module(path).register_forward_pre_hook(before(path)).remove)
            undo.callback(model.module(path).register_forward_hook(after(path)).remove)
        model.run(torch.full((1, 3, height, width), 0.5), last)
    return found


def _build_receptive_field(spans_by_dim: SpansByDim, image_size: tuple[int, int]) -> ReceptiveField:
    spans = [
        next((span for span in spans_by_dim.values() if span.axis == axis), None) for axis in (0, 1)
    ]
    sides = zip(spans, image_size, strict=True)
    facts = [
        (s.high - s.low + 1, s.step, s.low, s.list_pixel_ranges()) if s else (side, 0, 0, ())
        for s, side in sides
    ]
    size, stride, offset, seen = zip(*facts, strict=True)
    return ReceptiveField(size, stride, offset, not any(stride), image_size, seen)
