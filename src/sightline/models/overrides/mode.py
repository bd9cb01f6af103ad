"""The bases of the modes that replace torch functions, or watch operations, in a network."""

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from threading import local
from typing import Any, Self

import torch
from torch.overrides import TorchFunctionMode


class _SuspensionState(local):
    """How many suspensions surround the code that runs; none at the start of every thread."""

    depth = 0


_STATE = _SuspensionState()


class OverrideMode(TorchFunctionMode):
    """Context in which `run_function` replaces every call of a torch function, whoever makes it."""

    def is_suspended(self) -> bool:
        """Whether calls are left alone now."""
        return _STATE.depth > 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if self.is_suspended():
            return func(*args, **kwargs)
        return self.run_function(func, args, kwargs)

    def run_function(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Returns what `func(*args, **kwargs)` gives in this context. The mode is off meanwhile."""
        raise NotImplementedError


class ObservingMode(OverrideMode):
    """A mode that notes what a network does, and so is suspended only by what begins inside it.

    A network that is run within a suspension is observed as any other.
    """

    entered_depth = 0

    def __enter__(self) -> Self:
        self.entered_depth = _STATE.depth
        return super().__enter__()

    def is_suspended(self) -> bool:
        """Whether calls are left alone now."""
        return _STATE.depth > self.entered_depth


def is_autocast_on() -> bool:
    """Whether a network runs under `torch.autocast` of its own."""
    return torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")


# Private, so there may be none.
_peek_transforms: Callable[[], Any] | None = getattr(
    getattr(torch._C, "_functorch", None),  # pyright: ignore[reportPrivateUsage]
    "peek_interpreter_stack",
    None,
)


def is_transformed() -> bool:
    """Whether a network runs inside its own `torch.vmap` or another transform of `torch.func`.

    Tensors are then stand-ins that are of no use outside.
    """
    return _peek_transforms is not None and _peek_transforms() is not None


@contextmanager
def suspend_overrides() -> Generator[None]:
    """Context in which no `OverrideMode` of this thread replaces anything."""
    _STATE.depth += 1
    try:
        yield
    finally:
        _STATE.depth -= 1


class DispatchContext:
    """Context in which torch hands every operation to `__torch_dispatch__`, which subclasses have.

    torch's own base class for this, `TorchDispatchMode`, imports the compiler at the first
    operation, and keeps flags that are common to all threads; two threads would leave them set.
    """

    def __enter__(self) -> Self:
        torch._C._push_on_torch_dispatch_stack(self)  # pyright: ignore[reportPrivateUsage, reportArgumentType]
        return self

    def __exit__(self, *error: object) -> None:
        torch._C._pop_torch_dispatch_stack(None)  # pyright: ignore[reportPrivateUsage]
