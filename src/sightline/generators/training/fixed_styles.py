"""The plan of a training, the interface of a task, and the task for a fixed set of styles."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn

from sightline.errors import SightlineError, escape_for_display
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
from sightline.generators.training.resume import digest_file
from sightline.images.io.pictures import read_file_or_sample
from sightline.images.plotting.maps import make_contact_sheet
from sightline.images.transforms import limit_short_side
from sightline.models.model import Model
from sightline.optim.perceptual.layers import choose_perceptual_layers

UNIT_SAMPLE_SIZE = 16

# The step number of that sample's batch: no training gets that far.
UNIT_SAMPLE_STEP = 2**32 - 1


@dataclass(frozen=True)
class TrainingPlan:
    """What is trained, on which style images, and how.

    `extend` names a style network that gets the styles as new rows; everything else in it stays
    fixed. With `norm` "adaptive" the style images are examples of any style, and `width` and
    `blocks` are not used. `size` is the side of the training crops and `style_size` the short side
    of the style images, in pixels; `every` is the number of steps between checkpoints.
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
    """A network with its losses.

    `model` is the loss network. `data_digests` tells by name what else it uses beside the
    photographs, such as style pictures, from other data of that name.
    """

    model: Model
    data_digests: dict[str, str]

    @property
    def network(self) -> nn.Module:
        """The network that is trained."""
        ...

    def compute_losses(
        self, wrapped_network: Any, step: int, own_slice: slice
    ) -> dict[str, Tensor]:
        """The losses of this process's slice of a step's batch, N each.

        "loss" is minimized; the others are its terms. `wrapped_network` is `network` as Fabric set
        it up.
        """
        ...

    def write_network(self, path: Path, step: int) -> None:
        """Writes the network as a file that `sightline stylizer apply` takes."""
        ...

    def make_sample_sheet(self, photos: Tensor) -> Tensor:
        """A figure of what the network makes of photographs N×3×H×W: 1×3×H'×W'."""
        ...


class FixedStylesTask:
    """Trains a network for a fixed set of styles (Johnson 2016).

    Each style has its own rows in the norms (Dumoulin 2017).
    """

    def __init__(self, plan: TrainingPlan, photos: PhotoDataset, model: Model) -> None:
        self.plan = plan
        self.photos = photos
        self.model = model
        layers = choose_perceptual_layers(model)
        styles = [read_style_image(path, plan.style_size) for path in plan.styles]
        if not styles:
            raise SightlineError("a style network needs at least one style image")
        if plan.norm != "conditional" and len(styles) > 1:
            raise SightlineError(
                f"norm is {plan.norm!r} and has room for one style, not {len(styles)};"
                " conditional holds many"
            )
        for path, style in zip(plan.styles, styles, strict=True):
            check_style_size(style, model, layers.style[-1], path.name)

        sample = draw_unit_sample(photos, plan).to(model.device)
        self.perceptual_loss = PerceptualLoss(model, layers, styles, sample)
        self.network, self.style_names, self.frozen_style_count = self.build_initial_network()
        self.data_digests = digest_fixed_styles(plan)

    def build_initial_network(self) -> tuple[Stylizer, tuple[str, ...], int]:
        """The untrained network, its styles' names, and how many of the first are not trained."""
        plan = self.plan
        names = tuple(path.stem for path in plan.styles)
        base = None if plan.extend is None else read_fixed_style_network(plan.extend)
        refuse_equal_names(plan.styles, () if base is None else base.names)
        if base is None:
            norm = cast(NormKind, plan.norm)
            network = make_stylizer(
                plan.seed, len(names), width=plan.width, blocks=plan.blocks, norm=norm
            )
            return network, names, 0
        network = extend_stylizer(base.network, len(names))
        return network, (*base.names, *names), len(base.names)

    def compute_losses(
        self, wrapped_network: Any, step: int, own_slice: slice
    ) -> dict[str, Tensor]:
        """The losses of this process's slice of the batch, N each. The styles take turns."""
        plan = self.plan
        device = self.perceptual_loss.model.device
        image_numbers = torch.arange(plan.batch) + step * plan.batch
        style = image_numbers[own_slice].to(device) % len(plan.styles)
        photos = self.photos.draw_batch(plan.seed, step, plan.batch, plan.size)
        photo = photos[own_slice].to(device)
        mix = self.network.make_one_hot(style + self.frozen_style_count)
        stylized = wrapped_network(photo, mix)

        terms = self.perceptual_loss.compute_terms(
            crop_by_step(stylized, step), crop_by_step(photo, step), style
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
        metadata = {
            "step": step,
            "loss_network": self.model.name,
            "size": self.plan.size,
        }
        write_fixed_style_network(self.network, self.style_names, path, metadata)

    def make_sample_sheet(self, photos: Tensor) -> Tensor:
        """Each row shows a photograph, and the same in every style that is trained."""
        variants: list[Tensor] = []
        for style in range(self.frozen_style_count, len(self.style_names)):
            styles = torch.full((len(photos),), style, device=photos.device)
            mix = self.network.make_one_hot(styles)
            variants.append(self.network(photos, mix))
        return make_photo_sheet(photos, variants)


def refuse_equal_names(styles: Sequence[Path], present_names: Sequence[str]) -> None:
    """Raises SightlineError where two styles of one network would have the same name.

    A style is named after its file. `present_names` are those of the network that is extended.
    """
    counts = Counter(path.stem for path in styles)
    counts.update(present_names)
    for path in styles:
        if counts[path.stem] > 1:
            namesakes = [
                str(style) for style in styles if style.stem == path.stem and style != path
            ]
            place = namesakes[0] if namesakes else "a style that is already in the network"
            raise SightlineError(
                f"{escape_for_display(str(path))} and {escape_for_display(place)} would both be"
                f" named {escape_for_display(path.stem)!r}; give each style a file name of its own"
            )


def digest_fixed_styles(plan: TrainingPlan) -> dict[str, str]:
    """Digests of the style pictures, and of the network that gets their rows."""
    digests = {f"style picture {path.name}": digest_file(path) for path in plan.styles}
    if plan.extend is not None:
        digests["network to extend"] = digest_file(plan.extend)
    return digests


def draw_unit_sample(photos: PhotoDataset, plan: TrainingPlan) -> Tensor:
    """Photographs that set the units of the losses, 16×3×size×size in [0, 1]."""
    return photos.draw_batch(plan.seed, UNIT_SAMPLE_STEP, UNIT_SAMPLE_SIZE, plan.size)


def make_photo_sheet(photos: Tensor, variants: Sequence[Tensor]) -> Tensor:
    """A figure with a row for each photograph: the photograph, then its variants, N×3×H×W each."""
    rows = torch.stack([photos, *variants], 1)
    return make_contact_sheet(rows.flatten(0, 1).cpu(), columns=1 + len(variants))


def crop_by_step(image: Tensor, step: int, stride: int = STYLIZER_STRIDE) -> Tensor:
    """A crop N×C×(H - stride + 1)×(W - stride + 1) whose offset changes from step to step.

    Both networks have strides. Where their grids always met, a pattern of that period would grow.
    """
    height, width = image.shape[-2:]
    cropped_height = height - stride + 1
    cropped_width = width - stride + 1

    top = step % stride
    left = step // stride % stride
    return image[..., top : top + cropped_height, left : left + cropped_width]


def read_style_image(path: Path, size: int) -> Tensor:
    """Reads a style image 1×3×H×W, reduced to a short side of `size` pixels if it has more."""
    return limit_short_side(read_file_or_sample(path), size)


def extend_stylizer(network: Stylizer, extra_styles: int) -> Stylizer:
    """A network with rows for more styles, which start as the mean of the present rows.

    Only the norms are left to be trained; gradients reach only the rows in use.
    """
    if network.norm_kind != "conditional":
        raise SightlineError(
            f"this style network has {network.norm_kind} norm and one style;"
            " only a conditional one takes more"
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
        if isinstance(module, ConditionalInstanceNorm):
            continue
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)
    return larger


def append_mean_rows(table: Tensor, extra_rows: int) -> Tensor:
    mean_row = table.mean(0, keepdim=True)
    return torch.cat([table, mean_row.expand(extra_rows, -1)])
