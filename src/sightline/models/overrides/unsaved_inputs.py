"""Layers of a frozen network that save no input for the backward pass, by public operations only.

torch's convolutions and batch norms save their input for the gradient of their weight, even where
the weight is frozen. A network that overwrites that input in place then can't be differentiated.
The gradient of the input itself needs only the input's shape.
"""

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from sightline.models.overrides.frozen_layers import try_frozen_batch_norm
from sightline.models.overrides.mode import (
    ObservingMode,
    OverrideMode,
    is_autocast_on,
    is_transformed,
)

MemoryLayout = tuple[torch.Size, tuple[int, ...]]

T = TypeVar("T")

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


@dataclass(frozen=True)
class Packed(Generic[T]):
    """What is saved in place of a tensor."""

    content: T


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
    """A mode that finds out, until it is known, whether inputs are overwritten."""

    def __init__(self, writes: InPlaceWrites) -> None:
        super().__init__()
        self.writes = writes
        # Each with the number of writes to it so far. torch counts them, whoever makes them.
        self.layer_inputs: list[tuple[Tensor, int]] = []

    def note_input(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Notes the input of a layer that saves it."""
        if func not in INPUT_SAVING_FUNCTIONS or is_transformed():
            return
        layer_input = args[0] if args else kwargs.get("input")
        if isinstance(layer_input, Tensor) and not layer_input.is_inference():
            self.layer_inputs.append((layer_input, layer_input._version))

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.writes.found |= any(
            layer_input._version != version for layer_input, version in self.layer_inputs
        )
        self.layer_inputs.clear()


class WriteObserver(WriteWatchingMode, ObservingMode):
    """Context of a pass that shows whether inputs are overwritten, and changes nothing of it."""

    def run_function(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """The function's own result."""
        self.note_input(func, args, kwargs)
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
            self.note_input(func, args, kwargs)
        if is_autocast_on():
            return func(*args, **kwargs)
        if func is F.conv2d:
            return convolve_unsaved(*args, **kwargs)
        if func is F.batch_norm:
            return normalize_copied(*args, **kwargs)
        return func(*args, **kwargs)


def convolve_unsaved(input: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`F.conv2d` that saves its input's shape and strides, not the input, if the weight is frozen.

    The bias and further settings are those of `F.conv2d`.
    """
    needs_input_gradient = input.requires_grad and torch.is_grad_enabled()
    if not needs_input_gradient or weight.requires_grad or is_transformed():
        return F.conv2d(input, weight, *args, **kwargs)
    if weight.is_set_to(input):  # and so is saved, too
        return F.conv2d(input, weight, *args, **kwargs)

    def note_layout(saved: Tensor) -> MemoryLayout:
        return saved.shape, saved.stride()

    def make_layout(layout: MemoryLayout) -> Tensor:
        # The values are not read. In another layout torch would convert the gradient to it.
        return weight.new_empty(0).new_empty_strided(*layout)

    with replace_saved(input, note_layout, make_layout):
        return F.conv2d(input, weight, *args, **kwargs)


def normalize_copied(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`F.batch_norm` that saves a copy of its input, where a gradient is needed.

    The settings are those of `F.batch_norm`.
    """
    if not input.requires_grad or not torch.is_grad_enabled():
        return F.batch_norm(input, *args, **kwargs)
    with replace_saved(input, copy_with_strides, lambda copied: copied):
        return F.batch_norm(input, *args, **kwargs)


def copy_with_strides(tensor: Tensor) -> Tensor:
    """A copy that lies in memory as the tensor does, whose kernels torch chooses by that."""
    memory = tensor.detach().untyped_storage().clone()
    geometry = (tensor.storage_offset(), tensor.size(), tensor.stride())
    return tensor.detach().new_empty(0).set_(memory, *geometry)


@contextmanager
def replace_saved(
    input: Tensor, pack: Callable[[Tensor], T], unpack: Callable[[T], Tensor]
) -> Generator[None]:
    """Context in which operations save `pack(input)` in place of their input."""

    def pack_tensor(saved: Tensor) -> Tensor | Packed[T]:
        return Packed(pack(saved)) if saved.is_set_to(input) else saved

    def unpack_tensor(saved: Tensor | Packed[T]) -> Tensor:
        return unpack(saved.content) if isinstance(saved, Packed) else saved

    with ExitStack() as stack:
        # torch.func refuses such hooks; there the operation is torch's own.
        with suppress(RuntimeError):
            stack.enter_context(saved_tensors_hooks(pack_tensor, unpack_tensor))
        yield
