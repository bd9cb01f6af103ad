"""What a copy of a network has in common with the original: values that nobody changes, data."""

import logging
from collections.abc import MutableMapping, MutableSequence, Set
from enum import Enum
from types import CodeType, EllipsisType, ModuleType, NoneType, NotImplementedType
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

# Only these types themselves: a class derived from them may have attributes.
_IMMUTABLE_TYPES = frozenset(
    {
        NoneType,
        EllipsisType,
        NotImplementedType,
        bool,
        int,
        float,
        complex,
        str,
        bytes,
        range,
        slice,
        property,
        CodeType,
        torch.Size,
        torch.device,
        torch.dtype,
        torch.layout,
        torch.memory_format,
        torch.qscheme,
    }
)
# A logger belongs to the process: there is one of each name.
_PROCESS_WIDE_CLASSES = (type, ModuleType, Enum, logging.Logger)

_CONTAINER_CLASSES = (
    *(dict, list, tuple, set, frozenset, bytearray, memoryview),
    *(MutableMapping, MutableSequence, Set),
    *(np.ndarray, Tensor, nn.Module),
)
_WRITING_METHODS = ("__setitem__", "append", "add")


class Copier(Protocol):
    """What the functions that copy one type of value need of the copier of the whole network."""

    memo: dict[int, Any]
    copied_globals: dict[int, dict[str, Any]]

    def copy_value(self, value: Any) -> Any:
        """The copy of any value, or the value itself where that is as good."""
        ...

    def remember_copy(self, original: Any, copied: Any) -> Any:
        """Notes which copy an original has, and returns the copy."""
        ...


def is_immutable(value: object) -> bool:
    """Whether a copy may simply have the same object, whatever the network does with it."""
    return type(value) in _IMMUTABLE_TYPES or isinstance(value, _PROCESS_WIDE_CLASSES)


def is_dataset(value: Any) -> bool:
    """Whether a value is data to read: torch's `Dataset` or `DataLoader`, or one of their kind.

    That is an object with a length and items that is no container to write to.
    """
    if isinstance(value, (Dataset, DataLoader)):
        return True
    if isinstance(value, _CONTAINER_CLASSES):
        return False
    kind = type(value)
    is_readable = hasattr(kind, "__getitem__") and hasattr(kind, "__len__")
    return is_readable and not any(hasattr(kind, name) for name in _WRITING_METHODS)
