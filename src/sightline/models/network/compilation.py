"""Runs what `torch.compile` compiles as it was written, while Sightline runs a network.

The layers inside compiled code are not seen, nor are the replaced operations made in it. What a
network holds is copied uncompiled; this is for functions that it finds elsewhere: methods that were
decorated in the class, and functions of a file.
"""

import sys
from collections.abc import Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch

from sightline.process.locks import ForkSafeLock

# Without it nothing is compiled. Importing it takes seconds.
COMPILER = "torch._dynamo"


class _EagerRuns:
    """How many runs want no compiled code now, and the setting of torch that all of them share."""

    def __init__(self) -> None:
        self.count = 0
        self.lock = ForkSafeLock()
        self.setting = ExitStack()


_RUNS = _EagerRuns()


@contextmanager
def disable_compilation() -> Generator[None]:
    """Context in which compiled functions run as they were written.

    The setting is one for all threads: the first that enters makes it, the last that leaves puts
    back what it was.
    """
    if COMPILER not in sys.modules:
        yield
        return
    with _RUNS.lock:
        if _RUNS.count == 0:
            _RUNS.setting.enter_context(_force_eager())
        _RUNS.count += 1
    try:
        yield
    finally:
        with _RUNS.lock:
            _RUNS.count -= 1
            if _RUNS.count == 0:
                _RUNS.setting.close()


def _force_eager() -> AbstractContextManager[Any]:
    return torch.compiler.set_stance("force_eager")
