"""Runs activation checkpointing directly while Sightline runs a network.

A checkpointed function is run a second time during the backward pass. By then the hooks and the
replaced operations of the forward pass are gone, so that its gradients would be those of another
function, or an error. The function is therefore run once, as if it were not checkpointed.

`torch.utils.checkpoint` has no switch for this. Two of its private functions are wrapped once, when
they are first needed, and tried. A torch without them checkpoints as always; a line at debug level
says so. The wrappers act only in a thread that is inside `disable_checkpointing`.
"""

import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cache
from threading import Lock, local
from typing import Any

import torch
from torch import Tensor
from torch.utils import checkpoint as torch_checkpoint

from sightline.models.overrides.mode import suspend_overrides

logger = logging.getLogger(__name__)

# What does a checkpoint without reentrant autograd; torch 2.15 renamed it.
_GENERATOR_NAMES = (
    "_checkpoint_without_reentrant_generator_impl",
    "_checkpoint_without_reentrant_generator",
)

# What missing functions or another signature raise.
_PROBE_ERRORS = (AttributeError, TypeError, ValueError, RuntimeError)


class _CheckpointState(local):
    """Whether checkpointing is disabled; False at the start of every thread."""

    is_disabled = False


_STATE = _CheckpointState()
_INSTALL_LOCK = Lock()


@contextmanager
def disable_checkpointing() -> Generator[None]:
    """Context in which `torch.utils.checkpoint` runs functions directly, in this thread."""
    with _INSTALL_LOCK:
        _install_wrappers()
    with _set_disabled(True):
        yield


@contextmanager
def _set_disabled(is_disabled: bool) -> Generator[None]:
    previous = _STATE.is_disabled
    _STATE.is_disabled = is_disabled
    try:
        yield
    finally:
        _STATE.is_disabled = previous


@cache
def _install_wrappers() -> bool:
    """Whether both kinds of checkpoint could be wrapped and obey."""
    try:
        remove_wrappers = _wrap_checkpoints(torch_checkpoint)
    except _PROBE_ERRORS as error:
        logger.debug("checkpointing can't be disabled in this torch (%s)", error)
        return False
    try:
        # What happens to be active at the first use must not decide for the whole process.
        with suspend_overrides(), torch.inference_mode(False), torch.enable_grad():
            works = _probe_wrappers()
    except _PROBE_ERRORS as error:
        logger.debug("checkpointing can't be disabled in this torch (%s)", error)
        works = False
    if not works:
        remove_wrappers()
    return works


def _wrap_checkpoints(module: Any) -> Callable[[], None]:
    """Wraps both kinds of checkpoint. Returns a function that takes the wrappers away."""
    reentrant: Any = module.CheckpointFunction
    name = next((name for name in _GENERATOR_NAMES if hasattr(module, name)), _GENERATOR_NAMES[-1])
    make_original_generator: Callable[..., Any] = getattr(module, name)

    def apply(cls: Any, function: Callable[..., Any], preserve_rng: bool, *args: Any) -> Any:
        if _STATE.is_disabled:
            return function(*args)
        return super(reentrant, cls).apply(function, preserve_rng, *args)

    def make_generator(*args: Any, **kwargs: Any) -> Any:
        if _STATE.is_disabled:
            return _yield_once()
        return make_original_generator(*args, **kwargs)

    reentrant.apply = classmethod(apply)
    setattr(module, name, make_generator)

    def remove_wrappers() -> None:
        del reentrant.apply
        setattr(module, name, make_original_generator)

    return remove_wrappers


def _yield_once() -> Generator[None]:
    """Stands for what torch does before and after a function without reentrant autograd."""
    yield


def _probe_wrappers() -> bool:
    """Whether checkpoints of both kinds run their function once when they are disabled.

    That they run it twice otherwise is left to the tests: torch would import its compiler for it,
    which takes a second.
    """
    with _set_disabled(True):
        return all(_count_checkpoint_runs(use_reentrant) == 1 for use_reentrant in (True, False))


def _count_checkpoint_runs(use_reentrant: bool) -> int:
    """How often a checkpointed function is run by a forward and a backward pass."""
    inputs: list[Tensor] = []

    def square_input(x: Tensor) -> Tensor:
        inputs.append(x)
        return x.square()

    # What its decorator adds for torch.compile would import a second's worth of modules.
    checkpoint: Any = torch_checkpoint.checkpoint
    run_checkpoint = getattr(checkpoint, "__wrapped__", checkpoint)
    x = torch.ones(2, device="cpu", requires_grad=True)
    output = run_checkpoint(square_input, x, use_reentrant=use_reentrant)
    output.sum().backward()
    return len(inputs)
