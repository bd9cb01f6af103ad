"""Training of style networks: Adam on the losses of a `Teacher`, resumable to the bit, on any devices that Lightning Fabric knows."""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import image as images
from .. import render
from ..atomic import check_writable, replacing
from ..errors import SightlineError
from ..model import Model
from ..perceptual import layers_of
from .files import read_styles, write_styles
from .journal import Journal
from .photos import Photos
from .stylizer import STRIDE, InstanceNorm, Norm, Stylizer, seeded
from .teacher import Teacher, check_style

HALVINGS = 6
COLD = 0.25  # the last share of the steps, over which the step size falls to zero


@dataclass(frozen=True)
class Plan:
    """What is trained, on which style images, and how. `extend` names a style network that gets the styles as new rows, all else of it fixed."""

    styles: tuple[Path, ...]
    out: Path
    norm: Norm = "conditional"
    width: int = 24
    blocks: int = 5
    size: int = 128
    style_size: int = 256
    batch: int = 4
    steps: int = 4000
    lr: float = 1e-3
    content_weight: float = 1.0
    style_weight: float = 5.0
    tv_weight: float = 1.0
    every: int = 250
    seed: int = 0
    extend: Path | None = None


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
        layers = layers_of(model)
        styles = [style_image(path, plan.style_size) for path in plan.styles]
        if not styles:
            raise SightlineError("a style network needs at least one style image")
        if plan.norm != "conditional" and len(styles) > 1:
            raise SightlineError(f"norm is {plan.norm!r} and has room for one style, not {len(styles)}; conditional holds many")
        if plan.size > photos.side:
            raise SightlineError(f"size is {plan.size}, but the photographs were kept with {photos.side} pixels; make it smaller")
        for path, style in zip(plan.styles, styles, strict=True):
            check_style(style, model, layers, path.name)
        self.teacher = Teacher(model, layers, styles, self.photos.drawn(plan.seed, -1 % 2**32, 16, plan.size).to(model.device))
        self.bare, self.names, self.old = self.network()
        trained = [parameter for parameter in self.bare.parameters() if parameter.requires_grad]
        self.net, self.optimizer = fabric.setup(self.bare, torch.optim.Adam(trained, plan.lr))
        self.journal = Journal(plan.out) if fabric.is_global_zero else None
        self.good = self.state()

    def network(self) -> tuple[Stylizer, tuple[str, ...], int]:
        """The network at its start, the names of its styles, and how many of them are not to be trained."""
        plan, names = self.plan, tuple(path.stem for path in self.plan.styles)
        if plan.extend is None:
            return seeded(plan.seed, len(names), width=plan.width, blocks=plan.blocks, norm=plan.norm), names, 0
        found = read_styles(plan.extend)
        return extended(found.network, len(names)), (*found.names, *names), len(found.names)

    # ── one step ──

    def advance(self) -> dict[str, float] | None:
        """One step of Adam; the mean losses over all processes, or None if they were not finite and the run went back."""
        plan, fabric = self.plan, self.fabric
        everything = self.photos.drawn(plan.seed, self.step, plan.batch, plan.size)
        style = torch.arange(plan.batch) + self.step * plan.batch
        mine = slice(fabric.global_rank, None, fabric.world_size)
        photo, style = everything[mine].to(fabric.device), style[mine].to(fabric.device) % len(plan.styles)
        for group in self.optimizer.param_groups:
            group["lr"] = plan.lr * 0.5**self.slowed * min(1, (1 - self.step / plan.steps) / COLD)
        self.bare.train()
        made = self.net(photo, self.bare.one_hot(style + self.old))
        with fabric.autocast():
            terms = self.teacher.terms(self.shifted(made), self.shifted(photo), style)
        loss = plan.content_weight * terms.content + plan.style_weight * terms.style + plan.tv_weight * terms.variation
        self.optimizer.zero_grad()
        fabric.backward(loss.mean())
        told = {"loss": loss, "content": terms.content, "style": terms.style, "tv": terms.variation}
        losses = {name: float(fabric.all_reduce(value.detach().mean(), reduce_op="mean")) for name, value in told.items()}
        if not math.isfinite(losses["loss"]):
            self.go_back(losses["loss"])
            return None
        self.optimizer.step()
        self.step += 1
        if self.journal:
            self.journal.note(self.step, losses)
        return losses

    def shifted(self, image: Tensor) -> Tensor:
        """A crop that moves from step to step: both networks have strides of 4, and where their grids always met a pattern of that period would grow."""
        y, x, side = self.step % STRIDE, self.step // STRIDE % STRIDE, self.plan.size - STRIDE + 1
        return image[..., y : y + side, x : x + side]

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
        return {name: str(value) for name, value in {**told, "photographs": self.photos.key}.items()}

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
        facts = {"step": self.step, "loss_network": self.teacher.model.name, "size": self.plan.size}
        write_styles(self.bare, self.names, self.plan.out / "stylizer.safetensors", facts)
        self.journal.draw(self.step, self.sample())

    @torch.no_grad()
    def sample(self, count: int = 3) -> Tensor:
        """A sheet: each row a photograph and the same in every style that is trained."""
        self.bare.eval()
        chosen = [len(self.photos) * i // count for i in range(count)]
        pixels = torch.from_numpy(self.photos.pixels[chosen]).permute(0, 3, 1, 2).float().div(255).to(self.fabric.device)
        styles = range(self.old, len(self.names))
        made = [self.bare(pixels, self.bare.one_hot(torch.full((count,), style, device=pixels.device))) for style in styles]
        return render.sheet(torch.stack([pixels, *made], 1).flatten(0, 1).cpu(), columns=1 + len(made))


def copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def style_image(path: Path, size: int) -> Tensor:
    """A style image whose short side has `size` pixels; a smaller one stays as it is."""
    image = images.find(path)
    return images.short_side(image, size) if min(image.shape[-2:]) > size else image


def extended(network: Stylizer, more: int) -> Stylizer:
    """The network with rows for more styles, which start as the mean of the old ones. Only norms are to be trained: gradients
    reach the rows in use alone."""
    if network.kind != "conditional":
        raise SightlineError(f"this style network has {network.kind} norm and one style; only a conditional one takes more")
    larger = seeded(0, network.styles + more, width=network.width, blocks=network.blocks, norm="conditional")
    state = {name: with_rows(value, more) if ".norm." in name else value for name, value in network.state_dict().items()}
    larger.load_state_dict(state)
    for module in larger.modules():
        if not isinstance(module, InstanceNorm):
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
    return larger


def with_rows(table: Tensor, more: int) -> Tensor:
    return torch.cat([table, table.mean(0, keepdim=True).expand(more, -1)])
