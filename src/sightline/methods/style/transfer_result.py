"""What comes out of a style transfer: its losses, the values of the result, figure and caption."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sightline.images.plotting.maps import arrange_in_row
from sightline.images.transforms import crop_center
from sightline.methods.style.setup import StyleLossBuilder
from sightline.optim.multiscale import CoarseToFineResult
from sightline.optim.perceptual.losses import StyleDistanceKind
from sightline.optim.perceptual.transfer_loss import measure_content_losses, measure_style_losses

DISTANCE_NAMES: dict[StyleDistanceKind, str] = {
    "gram": "Gatys' E",
    "w2": "Wasserstein distance",
    "sliced": "sliced distance",
}


@dataclass(frozen=True)
class StyleTransfer:
    """One optimized image, before the photograph's colours are restored, with its losses.

    Attributes:
        run: The image and the scores of the optimization.
        stage_count: How many sizes it went through.
        tile_side: Side of the tiles in pixels, None for one piece.
        style_losses: By layer the distance to the style, and the preset's authors' number.
        content_losses: By layer the mean squared difference to the photograph.
    """

    run: CoarseToFineResult
    stage_count: int
    tile_side: int | None
    style_losses: dict[str, tuple[float, float]]
    content_losses: dict[str, float]


def measure_transfer(
    builder: StyleLossBuilder, run: CoarseToFineResult, stage_count: int, tile_side: int | None
) -> StyleTransfer:
    """Measures the losses of an optimized image."""
    image = run.image
    transfer_loss = builder.get_loss((image.shape[2], image.shape[3]))
    distances = measure_style_losses(transfer_loss, builder.model, image, tile_side)
    pairs = builder.preset.pair_losses(list(distances.values()), builder.list_channels())
    return StyleTransfer(
        run,
        stage_count,
        tile_side,
        style_losses=dict(zip(distances, pairs, strict=True)),
        content_losses=measure_content_losses(transfer_loss, builder.model, image, tile_side),
    )


def collect_values(
    result_images: Tensor, first_transfer: StyleTransfer, notes: list[str]
) -> dict[str, Any]:
    """The values of the method's result."""
    return {
        "image": result_images,
        "scores": torch.tensor(first_transfer.run.scores),
        "work": first_transfer.run.weighted_evaluations,
        "notes": notes,
        "style_losses": {name: list(pair) for name, pair in first_transfer.style_losses.items()},
        "content_losses": first_transfer.content_losses,
        "tile": first_transfer.tile_side,
    }


def make_transfer_figure(
    image: Tensor, style_images: Sequence[Tensor], result_images: Tensor
) -> Tensor:
    """A row of the first photograph, the styles, and the first result."""
    panels = [crop_style_for_figure(style_image) for style_image in style_images]
    return arrange_in_row(image[:1].cpu(), *panels, result_images[:1])


def crop_style_for_figure(style_image: Tensor) -> Tensor:
    """The middle of a style, at most twice as wide as high and twice as high as wide."""
    height, width = style_image.shape[-2:]
    return crop_center(style_image, min(height, 2 * width), min(width, 2 * height))


def describe_style_transfer(
    transfer: StyleTransfer, kind: StyleDistanceKind, notes: Sequence[str]
) -> str:
    """The caption: what the figure shows, the losses, and warnings."""
    step_count = len(transfer.run.scores)
    sizes = f"{transfer.stage_count} sizes" if transfer.stage_count > 1 else "one size"
    sentences = [f"The photograph, the style, and the result after {step_count} steps at {sizes}."]

    content_losses = transfer.content_losses
    if content_losses:
        mean_loss = sum(content_losses.values()) / len(content_losses)
        layer_names = ", ".join(content_losses)
        sentences.append(f"Mean squared content difference {mean_loss:.3g} at {layer_names}.")

    distances: list[str] = []
    authors_losses: list[float] = []
    for name, (distance, authors_loss) in transfer.style_losses.items():
        distances.append(f"{name} {distance:.2g}")
        authors_losses.append(authors_loss)
    sentences.append(
        f"{DISTANCE_NAMES[kind]} by layer: {', '.join(distances)};"
        f" in total {math.fsum(authors_losses):.3g} as the preset's authors count."
    )
    if transfer.tile_side is not None:
        sentences.append(f"In tiles of {transfer.tile_side} pixels.")
    return " ".join([*sentences, *notes])
