"""Locks between threads that survive a fork, and what a forked process undoes at its start."""

import os
import threading
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Protocol
from weakref import WeakSet


class ResetsAfterFork(Protocol):
    """What holds a state of threads, which a forked process does not have."""

    def reset_after_fork(self) -> None:
        """Makes the object usable in a process that has only one thread of its parent's."""
        ...


_registered_objects: "WeakSet[ResetsAfterFork]" = WeakSet()


def register_for_forks(instance: ResetsAfterFork) -> None:
    """Has `instance.reset_after_fork()` called in every forked process, as long as it lives."""
    _registered_objects.add(instance)


def _reset_registered_objects() -> None:
    for instance in list(_registered_objects):
        instance.reset_after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows, which knows no fork
    os.register_at_fork(after_in_child=_reset_registered_objects)


class _HeldLocks(threading.local):
    """The locks that a thread holds through one `ForkSafeLock`, innermost last."""

    def __init__(self) -> None:
        self.stack: list[Any] = []


class ForkSafeLock:
    """A lock for `with` that is free in a forked process and in one that gets it by pickle.

    A thread that holds a lock while another thread forks does not exist in the new process, where
    nobody would release it. A `reentrant` lock can be taken again by the thread that holds it.
    """

    def __init__(self, reentrant: bool = False) -> None:
        self.reentrant = reentrant
        self._lock = self._make_lock()
        self._held_locks = _HeldLocks()
        register_for_forks(self)

    def _make_lock(self) -> Any:
        return threading.RLock() if self.reentrant else threading.Lock()

    def reset_after_fork(self) -> None:
        """Puts a free lock in the place of one that a thread of the parent may hold."""
        self._lock = self._make_lock()

    def __enter__(self) -> None:
        lock = self._lock
        lock.acquire()
        self._held_locks.stack.append(lock)

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._held_locks.stack.pop().release()

    def __reduce__(self) -> "tuple[type[ForkSafeLock], tuple[bool]]":
        return ForkSafeLock, (self.reentrant,)


class ForkSafeCleanup(ExitStack):
    """An ExitStack that is closed at once in a forked process.

    It is for what one thread changes for a while in an object that others use: in the new process
    there is no such thread to change it back.
    """

    def __init__(self) -> None:
        super().__init__()
        register_for_forks(self)

    def reset_after_fork(self) -> None:
        """Undoes everything."""
        self.close()
