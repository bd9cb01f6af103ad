"""What occlusion and RISE share: fills that hide pixels, class indices, and the figure."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from sightline.errors import SightlineError
from sightline.images.plotting.maps import arrange_in_row, overlay_signed_map, render_signed_map
from sightline.images.transforms import blur_image
from sightline.models.model import Model

FillKind = Literal["gray", "mean", "blur", "zero"]

FILL_GRAYS = {"gray": 0.5, "zero": 0.0}

LabelChoice = int | str | tuple[int | str, ...]


def make_fill_images(image: Tensor, fill: float | str, window: int) -> Tensor:
    """The pixels that replace hidden ones, N×3×H×W; `window` in pixels sets how far "blur" blurs.

    Raises SightlineError for a word that is not a FillKind.
    """
    if isinstance(fill, (int, float)) and not isinstance(fill, bool):
        return torch.full_like(image, fill)
    if fill in FILL_GRAYS:
        return torch.full_like(image, FILL_GRAYS[fill])
    if fill == "mean":
        return image.mean((2, 3), keepdim=True).expand_as(image)
    if fill == "blur":
        return blur_image(image, window / 2)
    raise SightlineError(
        f"fill is {fill!r}; it must be a number from 0 to 1, gray, mean, blur or zero"
    )


def choose_class_indices(
    model: Model, label: LabelChoice, image: Tensor, logits: Tensor | None = None
) -> Tensor:
    """Class indices N×L of one label or of L labels.

    For "top" the model is run unless its `logits` N×classes are given. Raises SightlineError as
    `check_labels`.
    """
    labels = list_label_choices(label)
    return torch.stack([model.choose(choice, image, logits) for choice in labels], 1)


def check_labels(model: Model, label: LabelChoice) -> None:
    """Raises SightlineError for an empty list and for unknown labels, without running the model."""
    for choice in list_label_choices(label):
        if choice != "top":
            model.index(choice)


def list_label_choices(label: LabelChoice) -> Sequence[int | str]:
    """One label, or a list of them, as a list. Raises SightlineError for an empty one."""
    labels = label if isinstance(label, (tuple, list)) else (label,)
    if not labels:
        raise SightlineError("label is an empty list; give one class or more")
    return labels


def squeeze_single_label(values: dict[str, Tensor], label: LabelChoice) -> dict[str, Tensor]:
    """Tensors N×L×… as they are for a list of labels, however short; as N×… for a single label."""
    if isinstance(label, (tuple, list)):
        return values
    return {name: value[:, 0] for name, value in values.items()}


def describe_score_panel(label: LabelChoice) -> str:
    """What `draw_score_panel` shows after the image and the first attribution, in words."""
    if isinstance(label, (tuple, list)):
        return "one attribution for each label"
    return "and their overlay"


def draw_score_panel(image: Tensor, attributions: Tensor, scores: Tensor) -> tuple[Tensor, float]:
    """The image and its signed attributions N×L×H×W in a row, with an overlay if L is 1.

    Each image has one colour scale for all of its labels. Also returns where the first image's
    scale ends. `scores` N×L are those of the unmasked image: attributions as small as their
    rounding errors are not stretched to full colour.
    """
    largest_score = scores.abs().amax(1)
    rounding_error = 1e-5 * largest_score.clamp_min(1)
    largest_attribution = attributions.abs().flatten(1).amax(1)
    limit = torch.maximum(largest_attribution, rounding_error)

    by_label = attributions.unbind(1)
    heatmaps = [render_signed_map(attribution, limit) for attribution in by_label]
    if len(by_label) == 1:
        heatmaps.append(overlay_signed_map(image, by_label[0], limit))
    return arrange_in_row(image, *heatmaps), float(limit[0])
