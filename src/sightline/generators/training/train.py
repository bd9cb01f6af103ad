"""Training of style networks with Adam, on any devices that Lightning Fabric supports.

A run that is resumed from its last checkpoint ends with the same bits as one that was never
stopped.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sightline.data.writer_lock import lock_folder
from sightline.errors import SightlineError, convert_memory_errors
from sightline.generators.training.any_style import AnyStyleTask
from sightline.generators.training.dataset import PhotoDataset
from sightline.generators.training.fixed_styles import FixedStylesTask, TrainingPlan, TrainingTask
from sightline.generators.training.log import TrainingLog
from sightline.generators.training.resume import (
    CHECKPOINT_FILE,
    MAX_LR_HALVINGS,
    LogRow,
    check_checkpoint,
    check_same_plan,
    digest_loss_network,
    read_checkpoint_file,
    write_checkpoint_file,
)
from sightline.images.files import check_writable, remove_abandoned_files
from sightline.models.model import Model

NETWORK_FILE = "stylizer.safetensors"

# The learning rate falls linearly to zero over the last share of the steps.
LR_DECAY_SHARE = 0.25

# What a resumed run may change.
CHANGEABLE_SETTINGS = ("out", "every")


@dataclass
class TrainingStep:
    """Progress of a training: the step's number from 1, the number of steps, the mean losses."""

    index: int
    total: int
    losses: Mapping[str, float]


def train_stylizer(
    plan: TrainingPlan,
    photos: PhotoDataset,
    model: Model,
    fabric: Any,
    callback: Callable[[TrainingStep], object] | None = None,
) -> Path:
    """Trains a style network, or resumes from the checkpoint in `plan.out`.

    Returns the path of the network, which is that of the last step however often the training was
    killed. `model` is the loss network and `fabric` a launched `lightning_fabric.Fabric`. A
    callback that returns True ends the training after a last checkpoint. Another training in the
    same folder is waited for.

    Raises SightlineError for a plan that can't be carried out, for a checkpoint of another plan,
    other pictures or another loss network, for a damaged one, and where the loss stays NaN however
    small the learning rate.
    """
    check_writable(plan.out)
    run = TrainingRun(plan, photos, model, fabric)
    lock = lock_folder(plan.out) if fabric.is_global_zero else nullcontext()
    with lock, convert_memory_errors("for the training", "batch", "size", "width"):
        fabric.barrier()  # all processes read the checkpoint that the training before has left
        run.resume_checkpoint()
        while run.step < plan.steps:
            losses = run.run_step()
            if losses is None:
                continue
            stopped = False
            if callback is not None:
                is_asked = bool(callback(TrainingStep(run.step, plan.steps, losses)))
                stopped = run.agree_to_stop(is_asked)
            is_last = stopped or run.step == plan.steps
            if is_last or run.step % plan.every == 0:
                run.write_checkpoint()
            if is_last:
                break
    return plan.out / NETWORK_FILE


class TrainingRun:
    """One training: the task with its network, the optimizer, and the files of its folder."""

    def __init__(self, plan: TrainingPlan, photos: PhotoDataset, model: Model, fabric: Any) -> None:
        if plan.size > photos.side:
            raise SightlineError(
                f"size is {plan.size}, but the photographs were kept with {photos.side} pixels;"
                " make it smaller"
            )
        self.plan = plan
        self.photos = photos
        self.fabric = fabric
        self.step = 0
        self.lr_halvings = 0

        self.task: TrainingTask
        if plan.norm == "adaptive":
            self.task = AnyStyleTask(plan, photos, model, fabric)
        else:
            self.task = FixedStylesTask(plan, photos, model)
        self.network = self.task.network
        trained = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        optimizer = torch.optim.Adam(trained, plan.lr)
        self.wrapped_network, self.optimizer = fabric.setup(self.network, optimizer)

        self.log = TrainingLog(plan.out) if fabric.is_global_zero else None
        self.identity = self.collect_identity()
        self.last_good_state = self.copy_state()

    # ── one step ──

    def run_step(self) -> dict[str, float] | None:
        """Takes one step of Adam and returns the mean losses over all processes.

        Returns None where the loss was not finite and the run was rolled back.
        """
        self.set_learning_rate()
        self.network.train()
        # Every process takes every world_size-th image of the batch.
        own_slice = slice(self.fabric.global_rank, None, self.fabric.world_size)
        with self.fabric.autocast():
            image_losses = self.task.compute_losses(self.wrapped_network, self.step, own_slice)
        self.optimizer.zero_grad()
        self.fabric.backward(image_losses["loss"].mean())

        losses: dict[str, float] = {}
        for name, value in image_losses.items():
            mean = self.fabric.all_reduce(value.detach().mean(), reduce_op="mean")
            losses[name] = float(mean)
        if not math.isfinite(losses["loss"]):
            self.roll_back(losses["loss"])
            return None

        self.optimizer.step()
        self.step += 1
        if self.log is not None:
            self.log.record_losses(self.step, losses)
        return losses

    def agree_to_stop(self, is_asked: bool) -> bool:
        """Whether any process asks to stop; all stop after the same step, or would wait forever."""
        flag = torch.tensor(float(is_asked), device=self.fabric.device)
        return bool(self.fabric.all_reduce(flag, reduce_op="sum") > 0)

    def set_learning_rate(self) -> None:
        remaining_share = 1 - self.step / self.plan.steps
        decay = min(1, remaining_share / LR_DECAY_SHARE)
        lr = self.plan.lr * 0.5**self.lr_halvings * decay
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def roll_back(self, loss: float) -> None:
        """Goes back to the last checkpoint and halves the learning rate.

        Raises SightlineError after too many halvings.
        """
        failed_step = self.step + 1
        halvings = self.lr_halvings + 1
        if halvings > MAX_LR_HALVINGS:
            lr = self.plan.lr * 0.5**self.lr_halvings
            raise SightlineError(
                f"the loss is {loss} at step {failed_step} even with a step size of {lr:.2g};"
                " nothing more was written"
            )
        self.restore_state(self.last_good_state)
        self.lr_halvings = halvings
        if self.log is not None:
            self.log.drop_rows_after(self.step)
        lr = self.plan.lr * 0.5**halvings
        warnings.warn(
            f"the loss is {loss} at step {failed_step}: back to step {self.step},"
            f" step size halved to {lr:.2g}",
            stacklevel=4,
        )

    # ── checkpoints ──

    def collect_identity(self) -> dict[str, str]:
        """The settings and data that a resumed run must share with its checkpoint, as text."""
        settings = {
            name: value
            for name, value in asdict(self.plan).items()
            if name not in CHANGEABLE_SETTINGS
        }
        settings["styles"] = [path.name for path in self.plan.styles]
        settings["photographs"] = self.photos.fingerprint
        settings["loss network"] = digest_loss_network(self.task.model)
        settings.update(self.task.data_digests)
        return {name: str(value) for name, value in settings.items()}

    def copy_state(self) -> dict[str, Any]:
        """A copy of everything that a resumed run needs."""
        network_state = clone_tensors(self.network.state_dict())
        parameter_states = {
            index: clone_tensors(parameter_state)
            for index, parameter_state in self.optimizer.state_dict()["state"].items()
        }
        return {
            "network": network_state,
            "optimizer": {"state": parameter_states},
            "step": self.step,
            "slowed": self.lr_halvings,
        }

    def restore_state(self, state: Mapping[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        # The settings are the plan's; a file has no say in them.
        settings = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({**state["optimizer"], "param_groups": settings})
        self.step = state["step"]
        self.lr_halvings = state["slowed"]

    def resume_checkpoint(self) -> None:
        """Resumes from the checkpoint in the folder, if there is one.

        A training that is complete gets its network again: the file may have been removed. Raises
        SightlineError for a damaged checkpoint, and for one of another plan or other data.
        """
        path = self.plan.out / CHECKPOINT_FILE
        rows: list[LogRow] = []
        if path.exists() or path.is_symlink():
            checkpoint = read_checkpoint_file(path)
            check_same_plan(checkpoint.plan, self.identity, path)
            trained = self.optimizer.param_groups[0]["params"]
            check_checkpoint(checkpoint, self.network.state_dict(), trained, self.plan.steps, path)
            self.restore_state(checkpoint.state.model_dump())
            self.last_good_state = self.copy_state()
            rows = checkpoint.rows
        if self.log is None:
            return
        for folder in (self.plan.out, self.plan.out / "samples"):
            remove_abandoned_files(folder)
        self.log.restore_rows(rows)
        if self.step == self.plan.steps:
            self.write_network()

    def write_checkpoint(self) -> None:
        """Writes log, style network and checkpoint. Only the first process writes."""
        self.last_good_state = self.copy_state()
        if self.log is None:
            return
        # The checkpoint comes last and holds the log's rows: killed before it, a run does the same
        # steps and writes the same files again.
        self.log.write_progress(self.step, self.make_sample_sheet())
        self.write_network()
        write_checkpoint_file(self.plan.out, self.identity, self.last_good_state, self.log.rows)

    def write_network(self) -> None:
        self.task.write_network(self.plan.out / NETWORK_FILE, self.step)

    @torch.no_grad()
    def make_sample_sheet(self, count: int = 3) -> Tensor:
        """A figure of what the network makes of `count` photographs by now."""
        self.network.eval()
        return self.task.make_sample_sheet(self.photos.pick_evenly(count).to(self.fabric.device))


def clone_tensors(state: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a state whose tensors share no memory with it; other values are kept."""
    return {
        name: value.detach().clone() if isinstance(value, Tensor) else value
        for name, value in state.items()
    }
