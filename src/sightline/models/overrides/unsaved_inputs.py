"""Layers of a frozen network that save no input for the backward pass, by public operations only.

torch's convolutions and batch norms save their input for the gradient of their weight, even where
the weight is frozen. A network that overwrites that input in place then can't be differentiated.
The gradient of the input itself needs only the input's shape.
"""

from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from sightline.models.overrides.frozen_layers import try_frozen_batch_norm
from sightline.models.overrides.mode import ObservingMode, OverrideMode, is_autocast_on

MemoryLayout = tuple[torch.Size, tuple[int, ...]]

# The layers that save their input even where their weights are frozen.
INPUT_SAVING_FUNCTIONS = (F.conv2d, F.batch_norm)


class UnsavedInputsMode(OverrideMode):
    """Context in which frozen convolutions and batch norms don't save their input.

    Dispatch modes, torch.func and forward-mode derivatives may act on what it runs. No module is
    touched.
    """

    def run_function(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """The layer without a saved input where there is one, else the function's own result."""
        if is_autocast_on():
            return func(*args, **kwargs)  # torch chooses each operation's precision
        if func is F.conv2d:
            return convolve_unsaved(*args, **kwargs)
        if func is F.batch_norm:
            output = try_frozen_batch_norm(*args, **kwargs)
            if output is not None:
                return output
        return func(*args, **kwargs)


@dataclass
class InPlaceWrites:
    """Whether a network writes to a layer's input after it, as a whole pass of it showed.

    torch can't differentiate a convolution or a batch norm whose input was overwritten.
    """

    is_known: bool = False
    found: bool = False

    @property
    def may_occur(self) -> bool:
        """Whether a layer's input may be overwritten."""
        return self.found or not self.is_known


class WriteWatchingMode(OverrideMode):
    """A mode that notes in `writes`, until it is known, whether inputs are overwritten."""

    def __init__(self, writes: InPlaceWrites) -> None:
        super().__init__()
        self.writes = writes
        # By address, and kept so that no other tensor gets it.
        self.layer_inputs: dict[int, Tensor] = {}

    def note_writes(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Notes a layer's input, and whether one is written to."""
        target = kwargs.get("out") if not args or "out" in kwargs else args[0]
        if func in INPUT_SAVING_FUNCTIONS:
            layer_input = kwargs.get("input", target)
            if isinstance(layer_input, Tensor):
                self.layer_inputs[get_address(layer_input)] = layer_input
        elif isinstance(target, Tensor) and is_in_place(func, args, kwargs):
            self.writes.found |= get_address(target) in self.layer_inputs


class WriteObserver(WriteWatchingMode, ObservingMode):
    """Context of a pass that shows whether inputs are overwritten, and changes nothing of it."""

    def run_function(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """The function's own result."""
        self.note_writes(func, args, kwargs)
        return func(*args, **kwargs)


class OwnLayersMode(WriteWatchingMode):
    """Context in which torch's own layers don't save an input that the network may overwrite.

    What they compute is the same to the bit as without it.
    """

    def run_function(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """The function's own result."""
        if not self.writes.is_known:
            self.note_writes(func, args, kwargs)
        if is_autocast_on():
            return func(*args, **kwargs)
        if func is F.conv2d:
            return convolve_unsaved(*args, **kwargs)
        if func is F.batch_norm:
            return normalize_copy(*args, **kwargs)
        return func(*args, **kwargs)


def get_address(tensor: Tensor) -> int:
    """Where the memory of a tensor begins, and of all that share it; 0 if it has none."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):
        return 0


def is_in_place(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call may write to the first tensor that it is given, or to `out`."""
    name = getattr(func, "__name__", "")
    is_named_so = name.endswith("_") and not name.endswith("__")
    # x += y is __iadd__, and `F.relu(x, True)` has its flag by position.
    is_operator = name.startswith("__i") or name in ("__setitem__", "__set__")
    has_flag = any(value is True for value in (*args, kwargs.get("inplace")))
    return is_named_so or is_operator or has_flag or kwargs.get("out") is not None


def convolve_unsaved(input: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`F.conv2d` that saves its input's shape and strides, not the input, if the weight is frozen.

    The bias and further settings are those of `F.conv2d`.
    """
    needs_input_gradient = input.requires_grad and torch.is_grad_enabled()
    if not needs_input_gradient or weight.requires_grad:
        return F.conv2d(input, weight, *args, **kwargs)

    def pack_tensor(saved: Tensor) -> Tensor | MemoryLayout:
        return (saved.shape, saved.stride()) if saved.is_set_to(input) else saved

    def unpack_tensor(packed: Tensor | MemoryLayout) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        # The values are not read. In another layout torch would convert the gradient to it.
        return weight.new_empty(0).new_empty_strided(*packed)

    with ExitStack() as stack:
        # torch.func refuses such hooks; there the convolution is torch's own.
        with suppress(RuntimeError):
            stack.enter_context(saved_tensors_hooks(pack_tensor, unpack_tensor))
        return F.conv2d(input, weight, *args, **kwargs)


def normalize_copy(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`F.batch_norm` that saves a copy of its input, where a gradient is needed.

    The settings are those of `F.batch_norm`.
    """
    if input.requires_grad and torch.is_grad_enabled():
        input = input.clone()
    return F.batch_norm(input, *args, **kwargs)
