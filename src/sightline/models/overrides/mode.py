"""The base of the modes that replace torch functions while a network runs."""

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from threading import local
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _SuspensionState(local):
    """Whether replacements are suspended; False at the start of every thread."""

    suspended = False


_STATE = _SuspensionState()


class OverrideMode(TorchFunctionMode):
    """Context in which `run_function` replaces every call of a torch function, whoever makes it."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if _STATE.suspended:
            return func(*args, **kwargs)
        return self.run_function(func, args, kwargs)

    def run_function(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Returns what `func(*args, **kwargs)` gives in this context. The mode is off meanwhile."""
        raise NotImplementedError


def is_autocast_on() -> bool:
    """Whether a network runs under `torch.autocast` of its own."""
    return torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")


@contextmanager
def suspend_overrides() -> Generator[None]:
    """Context in which no `OverrideMode` of this thread replaces anything."""
    previous = _STATE.suspended
    _STATE.suspended = True
    try:
        yield
    finally:
        _STATE.suspended = previous
