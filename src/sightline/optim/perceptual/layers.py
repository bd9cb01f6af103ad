"""Which layers of a network carry content and style."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sightline.errors import SightlineError
from sightline.images.io import limit_short_side
from sightline.models.model import Model
from sightline.models.preprocessing import format_rounded_values

# Variances of the first layer's answers, beside those of training. The wrong scale of published networks is 57 (or 255) in deviations.
MAX_VARIANCE_RATIO = 100.0

FLAT_PICTURE_DEVIATION = (
    0.05  # standard deviation of a picture below which a weak answer says nothing
)

# ── which network, which layers ──


@torch.no_grad()
def refuse_wrong_input_scale(model: Model, picture: Tensor) -> None:
    """Raises SightlineError where the first convolution answers a picture N×3×H×W ten times as strongly as in training, or a tenth,
    by the batch norm behind it."""
    names = list(model.layers)
    first = next((name for name in names if isinstance(model.module(name), nn.Conv2d)), None)
    norm = model.module(names[names.index(first) + 1]) if first and first != names[-1] else None
    if (
        first is None
        or not isinstance(norm, nn.BatchNorm2d)
        or norm.running_var is None
        or norm.running_mean is None
    ):
        return
    if not norm.running_mean.any() and bool((norm.running_var == 1).all()):
        return  # never trained, or folded into the convolution
    seen = model.run(limit_short_side(picture, 2 * model.size).to(model.device), [first])[
        first
    ].float()
    if seen.shape[1] != len(norm.running_var):
        return
    live = norm.running_var > 1e-3 * norm.running_var.max()
    ratio = float((seen.var((0, 2, 3))[live] / norm.running_var[live]).median())
    if ratio > MAX_VARIANCE_RATIO or (
        ratio < 1 / MAX_VARIANCE_RATIO and float(picture.std()) > FLAT_PICTURE_DEVIATION
    ):
        raise SightlineError(
            f"{model.name} was trained on pictures of another scale: its first layer answers this one {ratio**0.5:.2g} times as strongly as "
            f"in training; its mean is {format_rounded_values(model.mean.flatten().tolist())} and its std {format_rounded_values(model.std.flatten().tolist())}: "
            "load it with the mean= and std= of its training"
        )


@dataclass(frozen=True)
class PerceptualLayers:
    """Where content and style are read."""

    content: tuple[str, ...]
    style: tuple[str, ...]


# By a layer that only this family has.
FAMILY_LAYERS = (
    PerceptualLayers(
        ("relu4_2",), ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
    ),  # VGG: Gatys 2016, after the ReLU as in his code
    PerceptualLayers(
        ("fire4",), ("relu1", "fire3", "fire5", "fire7", "fire9")
    ),  # SqueezeNet: the set with the longest strokes of four tried
    PerceptualLayers(
        ("relu3_1",), ("relu1", "relu2_1", "relu3_1", "relu4_1")
    ),  # the embedded network
)


def choose_perceptual_layers(model: Model) -> PerceptualLayers:
    """The layers tuned for this family of networks; for any other, one of each resolution, and the middle one for content."""
    for family in FAMILY_LAYERS:
        if all(
            name in model.layers or name in model.aliases
            for name in (*family.content, *family.style)
        ):
            return family
    by_size: dict[int, str] = {}
    for layer in model.layers.values():
        if layer.is_spatial:
            by_size[layer.shape[1]] = layer.name
    if not by_size:
        raise SightlineError(
            f"{model.name} has no layer with places; style and content need a convolutional network"
        )
    chosen = tuple(by_size.values())[:5]
    return PerceptualLayers((chosen[len(chosen) // 2],), chosen)
