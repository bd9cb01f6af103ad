"""Receptive fields: the pixels that a unit depends on, found in one forward pass of any network.

A function mode meets every operation, whoever calls it, and carries along which rows and columns of
the image the elements of each tensor see (`receptive_rules`). Behind attention, global pooling,
squeeze-and-excitation or an operation without a rule that is the whole image. The field is the
architecture's: weights of zero and inactive units count.
"""

from collections.abc import MutableMapping
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
from sightline.models.layers.capture import Capture, find_first_tensor
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
    """What the units of a layer see of an image. All pairs are (rows, columns), in pixels.

    Attributes:
        size: of what one unit sees, not clipped to the image.
        stride: from one unit to the next.
        offset: first row and column of unit (0, 0), negative where the network pads.
        covers_image: whether every unit sees the whole image.
        image_size: of the image.
        unit_ranges: for each axis the start and end of what each row or column of units sees.

    An axis that every unit sees whole has the image's size, and stride 0.
    """

    size: tuple[int, int]
    stride: tuple[int, int]
    offset: tuple[int, int]
    covers_image: bool
    image_size: tuple[int, int]
    unit_ranges: tuple[tuple[tuple[int, int], ...], ...] = field(repr=False)

    def box(self, row: int, column: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, left, bottom, right (exclusive) of what a unit sees of a height × width image.

        Exact if the field was found for an image of that size, else the clipped window. Raises
        SightlineError for a unit that does not exist.
        """
        top, bottom = self._locate_unit(0, row, height)
        left, right = self._locate_unit(1, column, width)
        return top, left, bottom, right

    def window(self, row: int, column: int) -> tuple[int, int, int, int]:
        """The box, not clipped: of one size for all units, it may reach beyond the image."""
        top = self.offset[0] + self.stride[0] * row
        left = self.offset[1] + self.stride[1] * column
        return top, left, top + self.size[0], left + self.size[1]

    def _locate_unit(self, axis: int, unit: int, length: int) -> tuple[int, int]:
        """Start and end of what a unit sees along one axis."""
        if not self.stride[axis]:
            return 0, length
        if length != self.image_size[axis]:
            start = self.offset[axis] + self.stride[axis] * unit
            end = start + self.size[axis]
            return min(max(start, 0), length), min(max(end, 0), length)
        ranges = self.unit_ranges[axis]
        if not 0 <= unit < len(ranges):
            axis_name = ("row", "column")[axis]
            raise make_out_of_range_error(axis_name, unit, 0, len(ranges) - 1)
        return ranges[unit]


def receptive_fields(
    model: Model, height: int | None = None, width: int | None = None
) -> dict[str, ReceptiveField]:
    """The fields of all layers with more than one position, by name.

    In an image of the network's own size, or of the given one. Raises SightlineError for a size
    that the network can't take.
    """
    fields = _find_receptive_fields(model, height, width)
    return {name: field for name, field in fields.items() if not name.endswith(":in")}


def receptive_field(
    model: Model, layer: str, height: int | None = None, width: int | None = None
) -> ReceptiveField:
    """The field of one layer, by name, alias or landmark.

    Raises SightlineError for a layer without positions in the image.
    """
    name = model.layer(layer)
    fields = _find_receptive_fields(model, height, width)
    if name in fields:
        return fields[name]
    spatial_layers = [other for other in fields if not other.endswith(":in")]
    hint = f"; choose a spatial one such as {spatial_layers[-1]}" if spatial_layers else ""
    raise SightlineError(f"layer {layer!r} has no positions in the image{hint}")


_FIELD_CACHE: MutableMapping[Model, dict[tuple[int, int], dict[str, ReceptiveField]]] = (
    WeakKeyDictionary()
)


def _find_receptive_fields(
    model: Model, height: int | None, width: int | None
) -> dict[str, ReceptiveField]:
    """The fields of all layers' outputs, and of their inputs as NAME:in, measured once."""
    model = model.intact
    rows = model.image_size[0] if height is None else height
    columns = model.image_size[1] if width is None else width
    if min(rows, columns) < 1:
        raise SightlineError(f"an image has at least 1×1 pixels; given was {rows}×{columns}")
    size = (rows, columns)
    fields_by_size = _FIELD_CACHE.setdefault(model, {})
    if size not in fields_by_size:
        fields_by_size[size] = _measure_receptive_fields(model, rows, columns)
    return fields_by_size[size]


class ReceptiveTrace(TorchFunctionMode):
    """Knows what tensors see while it is entered.

    That is None for what does not depend on the image. It is everything (no span) for a tensor of
    unknown origin (numpy, a script, an extension), or one written to through another view.
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
        self.spans_by_tensor[tensor] = (count_tensor_writes(tensor), spans)

    def get_spans(self, tensor: Tensor) -> SpansByDim | None:
        """What a tensor sees."""
        writes, spans = self.spans_by_tensor.get(tensor, (-1, {}))
        return spans if writes == count_tensor_writes(tensor) else {}

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        arguments = list(iterate_nested_tensors((args, kwargs)))
        spans_before = [self.get_spans(tensor) for tensor in arguments]
        writes_before = [count_tensor_writes(tensor) for tensor in arguments]
        result = func(*args, **kwargs)

        inputs = [
            (tensor, spans)
            for tensor, spans in zip(arguments, spans_before, strict=True)
            if spans is not None
        ]
        for tensor, writes in zip(arguments, writes_before, strict=True):
            if count_tensor_writes(tensor) != writes:
                # Written in place. If it is also the result, its rule below overrides this.
                self.set_spans(tensor, {} if inputs else None)
        for index, output in enumerate(iterate_nested_tensors(result)):
            call = TracedCall(func, args, kwargs, inputs, output, index)
            self.set_spans(output, propagate_spans(call))
        return result


def count_tensor_writes(tensor: Tensor) -> int:
    """Counts the writes to a tensor's storage, through whichever view."""
    return 0 if tensor.is_inference() else tensor._version


class FieldCapture(Capture):
    """A forward pass that keeps the fields of all layers' outputs, and of the inputs as NAME:in."""

    def __init__(self, model: Model, trace: ReceptiveTrace, image_size: tuple[int, int]) -> None:
        names = list(model.layers)
        super().__init__(model.network, [*names, *(f"{name}:in" for name in names)])
        self.trace = trace
        self.image_size = image_size
        self.fields: dict[str, ReceptiveField] = {}

    def record_tensor(self, name: str, value: Any) -> None:
        """Builds the field of a layer; the network goes on with the layer's own tensor."""
        tensor = find_first_tensor(value)
        if tensor is not None and tensor.ndim == 4 and tensor.shape[-2:].numel() > 1:
            spans = self.trace.get_spans(tensor) or {}
            self.fields[name] = _build_receptive_field(spans, self.image_size)


def _measure_receptive_fields(model: Model, height: int, width: int) -> dict[str, ReceptiveField]:
    """The fields of all outputs, and of all inputs, from one pass of a gray image."""
    trace = ReceptiveTrace(model.network)
    rows = np.arange(height)
    columns = np.arange(width)
    image_spans = {2: ReceptiveSpan(0, rows, rows), 3: ReceptiveSpan(1, columns, columns)}
    capture = FieldCapture(model, trace, (height, width))
    blank = torch.full((1, model.channels, height, width), 0.5, device="cpu")
    # Of the image itself: what is made of it for the network may have other axes, or lie in a dict.
    trace.set_spans(blank, image_spans)
    for constant in (model.mean, model.std):
        trace.set_spans(constant, None)

    def mark_images(_module: nn.Module, args: Any, kwargs: Any) -> None:
        """Of what `preprocess` made in a way that can't be followed, its shape tells."""
        for tensor in iterate_nested_tensors((args, kwargs)):
            if tensor.ndim == 4 and trace.get_spans(tensor) == {}:
                shape = tuple(tensor.shape)
                if shape[2:] == (height, width):
                    trace.set_spans(tensor, image_spans)
                elif shape[1:3] == (height, width):
                    trace.set_spans(tensor, {1: image_spans[2], 2: image_spans[3]})

    with (
        model.lock,  # keeps other threads' passes from these hooks
        torch.inference_mode(False),
        torch.no_grad(),
        PackingDisabled(),
        trace,
        ExitStack() as hooks,
    ):
        hook = model.network.register_forward_pre_hook(mark_images, with_kwargs=True)
        hooks.callback(hook.remove)
        capture.run_forward_pass(lambda: model.run_network(blank))
    return capture.fields


def _build_receptive_field(spans_by_dim: SpansByDim, image_size: tuple[int, int]) -> ReceptiveField:
    """The field of a layer, from what its dimensions see."""
    sizes: list[int] = []
    strides: list[int] = []
    offsets: list[int] = []
    unit_ranges: list[tuple[tuple[int, int], ...]] = []
    for axis, length in enumerate(image_size):
        span = next((span for span in spans_by_dim.values() if span.axis == axis), None)
        if span is None:
            sizes.append(length)
            strides.append(0)
            offsets.append(0)
            unit_ranges.append(())
        else:
            sizes.append(span.high - span.low + 1)
            strides.append(span.step)
            offsets.append(span.low)
            unit_ranges.append(tuple(span.list_pixel_ranges()))
    return ReceptiveField(
        size=(sizes[0], sizes[1]),
        stride=(strides[0], strides[1]),
        offset=(offsets[0], offsets[1]),
        covers_image=not any(strides),
        image_size=image_size,
        unit_ranges=tuple(unit_ranges),
    )
