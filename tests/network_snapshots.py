"""A snapshot of all that a network holds, to see that nothing of it changes."""

import types
from typing import Any

import numpy as np
import torch
from torch import Tensor


def take_full_snapshot(value: Any, visited: set[int] | None = None) -> Any:
    """What a network holds, to compare with `==`: bits, identities, hooks, modes, attributes."""
    visited = set() if visited is None else visited
    if isinstance(value, Tensor):
        return snapshot_tensor(value)
    if isinstance(value, (int, float, str, bytes, type(None), type)):
        return value
    if id(value) in visited:
        return id(value)
    visited.add(id(value))
    if isinstance(value, torch.Generator):
        return (id(value), value.get_state().tolist())
    if isinstance(value, np.ndarray):
        return (id(value), value.tobytes())
    contents: list[Any] = []
    if isinstance(value, dict):
        contents += [take_full_snapshot(part, visited) for item in value.items() for part in item]
    elif isinstance(value, (list, tuple, set)):
        contents += [take_full_snapshot(item, visited) for item in value]
    elif isinstance(value, types.FunctionType):
        cells = value.__closure__ or ()
        contents += [take_full_snapshot(cell.cell_contents, visited) for cell in cells]
    if not isinstance(value, types.ModuleType):
        contents.append(take_full_snapshot(getattr(value, "__dict__", None), visited))
    return (id(value), contents)


def snapshot_tensor(tensor: Tensor) -> tuple[Any, ...]:
    """A tensor's identity, memory and values to the bit."""
    values = tensor.detach()
    values = values.int_repr() if values.is_quantized else values
    bits = values.contiguous().view(-1).view(torch.uint8)
    content = bits.cpu().numpy().tobytes()
    return (id(tensor), tensor.data_ptr(), tensor.requires_grad, tensor._version, content)
