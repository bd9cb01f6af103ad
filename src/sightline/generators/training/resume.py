"""The checkpoint of a training: how it is written, and checked before a run goes on from it.

A checkpoint is one file, replaced as a whole. It holds all that a resumed run needs: the plan with
the digests of its data, the network, the optimizer and the rows of the log. The other files of the
folder are made from it again. It may come from somebody else: no code in it is run, and no value is
used before all were checked.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from sightline.errors import SightlineError, escape_for_display
from sightline.generators.checkpoint import hash_tensors
from sightline.images.files import replace_atomically
from sightline.models.model import Model
from sightline.models.weights.checkpoint import hash_file
from sightline.models.weights.file_content import read_file_content

CHECKPOINT_FILE = "checkpoint.pt"

MAX_LR_HALVINGS = 6

# So many hexadecimal digits of a SHA-256 tell one file from another, and can still be read.
DIGEST_LENGTH = 16

# Of one step: its number under "step", and its losses by name.
LogRow = dict[str, int | float]

ParameterState = dict[str, Tensor]


# ── what a run and its checkpoint must share ──


def digest_file(path: Path) -> str:
    """The digest of a file's content; of a sample picture, which has no file, its name."""
    return hash_file(path)[:DIGEST_LENGTH] if path.is_file() else path.name


def digest_loss_network(model: Model) -> str:
    """The name of a network and the digest of all its weights."""
    digest = hash_tensors(model.network.state_dict())
    return f"{model.name} {digest[:DIGEST_LENGTH]}"


def check_same_plan(saved: Mapping[str, str], current: Mapping[str, str], path: Path) -> None:
    """Raises SightlineError with the first setting or picture in which the two plans differ."""
    for name in {**current, **saved}:
        saved_value = saved.get(name, "none")
        value = current.get(name, "none")
        if saved_value != value:
            texts = [escape_for_display(text) for text in (str(path), name, saved_value, value)]
            raise SightlineError(
                "{} was made with {} {}, not {}; give the same or another --out".format(*texts)
            )


# ── the file ──


class OptimizerState(BaseModel):
    """What Adam keeps of each parameter, by the parameter's number. Its settings are the plan's."""

    model_config = ConfigDict(arbitrary_types_allowed=True, strict=True)

    state: dict[int, ParameterState]


class TrainingState(BaseModel):
    """Network and optimizer after a step, and how often the learning rate was halved by then."""

    model_config = ConfigDict(arbitrary_types_allowed=True, strict=True, extra="forbid")

    network: dict[str, Tensor]
    optimizer: OptimizerState
    step: Annotated[int, Field(ge=0)]
    slowed: Annotated[int, Field(ge=0, le=MAX_LR_HALVINGS)]


class TrainingCheckpoint(BaseModel):
    """The content of a checkpoint."""

    model_config = ConfigDict(strict=True, extra="forbid")

    plan: dict[str, str]
    state: TrainingState
    rows: list[LogRow]


def write_checkpoint_file(
    folder: Path, plan: Mapping[str, str], state: Mapping[str, Any], rows: Sequence[LogRow]
) -> None:
    """Writes the checkpoint, whole or not at all."""
    content = {"plan": dict(plan), "state": dict(state), "rows": list(rows)}
    with replace_atomically(folder / CHECKPOINT_FILE) as temporary:
        torch.save(content, temporary)


def read_checkpoint_file(path: Path) -> TrainingCheckpoint:
    """Reads a checkpoint. Raises SightlineError for a damaged file and for any other content."""
    try:
        content = read_file_content(path)
    except SightlineError as error:
        raise make_damage_error(path, str(error)) from error
    try:
        return TrainingCheckpoint.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        location = ".".join(str(key) for key in first["loc"]) or "its content"
        problem = f"{escape_for_display(location)}: {first['msg'].lower()}"
        raise make_damage_error(path, problem) from error


def make_damage_error(path: Path, problem: str) -> SightlineError:
    """The error for a checkpoint that no training can go on from."""
    return SightlineError(
        f"{escape_for_display(str(path))} is no whole checkpoint of this training ({problem});"
        " remove it to begin again, or give another --out"
    )


# ── whether it fits the run ──


def check_checkpoint(
    checkpoint: TrainingCheckpoint,
    network_state: Mapping[str, Tensor],
    parameters: Sequence[Tensor],
    total_steps: int,
    path: Path,
) -> None:
    """Raises SightlineError where network, optimizer or log are not those of a run at that step.

    `network_state` is the state of the run's network, `parameters` what its optimizer trains.
    """
    state = checkpoint.state
    if state.step > total_steps:
        raise make_damage_error(path, f"it is at step {state.step} of {total_steps}")
    steps = [row.get("step") for row in checkpoint.rows]
    if steps != list(range(1, state.step + 1)):
        raise make_damage_error(path, f"its log does not have each of its {state.step} steps once")
    names = {frozenset(row) for row in checkpoint.rows}
    if len(names) > 1:
        raise make_damage_error(path, "the rows of its log have different losses")

    check_tensors(state.network, network_state, "the network", path)
    check_optimizer_state(state, parameters, path)


def check_optimizer_state(state: TrainingState, parameters: Sequence[Tensor], path: Path) -> None:
    """Raises SightlineError where Adam could not have kept this after so many steps."""
    parameter_states = state.optimizer.state
    expected_numbers = range(len(parameters)) if state.step else ()
    if sorted(parameter_states) != list(expected_numbers):
        raise make_damage_error(path, "its optimizer is of other parameters")
    for number, parameter_state in sorted(parameter_states.items()):
        moment = parameters[number].detach()
        expected = {"step": torch.tensor(0.0), "exp_avg": moment, "exp_avg_sq": moment}
        check_tensors(parameter_state, expected, f"parameter {number} of the optimizer", path)
        has_negative = bool((parameter_state["exp_avg_sq"] < 0).any())
        if has_negative or float(parameter_state["step"]) != state.step:
            raise make_damage_error(path, f"parameter {number} of the optimizer is of no such step")


def check_tensors(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], owner: str, path: Path
) -> None:
    """Raises SightlineError unless names, shapes and types are those expected, and all is finite.

    `owner` is what the message calls the whole.
    """
    for name in {**expected, **tensors}:
        if name not in tensors:
            raise make_damage_error(path, f"{owner} lacks {name}")
        if name not in expected:
            raise make_damage_error(path, f"{owner} has no {escape_for_display(name)}")
        saved_form = describe_storage(tensors[name])
        expected_form = describe_storage(expected[name])
        if saved_form != expected_form:
            raise make_damage_error(
                path, f"{name} of {owner} is {saved_form}; it must be {expected_form}"
            )
        if not bool(tensors[name].isfinite().all()):
            raise make_damage_error(path, f"{name} of {owner} holds NaN or infinity")


def describe_storage(value: Tensor) -> str:
    """Type and shape: «float32 (4, 3)», and what else it is where it is no plain tensor."""
    dtype = str(value.dtype).removeprefix("torch.")
    kind = ""
    if value.is_meta:
        kind = "meta "
    elif value.layout != torch.strided or value.is_nested:
        kind = "sparse "
    return f"{kind}{dtype} {tuple(value.shape)}"
