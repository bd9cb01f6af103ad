"""Training of style networks: Adam on the losses of a lesson, resumable to the bit, on any devices that Lightning Fabric knows."""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sightline.errors import SightlineError
from sightline.generators.training.any_style import AnyStyleTask
from sightline.generators.training.dataset import PhotoDataset
from sightline.generators.training.fixed_styles import FixedStylesTask, TrainingPlan, TrainingTask
from sightline.generators.training.log import TrainingLog
from sightline.images.files import check_writable, replace_atomically
from sightline.models.model import Model

MAX_LR_HALVINGS = 6

LR_DECAY_SHARE = 0.25  # the last share of the steps, over which the step size falls to zero


@dataclass
class TrainingStep:
    """One step of training: its number, how many there are, and the mean losses."""

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
    """Trains, or goes on from the checkpoint in `plan.out`; gives the path of the style network. A callback that returns True ends it.

    `model` is the loss network, `fabric` a launched `lightning_fabric.Fabric`. Raises SightlineError for a plan that can't be
    carried out, a checkpoint of another plan, and losses that stay NaN however small the step.
    """
    check_writable(plan.out)
    run = TrainingRun(plan, photos, model, fabric)
    run.resume_checkpoint()
    while run.step < plan.steps:
        losses = run.run_step()
        if losses is None:
            continue
        last = run.step == plan.steps
        stopped = bool(callback and callback(TrainingStep(run.step, plan.steps, losses)))
        if run.step % plan.every == 0 or last or stopped:
            run.write_checkpoint()
        if stopped:
            break
    return plan.out / "stylizer.safetensors"


class TrainingRun:
    """A run: network, optimizer, teacher, photographs, and what is kept of it on disk."""

    def __init__(self, plan: TrainingPlan, photos: PhotoDataset, model: Model, fabric: Any) -> None:
        self.plan, self.photos, self.fabric, self.step, self.lr_halvings = (
            plan,
            photos,
            fabric,
            0,
            0,
        )
        if plan.size > photos.side:
            raise SightlineError(
                f"size is {plan.size}, but the photographs were kept with {photos.side} pixels; make it smaller"
            )
        self.task: TrainingTask = (
            AnyStyleTask(plan, photos, model, fabric)
            if plan.norm == "adaptive"
            else FixedStylesTask(plan, photos, model)
        )
        self.network = self.task.network
        trained = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        self.wrapped_network, self.optimizer = fabric.setup(
            self.network, torch.optim.Adam(trained, plan.lr)
        )
        self.log = TrainingLog(plan.out) if fabric.is_global_zero else None
        self.last_good_state = self.copy_state()

    # ── one step ──

    def run_step(self) -> dict[str, float] | None:
        """One step of Adam; the mean losses over all processes, or None if they were not finite and the run went back."""
        plan, fabric = self.plan, self.fabric
        for group in self.optimizer.param_groups:
            group["lr"] = (
                plan.lr
                * 0.5**self.lr_halvings
                * min(1, (1 - self.step / plan.steps) / LR_DECAY_SHARE)
            )
        self.network.train()
        with fabric.autocast():
            told = self.task.compute_losses(
                self.wrapped_network, self.step, slice(fabric.global_rank, None, fabric.world_size)
            )
        self.optimizer.zero_grad()
        fabric.backward(told["loss"].mean())
        losses = {
            name: float(fabric.all_reduce(value.detach().mean(), reduce_op="mean"))
            for name, value in told.items()
        }
        if not math.isfinite(losses["loss"]):
            self.roll_back(losses["loss"])
            return None
        self.optimizer.step()
        self.step += 1
        if self.log:
            self.log.record_losses(self.step, losses)
        return losses

    def roll_back(self, loss: float) -> None:
        """To the last state that was kept, with half the step size."""
        slowed, step = self.lr_halvings + 1, self.step
        if slowed > MAX_LR_HALVINGS:
            raise SightlineError(
                f"the loss is {loss} at step {step + 1} even with a step size of {self.plan.lr * 0.5 ** (slowed - 1):.2g}; nothing more was written"
            )
        self.restore_state(self.last_good_state)
        self.lr_halvings = slowed
        warnings.warn(
            f"the loss is {loss} at step {step + 1}: back to step {self.step}, step size halved to {self.plan.lr * 0.5**slowed:.2g}",
            stacklevel=4,
        )

    # ── what is kept ──

    def collect_identity(self) -> dict[str, str]:
        """What a checkpoint must have in common with the run that goes on from it."""
        told = {
            name: value for name, value in asdict(self.plan).items() if name not in ("out", "every")
        }
        told["styles"] = [path.name for path in self.plan.styles]
        return {
            name: str(value)
            for name, value in {
                **told,
                "photographs": self.photos.fingerprint + self.task.data_fingerprint,
            }.items()
        }

    def copy_state(self) -> dict[str, Any]:
        """Everything that a resumed run needs, detached from the running one."""
        optimizer = self.optimizer.state_dict()
        moments = {
            key: {name: clone_detached(value) for name, value in one.items()}
            for key, one in optimizer["state"].items()
        }
        network = {name: clone_detached(value) for name, value in self.network.state_dict().items()}
        return {
            "network": network,
            "optimizer": {**optimizer, "state": moments},
            "step": self.step,
            "slowed": self.lr_halvings,
        }

    def restore_state(self, state: Mapping[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.lr_halvings = state["step"], state["slowed"]

    def resume_checkpoint(self) -> None:
        """Goes on from the checkpoint in the folder, if there is one; raises SightlineError if another plan left it."""
        path = self.plan.out / "checkpoint.pt"
        if not path.is_file():
            return
        found = torch.load(path, map_location="cpu", weights_only=True)
        for name, value in self.collect_identity().items():
            if found["plan"].get(name) != value:
                raise SightlineError(
                    f"{path} was made with {name} {found['plan'].get(name)}, not {value}; give the same or another --out"
                )
        self.restore_state(found["state"])
        self.last_good_state = self.copy_state()
        if self.log:
            self.log.drop_rows_after(self.step)

    def write_checkpoint(self) -> None:
        """Checkpoint, style network, curves and sample pictures, written by the first process."""
        self.last_good_state = self.copy_state()
        if not self.log:
            return
        with replace_atomically(self.plan.out / "checkpoint.pt") as temporary:
            torch.save({"plan": self.collect_identity(), "state": self.last_good_state}, temporary)
        self.task.write_network(self.plan.out / "stylizer.safetensors", self.step)
        self.log.write_progress(self.step, self.make_sample_sheet())

    @torch.no_grad()
    def make_sample_sheet(self, count: int = 3) -> Tensor:
        """A sheet of what the network makes of a few photographs by now."""
        self.network.eval()
        return self.task.make_sample_sheet(self.photos.pick_evenly(count).to(self.fabric.device))


def clone_detached(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value
