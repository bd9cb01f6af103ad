"""The device of new tensors, which a user may have set: Sightline's own are on the CPU.

`torch.set_default_device("cuda")` is for what the user's code makes. Images, random numbers and
pictures of Sightline are made on the CPU, and go to the network's device from there.
"""

from collections.abc import Generator
from contextlib import contextmanager
from threading import local

import torch


class _UserDevice(local):
    """The device that the user has set, where another one is used now; None elsewhere."""

    device: torch.device | None = None


_STATE = _UserDevice()


@contextmanager
def make_tensors_on_cpu() -> Generator[None]:
    """Context in which new tensors are on the CPU if nothing else is said of them."""
    device = torch.get_default_device()
    if device.type == "cpu":
        yield
        return
    previous = _STATE.device
    _STATE.device = device
    try:
        with torch.device("cpu"):
            yield
    finally:
        _STATE.device = previous


@contextmanager
def use_default_device_of_user() -> Generator[None]:
    """Context for the user's own code inside `make_tensors_on_cpu`, with the device of the user."""
    if _STATE.device is None:
        yield
        return
    with _STATE.device:
        yield
