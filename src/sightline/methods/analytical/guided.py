"""Intermediate features by gradient, deconvnet and guided backpropagation (Zeiler & Fergus 2014; Springenberg 2015)."""

from typing import Annotated, Literal

import torch
from torch import Tensor

from ... import render, rules
from ...catalog import Between, method
from ...errors import SightlineError
from ...model import Model
from ...outputs import as_maps
from ...receptive import receptive_field
from ...result import Result


@method(
    title="Guided backpropagation",
    question="What in the image makes one neuron fire?",
    reading="Left, the part of the image that the neuron can see; right of it the image's pixels that push the neuron up, with negative influences held back at "
    "every ReLU. Shapes that stand out are what this neuron answers to here.",
    caution="Guided backpropagation draws image edges almost whatever the network has learned (Adebayo 2018; Nie 2018): read it as a picture of what the "
    "neuron sees, not as evidence for a class.",
)
def guided(
    model: Model,
    image: Tensor,
    *,
    layer: str = "middle",
    unit: Annotated[int | None, Between(0, 1_000_000)] = None,
    rule: Literal["gradient", "deconvnet", "guided"] = "guided",
) -> Result:
    """Sends one neuron's activation back to the pixels with a backward rule at every ReLU: the layer's strongest neuron, or a unit's.

    `values["gradient"]` is N×3×H×W, signed and unscaled; `values["unit"]`, `["row"]`, `["column"]` say which neuron, N each;
    `values["relus"]` how many ReLUs the rule met: without any, the three rules are the same.

    Args:
        unit: Channel whose strongest position is taken; None for the strongest neuron of the whole layer.
        rule: "gradient" g·1[x>0], "deconvnet" g·1[g>0], "guided" both.
    """
    name = model.layer(layer)
    with torch.enable_grad(), rules.backward(rule) as met:
        leaf = image.to(model.device).detach().requires_grad_()
        maps = positions(model.run(leaf, [name])[name], image)
        if unit is not None and unit >= maps.shape[1]:
            raise SightlineError(f"unit is {unit}; {layer} has units 0 to {maps.shape[1] - 1}")
        candidates = maps if unit is None else maps[:, unit : unit + 1]
        strongest, at = candidates.flatten(1).max(1)
        gradient = torch.autograd.grad(strongest.sum(), leaf)[0].cpu()
    strongest = strongest.detach().cpu()
    channel, row, column = torch.unravel_index(at.cpu(), tuple(candidates.shape[1:]))
    if unit is not None:
        channel = torch.full_like(channel, unit)
    boxes = [field_of(model, layer, int(y), int(x), image) for y, x in zip(row, column, strict=True)]
    rows = [picture(image[i : i + 1], gradient[i : i + 1], box) for i, box in enumerate(boxes)]
    width = max(row.shape[3] for row in rows)
    panel = render.sheet(torch.cat([padded(row, width) for row in rows]), columns=1, gap=6)
    top, left, bottom, right = boxes[0]
    caption = (
        f"Image with the {bottom - top}×{right - left} pixels that the neuron sees outlined, that part enlarged, and its {rule} map: unit {int(channel[0])} "
        f"of {layer} at row {int(row[0])}, column {int(column[0])}, activation {float(strongest[0]):.3g}. Gray is zero; full colour is the 99.5th percentile."
    )
    if not met.count:
        caption += " This network has no ReLU, so every rule is the plain gradient."
    values = {"gradient": gradient, "unit": channel, "row": row, "column": column, "activation": strongest, "relus": met.count}
    return Result({"guided": panel}, values, {"guided": caption})


def positions(feature: Tensor, image: Tensor) -> Tensor:
    """N×units×rows×columns; a vector has one position."""
    return feature[:, :, None, None] if feature.ndim == 2 else as_maps(feature, *image.shape[-2:])


def field_of(model: Model, layer: str, row: int, column: int, image: Tensor) -> tuple[int, int, int, int]:
    """The pixels a neuron sees; the whole image where the layer has no places."""
    height, width = image.shape[-2:]
    try:
        return receptive_field(model, layer, height, width).box(row, column, height, width)
    except SightlineError:
        return 0, 0, height, width


def picture(image: Tensor, gradient: Tensor, box: tuple[int, int, int, int]) -> Tensor:
    """Outlined image, crop, and the crop of the map around gray."""
    top, left, bottom, right = box
    limit = float(gradient.abs().flatten().quantile(0.995)) if gradient.numel() < 10_000_000 else float(gradient.abs().max())
    colored = render.around_gray(gradient, limit)
    return render.beside(render.outline(image, box), image[:, :, top:bottom, left:right], colored[:, :, top:bottom, left:right])


def padded(picture: Tensor, width: int) -> Tensor:
    """White on the right up to `width`."""
    return torch.nn.functional.pad(picture, (0, width - picture.shape[3]), value=1.0)
