"""Training of style networks: Adam on the losses of a lesson, resumable to the bit, on any devices that Lightning Fabric knows."""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..atomic import check_writable, replacing
from ..errors import SightlineError
from ..model import Model
from .adaptive import AnyStyleLesson
from .journal import Journal
from .lessons import GivenStyles, Lesson, Plan
from .photos import Photos

HALVINGS = 6
COLD = 0.25  # the last share of the steps, over which the step size falls to zero


@dataclass
class Trained:
    """One step of training: its number, how many there are, and the mean losses."""

    index: int
    total: int
    losses: Mapping[str, float]


def train(plan: Plan, photos: Photos, model: Model, fabric: Any, callback: Callable[[Trained], object] | None = None) -> Path:
    """Trains, or goes on from the checkpoint in `plan.out`; gives the path of the style network. A callback that returns True ends it.

    `model` is the loss network, `fabric` a launched `lightning_fabric.Fabric`. Raises SightlineError for a plan that can't be
    carried out, a checkpoint of another plan, and losses that stay NaN however small the step.
    """
    check_writable(plan.out)
    run = Training(plan, photos, model, fabric)
    run.resume()
    while run.step < plan.steps:
        losses = run.advance()
        if losses is None:
            continue
        last = run.step == plan.steps
        stopped = bool(callback and callback(Trained(run.step, plan.steps, losses)))
        if run.step % plan.every == 0 or last or stopped:
            run.keep()
        if stopped:
            break
    return plan.out / "stylizer.safetensors"


class Training:
    """A run: network, optimizer, teacher, photographs, and what is kept of it on disk."""

    def __init__(self, plan: Plan, photos: Photos, model: Model, fabric: Any) -> None:
        self.plan, self.photos, self.fabric, self.step, self.slowed = plan, photos, fabric, 0, 0
        if plan.size > photos.side:
            raise SightlineError(f"size is {plan.size}, but the photographs were kept with {photos.side} pixels; make it smaller")
        self.lesson: Lesson = AnyStyleLesson(plan, photos, model, fabric) if plan.norm == "adaptive" else GivenStyles(plan, photos, model)
        self.bare = self.lesson.network
        trained = [parameter for parameter in self.bare.parameters() if parameter.requires_grad]
        self.net, self.optimizer = fabric.setup(self.bare, torch.optim.Adam(trained, plan.lr))
        self.journal = Journal(plan.out) if fabric.is_global_zero else None
        self.good = self.state()

    # ── one step ──

    def advance(self) -> dict[str, float] | None:
        """One step of Adam; the mean losses over all processes, or None if they were not finite and the run went back."""
        plan, fabric = self.plan, self.fabric
        for group in self.optimizer.param_groups:
            group["lr"] = plan.lr * 0.5**self.slowed * min(1, (1 - self.step / plan.steps) / COLD)
        self.bare.train()
        with fabric.autocast():
            told = self.lesson.losses(self.net, self.step, slice(fabric.global_rank, None, fabric.world_size))
        self.optimizer.zero_grad()
        fabric.backward(told["loss"].mean())
        losses = {name: float(fabric.all_reduce(value.detach().mean(), reduce_op="mean")) for name, value in told.items()}
        if not math.isfinite(losses["loss"]):
            self.go_back(losses["loss"])
            return None
        self.optimizer.step()
        self.step += 1
        if self.journal:
            self.journal.note(self.step, losses)
        return losses

    def go_back(self, loss: float) -> None:
        """To the last state that was kept, with half the step size."""
        slowed, step = self.slowed + 1, self.step
        if slowed > HALVINGS:
            raise SightlineError(
                f"the loss is {loss} at step {step + 1} even with a step size of {self.plan.lr * 0.5 ** (slowed - 1):.2g}; nothing more was written"
            )
        self.restore(self.good)
        self.slowed = slowed
        warnings.warn(
            f"the loss is {loss} at step {step + 1}: back to step {self.step}, step size halved to {self.plan.lr * 0.5**slowed:.2g}",
            stacklevel=4,
        )

    # ── what is kept ──

    def identity(self) -> dict[str, str]:
        """What a checkpoint must have in common with the run that goes on from it."""
        told = {name: value for name, value in asdict(self.plan).items() if name not in ("out", "every")}
        told["styles"] = [path.name for path in self.plan.styles]
        return {name: str(value) for name, value in {**told, "photographs": self.photos.key + self.lesson.key}.items()}

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs, detached from the running one."""
        optimizer = self.optimizer.state_dict()
        moments = {key: {name: copied(value) for name, value in one.items()} for key, one in optimizer["state"].items()}
        network = {name: copied(value) for name, value in self.bare.state_dict().items()}
        return {"network": network, "optimizer": {**optimizer, "state": moments}, "step": self.step, "slowed": self.slowed}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.bare.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.slowed = state["step"], state["slowed"]

    def resume(self) -> None:
        """Goes on from the checkpoint in the folder, if there is one; raises SightlineError if another plan left it."""
        path = self.plan.out / "checkpoint.pt"
        if not path.is_file():
            return
        found = torch.load(path, map_location="cpu", weights_only=True)
        for name, value in self.identity().items():
            if found["plan"].get(name) != value:
                raise SightlineError(f"{path} was made with {name} {found['plan'].get(name)}, not {value}; give the same or another --out")
        self.restore(found["state"])
        self.good = self.state()
        if self.journal:
            self.journal.cut(self.step)

    def keep(self) -> None:
        """Checkpoint, style network, curves and sample pictures, written by the first process."""
        self.good = self.state()
        if not self.journal:
            return
        with replacing(self.plan.out / "checkpoint.pt") as temporary:
            torch.save({"plan": self.identity(), "state": self.good}, temporary)
        self.lesson.write(self.plan.out / "stylizer.safetensors", self.step)
        self.journal.draw(self.step, self.sample())

    @torch.no_grad()
    def sample(self, count: int = 3) -> Tensor:
        """A sheet of what the network makes of a few photographs by now."""
        self.bare.eval()
        return self.lesson.sample(self.photos.spread(count).to(self.fabric.device))


def copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value
