"""What a training teaches: a network, its losses at each step, and what is kept of it. `training` runs any of these."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from sightline.errors import SightlineError
from sightline.generators.architectures.style import (
    STYLIZER_STRIDE,
    ConditionalInstanceNorm,
    NormKind,
    Stylizer,
    make_stylizer,
)
from sightline.generators.checkpoint import (
    check_style_size,
    read_fixed_style_network,
    write_fixed_style_network,
)
from sightline.generators.training.dataset import PhotoDataset
from sightline.generators.training.losses import PerceptualLoss
from sightline.images.io import limit_short_side, read_file_or_sample
from sightline.images.plotting.maps import make_contact_sheet
from sightline.models.model import Model
from sightline.optim.perceptual.layers import choose_perceptual_layers


@dataclass(frozen=True)
class TrainingPlan:
    """What is trained, on which style images, and how. `extend` names a style network that gets the styles as new rows, all else of it fixed.

    With `norm` "adaptive" the style images are examples of any style, and `width` and `blocks` are not used.
    """

    styles: tuple[Path, ...]
    out: Path
    norm: NormKind | Literal["adaptive"] = "conditional"
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


class TrainingTask(Protocol):
    """`network` is what is trained; `key` tells its data from others."""

    data_fingerprint: str

    @property
    def network(self) -> nn.Module: ...

    def compute_losses(
        self, wrapped_network: Any, step: int, own_slice: slice
    ) -> dict[str, Tensor]:
        """The losses of this process's part of a step's batch, N each: "loss" is what is descended, the others its parts. `net` is the network,
        perhaps spread over processes."""
        ...

    def write_network(self, path: Path, step: int) -> None:
        """Writes the network as a file that `sightline stylizer apply` takes."""
        ...

    def make_sample_sheet(self, photos: Tensor) -> Tensor:
        """A sheet that shows what the network makes of photographs N×3×H×W."""
        ...


class FixedStylesTask:
    """A network of one or several given styles, a row of its norms for each (Johnson 2016; Dumoulin 2017)."""

    def __init__(self, plan: TrainingPlan, photos: PhotoDataset, model: Model) -> None:
        self.plan, self.photos, self.data_fingerprint = plan, photos, ""
        layers = choose_perceptual_layers(model)
        styles = [read_style_image(path, plan.style_size) for path in plan.styles]
        if not styles:
            raise SightlineError("a style network needs at least one style image")
        if plan.norm != "conditional" and len(styles) > 1:
            raise SightlineError(
                f"norm is {plan.norm!r} and has room for one style, not {len(styles)}; conditional holds many"
            )
        for path, style in zip(plan.styles, styles, strict=True):
            check_style_size(style, model, layers.style[-1], path.name)
        self.perceptual_loss = PerceptualLoss(
            model,
            layers,
            styles,
            photos.draw_batch(plan.seed, -1 % 2**32, 16, plan.size).to(model.device),
        )
        self.network, self.style_names, self.frozen_style_count = self.build_initial_network()

    def build_initial_network(self) -> tuple[Stylizer, tuple[str, ...], int]:
        """The network at its start, the names of its styles, and how many of them are not to be trained."""
        plan, names = self.plan, tuple(path.stem for path in self.plan.styles)
        if plan.extend is None:
            norm: Any = plan.norm
            return (
                make_stylizer(
                    plan.seed, len(names), width=plan.width, blocks=plan.blocks, norm=norm
                ),
                names,
                0,
            )
        found = read_fixed_style_network(plan.extend)
        return extend_stylizer(found.network, len(names)), (*found.names, *names), len(found.names)

    def compute_losses(
        self, wrapped_network: Any, step: int, own_slice: slice
    ) -> dict[str, Tensor]:
        plan, device = self.plan, self.perceptual_loss.model.device
        style = (torch.arange(plan.batch) + step * plan.batch)[own_slice].to(device) % len(
            plan.styles
        )
        photo = self.photos.draw_batch(plan.seed, step, plan.batch, plan.size)[own_slice].to(device)
        made = wrapped_network(photo, self.network.make_one_hot(style + self.frozen_style_count))
        terms = self.perceptual_loss.compute_terms(
            crop_by_step(made, step), crop_by_step(photo, step), style
        )
        loss = (
            plan.content_weight * terms.content
            + plan.style_weight * terms.style
            + plan.tv_weight * terms.total_variation
        )
        return {
            "loss": loss,
            "content": terms.content,
            "style": terms.style,
            "tv": terms.total_variation,
        }

    def write_network(self, path: Path, step: int) -> None:
        write_fixed_style_network(
            self.network,
            self.style_names,
            path,
            {"step": step, "loss_network": self.perceptual_loss.model.name, "size": self.plan.size},
        )

    def make_sample_sheet(self, photos: Tensor) -> Tensor:
        """Each row a photograph and the same in every style that is trained."""
        styles = range(self.frozen_style_count, len(self.style_names))
        rows = [
            self.network.make_one_hot(torch.full((len(photos),), style, device=photos.device))
            for style in styles
        ]
        return make_photo_sheet(photos, [self.network(photos, row) for row in rows])


def make_photo_sheet(photos: Tensor, variants: Sequence[Tensor]) -> Tensor:
    """A sheet with a row for each photograph and what was made of it."""
    return make_contact_sheet(
        torch.stack([photos, *variants], 1).flatten(0, 1).cpu(), columns=1 + len(variants)
    )


def crop_by_step(image: Tensor, step: int, stride: int = STYLIZER_STRIDE) -> Tensor:
    """A crop that moves from step to step: both networks have strides, and where their grids always met a pattern of that period would grow."""
    y, x = step % stride, step // stride % stride
    return image[..., y : y + image.shape[-2] - stride + 1, x : x + image.shape[-1] - stride + 1]


def read_style_image(path: Path, size: int) -> Tensor:
    """A style image whose short side has `size` pixels; a smaller one stays as it is."""
    return limit_short_side(read_file_or_sample(path), size)


def extend_stylizer(network: Stylizer, extra_styles: int) -> Stylizer:
    """The network with rows for more styles, which start as the mean of the old ones. Only norms are to be trained: gradients
    reach the rows in use alone."""
    if network.norm_kind != "conditional":
        raise SightlineError(
            f"this style network has {network.norm_kind} norm and one style; only a conditional one takes more"
        )
    larger = make_stylizer(
        0,
        network.style_count + extra_styles,
        width=network.width,
        blocks=network.blocks,
        norm="conditional",
    )
    state = {
        name: append_mean_rows(value, extra_styles) if ".norm." in name else value
        for name, value in network.state_dict().items()
    }
    larger.load_state_dict(state)
    for module in larger.modules():
        if not isinstance(module, ConditionalInstanceNorm):
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
    return larger


def append_mean_rows(table: Tensor, extra_rows: int) -> Tensor:
    return torch.cat([table, table.mean(0, keepdim=True).expand(extra_rows, -1)])
