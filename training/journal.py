"""Checkpoints that hold their log: killed at any moment, no row is lost and none is there twice.

What is no whole checkpoint of the same run is refused in one line.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor

from sightline.errors import SightlineError, get_first_error_line
from sightline.images.files import replace_atomically, write_text
from sightline.models.weights.file_content import read_file_content

LogRow = Mapping[str, float]


class HasState(Protocol):
    """A network or an optimizer."""

    def load_state_dict(self, state_dict: Any, /) -> Any:
        """Takes over a state."""
        ...


def run_script(main: Callable[[], None]) -> None:
    """Runs a script. What it refuses is shown in one line, and the exit status is 1."""
    try:
        main()
    except SightlineError as error:
        sys.exit(str(error))


# ── a run's own checkpoint ──


def save_checkpoint(
    path: Path, state: Mapping[str, Any], log_path: Path, rows: Sequence[LogRow]
) -> None:
    """Writes the log as JSON lines, then the checkpoint with its rows; each whole or not at all."""
    write_log(log_path, rows)
    with replace_atomically(path) as temporary:
        torch.save({**state, "rows": list(rows)}, temporary)


def load_checkpoint(
    path: Path, log_path: Path, parts: Mapping[str, HasState], counter: str
) -> tuple[int, list[dict[str, float]]]:
    """Fills networks and optimizers from a checkpoint, and writes its rows as the log.

    The log may be ahead of the checkpoint. `parts` and `counter` are by their names in it. Returns
    the count of what is done and the rows. Raises SightlineError for a file that is cut or foreign;
    then the log is as it was.
    """
    state = _read_state(path)
    for name, part in parts.items():
        try:
            part.load_state_dict(state[name])
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise _make_damage_error(path, f"{name}: {get_first_error_line(error)}") from error
        if isinstance(part, torch.optim.Optimizer) and not _fits_its_parameters(part):
            raise _make_damage_error(path, f"{name}: its tensors have other sizes")
    count = state.get(counter)
    if not isinstance(count, int) or count < 0:
        raise _make_damage_error(path, f"{counter} is {count!r:.60}")
    rows: Any = state.get("rows")
    if not _are_rows(rows):
        raise _make_damage_error(path, "its log is none")
    write_log(log_path, rows)
    return count, rows


def check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Raises SightlineError, naming what differs, for a checkpoint of a run with other settings."""
    kept = _read_state(path).get("settings")
    if not isinstance(kept, dict):
        raise _make_damage_error(path, "it has no settings")
    names = sorted({*kept, *settings}, key=str)
    different = [str(name) for name in names if kept.get(name) != settings.get(name)]
    if different:
        raise SightlineError(
            f"{path} belongs to a run with other settings ({', '.join(different):.200}); "
            "give those, or remove it to begin again"
        )


def read_averaged_weights(path: Path) -> dict[str, Tensor]:
    """The averaged weights in a checkpoint, under the network's own names.

    Raises SightlineError for a file without any.
    """
    average = _read_state(path).get("average")
    if not isinstance(average, dict):
        raise _make_damage_error(path, "it has no averaged weights")
    return {
        name.removeprefix("module."): value
        for name, value in average.items()
        if name.startswith("module.")
    }


def write_log(path: Path, rows: Sequence[LogRow]) -> None:
    write_text("".join(json.dumps(row) + "\n" for row in rows), path)


def _read_state(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, by name; raises SightlineError for anything else."""
    try:
        state = read_file_content(path)
    except SightlineError as error:
        raise _make_damage_error(path, str(error)) from error
    if not isinstance(state, dict):
        raise _make_damage_error(path, f"it holds a {type(state).__name__}")
    return state


def _fits_its_parameters(optimizer: torch.optim.Optimizer) -> bool:
    """Whether what an optimizer keeps of each parameter has the parameter's shape."""
    return all(
        value.ndim == 0 or value.shape == parameter.shape
        for parameter, kept in optimizer.state.items()
        for value in kept.values()
        if isinstance(value, Tensor)
    )


def _are_rows(rows: Any) -> TypeGuard[list[dict[str, float]]]:
    """Whether this is a list of numbers by name."""
    return isinstance(rows, list) and all(
        isinstance(row, dict) and all(isinstance(value, (int, float)) for value in row.values())
        for row in rows
    )


def _make_damage_error(path: Path, problem: str) -> SightlineError:
    return SightlineError(
        f"{path} is no whole checkpoint of this run ({problem}); remove it to begin again"
    )
