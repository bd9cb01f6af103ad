"""What a training teaches: a network, its losses at each step, and what is kept of it. `training` runs any of these."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from .. import image as images
from .. import render
from ..errors import SightlineError
from ..model import Model
from ..perceptual import layers_of
from .files import read_styles, write_styles
from .photos import Photos
from .stylizer import STRIDE, InstanceNorm, Norm, Stylizer, seeded
from .teacher import Teacher, check_style


@dataclass(frozen=True)
class Plan:
    """What is trained, on which style images, and how. `extend` names a style network that gets the styles as new rows, all else of it fixed.

    With `norm` "adaptive" the style images are examples of any style, and `width` and `blocks` are not used.
    """

    styles: tuple[Path, ...]
    out: Path
    norm: Norm | Literal["adaptive"] = "conditional"
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


class Lesson(Protocol):
    """`network` is what is trained; `key` tells its data from others."""

    key: str

    @property
    def network(self) -> nn.Module: ...

    def losses(self, net: Any, step: int, mine: slice) -> dict[str, Tensor]:
        """The losses of this process's part of a step's batch, N each: "loss" is what is descended, the others its parts. `net` is the network,
        perhaps spread over processes."""
        ...

    def write(self, path: Path, step: int) -> None:
        """Writes the network as a file that `sightline stylizer apply` takes."""
        ...

    def sample(self, photos: Tensor) -> Tensor:
        """A sheet that shows what the network makes of photographs N×3×H×W."""
        ...


class GivenStyles:
    """A network of one or several given styles, a row of its norms for each (Johnson 2016; Dumoulin 2017)."""

    def __init__(self, plan: Plan, photos: Photos, model: Model) -> None:
        self.plan, self.photos, self.key = plan, photos, ""
        layers = layers_of(model)
        styles = [style_image(path, plan.style_size) for path in plan.styles]
        if not styles:
            raise SightlineError("a style network needs at least one style image")
        if plan.norm != "conditional" and len(styles) > 1:
            raise SightlineError(f"norm is {plan.norm!r} and has room for one style, not {len(styles)}; conditional holds many")
        for path, style in zip(plan.styles, styles, strict=True):
            check_style(style, model, layers.style[-1], path.name)
        self.teacher = Teacher(model, layers, styles, photos.drawn(plan.seed, -1 % 2**32, 16, plan.size).to(model.device))
        self.network, self.names, self.old = self.beginning()

    def beginning(self) -> tuple[Stylizer, tuple[str, ...], int]:
        """The network at its start, the names of its styles, and how many of them are not to be trained."""
        plan, names = self.plan, tuple(path.stem for path in self.plan.styles)
        if plan.extend is None:
            norm: Any = plan.norm
            return seeded(plan.seed, len(names), width=plan.width, blocks=plan.blocks, norm=norm), names, 0
        found = read_styles(plan.extend)
        return extended(found.network, len(names)), (*found.names, *names), len(found.names)

    def losses(self, net: Any, step: int, mine: slice) -> dict[str, Tensor]:
        plan, device = self.plan, self.teacher.model.device
        style = (torch.arange(plan.batch) + step * plan.batch)[mine].to(device) % len(plan.styles)
        photo = self.photos.drawn(plan.seed, step, plan.batch, plan.size)[mine].to(device)
        made = net(photo, self.network.one_hot(style + self.old))
        terms = self.teacher.terms(shifted(made, step), shifted(photo, step), style)
        loss = plan.content_weight * terms.content + plan.style_weight * terms.style + plan.tv_weight * terms.variation
        return {"loss": loss, "content": terms.content, "style": terms.style, "tv": terms.variation}

    def write(self, path: Path, step: int) -> None:
        write_styles(self.network, self.names, path, {"step": step, "loss_network": self.teacher.model.name, "size": self.plan.size})

    def sample(self, photos: Tensor) -> Tensor:
        """Each row a photograph and the same in every style that is trained."""
        styles = range(self.old, len(self.names))
        rows = [self.network.one_hot(torch.full((len(photos),), style, device=photos.device)) for style in styles]
        return rowed(photos, [self.network(photos, row) for row in rows])


def rowed(photos: Tensor, made: Sequence[Tensor]) -> Tensor:
    """A sheet with a row for each photograph and what was made of it."""
    return render.sheet(torch.stack([photos, *made], 1).flatten(0, 1).cpu(), columns=1 + len(made))


def shifted(image: Tensor, step: int, stride: int = STRIDE) -> Tensor:
    """A crop that moves from step to step: both networks have strides, and where their grids always met a pattern of that period would grow."""
    y, x = step % stride, step // stride % stride
    return image[..., y : y + image.shape[-2] - stride + 1, x : x + image.shape[-1] - stride + 1]


def style_image(path: Path, size: int) -> Tensor:
    """A style image whose short side has `size` pixels; a smaller one stays as it is."""
    return images.at_most(images.find(path), size)


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
