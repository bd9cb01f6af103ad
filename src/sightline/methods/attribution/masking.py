"""What covers parts of an image: windows, fills, and the labels that are asked about."""

from typing import Literal

import torch
from torch import Tensor

from sightline.errors import SightlineError
from sightline.images.plotting.maps import arrange_in_row, overlay_heatmap, render_signed_map
from sightline.images.transforms import blur_image
from sightline.models.model import Model

FillKind = Literal["gray", "mean", "blur", "zero"]

LabelChoice = int | str | tuple[int | str, ...]

MAX_OCCLUSION_BATCH = 32  # images run at once: more make no faster


def make_fill_images(image: Tensor, fill: float | str, window: int) -> Tensor:
    """What covers, N×3×H×W. Raises SightlineError for a word that is not a fill."""
    if isinstance(fill, (int, float)) and not isinstance(fill, bool):
        return torch.full_like(image, fill)
    plain = {"gray": 0.5, "zero": 0.0}
    if fill in plain:
        return torch.full_like(image, plain[fill])
    if fill == "mean":
        return image.mean((2, 3), keepdim=True).expand_as(image)
    if fill == "blur":
        return blur_image(image, window / 2)
    raise SightlineError(
        f"fill is {fill!r}; it must be a number from 0 to 1, gray, mean, blur or zero"
    )


def choose_class_indices(model: Model, label: LabelChoice, image: Tensor) -> Tensor:
    """Class indices N×L of one label or of several. Raises SightlineError for none."""
    labels = label if isinstance(label, (tuple, list)) else (label,)
    if not labels:
        raise SightlineError("label is an empty list; give one class or more")
    return torch.stack([model.choose(one, image) for one in labels], 1)


def draw_score_panel(image: Tensor, attributions: Tensor, scores: Tensor) -> tuple[Tensor, float]:
    """The image and its signed maps N×L×H×W on one scale for each image, one map also over the image; where the first scale ends.

    What is left of `scores`, N×L, that nothing changes is rounding; it is not stretched to full colour.
    """
    limit = torch.maximum(
        attributions.abs().flatten(1).amax(1), 1e-5 * scores.abs().amax(1).clamp_min(1)
    )
    shown = [render_signed_map(attributions[:, i], limit) for i in range(attributions.shape[1])]
    if len(shown) == 1:
        shown.append(overlay_heatmap(image, attributions[:, 0].clamp_min(0), limit))
    return arrange_in_row(image, *shown), float(limit[0])
