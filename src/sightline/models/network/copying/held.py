"""What an object holds, however deep: a search for modules, tensors and running threads."""

import gc
import threading
from collections.abc import Iterator
from concurrent.futures import Executor
from multiprocessing.process import BaseProcess
from types import FrameType, FunctionType, TracebackType
from typing import Any

from torch import Tensor, nn

from sightline.models.network.copying.functions import list_function_values
from sightline.models.network.copying.values import is_immutable

_RUNNING_CLASSES = (threading.Thread, Executor, BaseProcess)


def iterate_held_values(value: object) -> Iterator[object]:
    """A value and all that it holds, without what modules and tensors hold."""
    visited: set[int] = set()
    pending = [value]
    while pending:
        held = pending.pop()
        if id(held) in visited or is_immutable(held):
            continue
        visited.add(id(held))
        yield held
        if isinstance(held, FunctionType):
            pending += list_function_values(held)
        elif not isinstance(held, (nn.Module, Tensor, FrameType, TracebackType)):
            # Also sees what iterators, generators and objects with slots hold.
            pending += gc.get_referents(held)


def holds_module(value: object) -> bool:
    """Whether a module can be reached through a value."""
    return any(isinstance(held, nn.Module) for held in iterate_held_values(value))


def holds_network_part(value: object) -> bool:
    """Whether a module or a tensor can be reached through a value."""
    return any(isinstance(held, (nn.Module, Tensor)) for held in iterate_held_values(value))


def is_running(value: object) -> bool:
    """Whether a value is a thread, a process or a pool of them."""
    return isinstance(value, _RUNNING_CLASSES)


def is_served_by_thread(value: Any) -> bool:
    """Whether a thread, a process or a pool is an attribute of a value that is no module's part."""
    attributes = getattr(value, "__dict__", {}).values()
    return any(map(is_running, attributes)) and not holds_network_part(value)
