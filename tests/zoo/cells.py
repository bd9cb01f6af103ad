"""One cell of the matrix: a method on a network, and what came of it."""

import contextlib
import random
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rich.style  # noqa: F401 - draws from the global generator when it is imported
import torch
from network_snapshots import take_full_snapshot
from torch import Tensor, nn
from zoo.networks import ZooNetwork
from zoo.quick_runs import list_quick_runs

import sightline as sl
from sightline.registry.method import Method

# "fault" is a check of the result that failed; the others end before there is a result.
Outcome = Literal["ok", "refused", "fault", "traceback", "hang", "crash"]

LOADING = "load"  # the name of the first cell of each network, in the place of a method

SHOWN_FRAMES = 4
# Values whose NaN or infinity says that there is none, by method.
MAY_BE_INFINITE: Mapping[str, tuple[str, ...]] = {}


@dataclass(frozen=True)
class Cell:
    """What one method did on one network.

    Attributes:
        method: its name, or LOADING.
        reason: of a refusal its message, of anything else that is not ok what happened.
        frames: the last frames of a traceback.
        seconds: how long it took.
    """

    network: str
    method: str
    outcome: Outcome
    reason: str = ""
    frames: str = ""
    seconds: float = 0.0


class FaultError(Exception):
    """A result, the network or the process is not as it has to be."""


def load_network(entry: ZooNetwork) -> tuple[nn.Module, sl.Model]:
    """The network, seeded and in evaluation mode, and the model of it."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # libraries warn of what is their own
        network = entry.build().eval()
    return network, sl.load(network, **entry.options)


def run_network(entry: ZooNetwork, methods: Mapping[str, Method], folder: Path) -> Iterator[Cell]:
    """Loads a network and runs methods on it, one cell each; the first is of the loading."""
    loaded: list[tuple[nn.Module, sl.Model]] = []

    def load() -> None:
        loaded.append(load_network(entry))

    yield run_cell(entry.name, LOADING, load, draws_numbers=True)
    if not loaded:
        return
    network, model = loaded[0]
    for method in methods.values():
        work = partial(run_method, method, model, folder)
        yield run_cell(entry.name, method.name, work, network, entry.draws_numbers)


def run_cell(
    network_name: str,
    method_name: str,
    work: Callable[[], None],
    network: nn.Module | None = None,
    draws_numbers: bool = False,
) -> Cell:
    """Does the work and tells what came of it; nothing that it raises gets out.

    `draws_numbers` says that the work may move the random generators.
    """
    start = time.perf_counter()

    def make_cell(outcome: Outcome, reason: str = "", frames: str = "") -> Cell:
        seconds = round(time.perf_counter() - start, 3)
        return Cell(network_name, method_name, outcome, reason, frames, seconds)

    try:
        with check_unchanged(network, draws_numbers):
            work()
    except sl.SightlineError as error:
        return make_cell("refused", str(error))
    except FaultError as error:
        return make_cell("fault", str(error))
    except Exception as error:  # noqa: BLE001 - to find these is what the matrix is for
        frames = traceback.extract_tb(error.__traceback__)[-SHOWN_FRAMES:]
        places = [f"{Path(item.filename).name}:{item.lineno} {item.name}" for item in frames]
        reason = f"{type(error).__name__}: {error}".split("\n", maxsplit=1)[0]
        return make_cell("traceback", reason, " > ".join(places))
    return make_cell("ok")


@contextlib.contextmanager
def check_unchanged(network: nn.Module | None, draws_numbers: bool) -> Iterator[None]:
    """Raises FaultError where the block changes the network or the state of the process.

    Whatever the block itself raises goes before, but for a refusal.
    """
    snapshot = take_full_snapshot(network)
    state = read_global_state()
    refusal: sl.SightlineError | None = None
    try:
        yield
    except sl.SightlineError as error:
        refusal = error
    changed = [
        name
        for name, value in read_global_state().items()
        if value != state[name] and not (draws_numbers and "generator" in name)
    ]
    if changed:
        raise FaultError(f"changes the process: {', '.join(changed)}")
    if take_full_snapshot(network) != snapshot:
        raise FaultError("changes the network")
    if refusal is not None:
        raise refusal


def read_global_state() -> dict[str, Any]:
    """What a method must leave as it was, in the process that calls it."""
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": str(torch.get_default_device()),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "number of threads": torch.get_num_threads(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "torch generator": torch.get_rng_state().numpy().tobytes(),
        "numpy generator": np.random.get_state()[1].tobytes(),  # type: ignore[union-attr]
        "python generator": random.getstate(),
    }


def run_method(method: Method, model: sl.Model, folder: Path) -> None:
    """Runs a method shortly. Raises FaultError for a result that is none."""
    subject: list[Any] = []
    if method.subject == "image":
        subject = [make_image(model)]
    elif method.subject == "objective":
        subject = [""]
    for parameters in list_quick_runs(method, model, folder):
        check_result(method.name, method.function(model, *subject, **parameters))


def make_image(model: sl.Model) -> Tensor:
    """A smooth random image of the model's own size and channels."""
    coarse = torch.rand(
        1, model.channels, 5, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float32
    )
    image = nn.functional.interpolate(
        coarse, size=tuple(model.image_size), mode="bicubic", align_corners=False
    )
    return image.clamp(0, 1)


def check_result(method_name: str, result: sl.Result) -> None:
    """Raises FaultError where pictures are none, or a value is not finite."""
    if not result.panels:
        raise FaultError("gives no picture")
    for name, panel in result.panels.items():
        if panel.ndim != 4 or panel.shape[:2] != (1, 3) or panel.dtype != torch.float32:
            raise FaultError(f"the picture {name} is {panel.dtype}, {tuple(panel.shape)}")
        if not bool(((panel >= 0) & (panel <= 1)).all()):
            raise FaultError(f"the picture {name} leaves [0, 1]")
    for name, value in result.values.items():
        if name not in MAY_BE_INFINITE.get(method_name, ()) and not is_finite(value):
            raise FaultError(f"values[{name!r}] is not finite")


def is_finite(value: Any) -> bool:
    """Whether all numbers that a value holds are finite."""
    if isinstance(value, Tensor):
        return bool(value.isfinite().all())
    if isinstance(value, float):
        return bool(np.isfinite(value))
    if isinstance(value, Mapping):
        return all(is_finite(item) for item in value.values())
    if isinstance(value, list | tuple):
        return all(is_finite(item) for item in value)
    return True
