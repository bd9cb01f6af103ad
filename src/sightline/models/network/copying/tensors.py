"""Copies of a network's tensors: detached, frozen, tied where the original's are tied."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

# What torch raises for tensors that are not laid out in a storage of their own.
_STORAGE_ERRORS = (RuntimeError, NotImplementedError, TypeError, AttributeError)


def copy_parameter(
    parameter: nn.Parameter, memo: dict[int, Any], *, share_values: bool
) -> nn.Parameter:
    """A frozen parameter of the same class, on the same storage or on one of its own.

    `memo` is that of `copy.deepcopy`: parameters on one storage get copies on one storage.
    """
    # Inference mode's tensors can't be part of a gradient.
    if share_values and not parameter.is_inference():
        values = parameter.detach()
    elif has_repeated_memory(parameter):
        values = parameter.detach().clone()  # its values may be replaced by others
    else:
        values = copy_values(parameter, memo)
    copied = nn.Parameter(values, requires_grad=False)
    if type(copied) is not type(parameter):
        copied = copied.as_subclass(type(parameter))
    return copied


def copy_values(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    """The same values in memory of its own, out of the graph; `memo` as for `copy_parameter`."""
    detached = tensor.detach()
    if tensor.is_quantized:
        return detached.clone()
    try:
        return copy.deepcopy(detached, memo)
    except _STORAGE_ERRORS:
        return detached.clone()


def has_repeated_memory(tensor: Tensor) -> bool:
    """Whether several elements are one place in memory, as `expand` makes them.

    Such a tensor can't be written to.
    """
    if tensor.layout != torch.strided or tensor.is_nested:
        return False
    axes = zip(tensor.shape, tensor.stride(), strict=True)
    return any(length > 1 and stride == 0 for length, stride in axes)


def copy_generator(generator: torch.Generator) -> torch.Generator:
    """A generator that will give the same numbers."""
    copied = torch.Generator(device=generator.device)
    copied.set_state(generator.get_state())
    return copied
