"""Intermediate features by gradient, deconvnet and guided backpropagation (Zeiler & Fergus 2014; Springenberg 2015)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ... import render, rules
from ...catalog import Map, method
from ...errors import SightlineError
from ...knobs import Between
from ...memory import worthwhile
from ...model import Model
from ...outputs import positions, slope
from ...receptive import receptive_field
from ...result import Result

RULES = ("gradient", "deconvnet", "guided")
Box = tuple[int, int, int, int]
Places = tuple[Tensor, Tensor, Tensor]  # unit, row and column of neurons

LEAST, MOST = 64, 144  # short side of a patch on a sheet, in pixels


@dataclass(frozen=True)
class Sent:
    """Gradients N×3×H×W of one neuron of each image, which neuron (N each), how strong it is, and how many ReLUs were met."""

    gradient: Tensor
    unit: Tensor
    row: Tensor
    column: Tensor
    activation: Tensor
    relus: int


@method(
    title="Guided backpropagation",
    question="What in the image makes one neuron fire?",
    reading="Left, the part of the image that the neuron can see; right of it the image's pixels that push the neuron up, with negative influences held back at "
    "every ReLU. Shapes that stand out are what this neuron answers to here. Of several neurons each has its part on the left sheet and its map in the same "
    "place on the right one.",
    caution="Guided backpropagation draws image edges almost whatever the network has learned (Adebayo 2018; Nie 2018): read it as a picture of what the "
    "neuron sees, not as evidence for a class.",
    tour=({}, {"k": 9, "layer": "middle"}),
    # It explains a neuron; the class score is one.
    map=Map("gradient", "rule", "unit", slopes=RULES, sizes=RULES, knobs={"layer": "logits", "k": 1}),
)
def guided(
    model: Model,
    image: Tensor,
    *,
    layer: str = "middle",
    unit: Annotated[int | None, Between(0, 1_000_000)] = None,
    rule: Literal["gradient", "deconvnet", "guided"] = "guided",
    k: Annotated[int, Between(1, 64)] = 1,
) -> Result:
    """Sends activations back to the pixels with a backward rule at every ReLU: of a layer's strongest neurons, or of a unit's strongest.

    `values["gradient"]` is N×3×H×W, signed and unscaled; `values["unit"]`, `["row"]`, `["column"]` say which neuron and
    `["activation"]` how strong it is, N each; `values["relus"]` how many ReLUs the rule met: without any, the three rules are the
    same. With k above 1 the tensors have one more axis after the first, of k neurons (or of all units if the layer has fewer),
    strongest first: N×k×3×H×W and N×k.

    Args:
        unit: Channel whose strongest position is taken; None for the strongest neuron of the whole layer.
        rule: "gradient" g·1[x>0], "deconvnet" g·1[g>0], "guided" both.
        k: How many neurons of the layer, at most one of each unit, each at the unit's strongest position; more than 1 leave no choice of unit.
    """
    name = model.layer(layer)
    if k > 1 and unit is not None:
        raise SightlineError(f"k is {k} and unit is {unit}; a unit is shown at its one strongest position: leave out k or unit")
    if k == 1:
        sent = sent_back(model, image, name, rule, lambda maps: first(strongest(maps, unit, 1, layer)))
        panel, caption = of_one(model, image, layer, rule, sent)
    else:
        sent = of_several(model, image, name, rule, k)
        panel, caption = of_many(model, image, layer, rule, sent)
    if not sent.relus:
        caption += " No ReLU lies between the image and this layer, so every rule is the plain gradient."
    return Result({"guided": panel}, vars(sent), {"guided": caption})


# ── which neurons, and their gradients ──


def strongest(maps: Tensor, unit: int | None, k: int, layer: str) -> Places:
    """Unit, row and column, N×k each, of the k units that are strongest somewhere in N×units×rows×columns, or of the unit."""
    if unit is not None and unit >= maps.shape[1]:
        raise SightlineError(f"unit is {unit}; {layer} has units 0 to {maps.shape[1] - 1}")
    peak, at = maps.flatten(2).max(2)
    channel = peak.argsort(dim=1, descending=True, stable=True)[:, :k] if unit is None else torch.full_like(at[:, :1], unit)
    at = at.gather(1, channel)
    return channel, at // maps.shape[3], at % maps.shape[3]


def first(places: Places) -> Places:
    """The strongest of N×k places, N."""
    unit, row, column = (value[:, 0] for value in places)
    return unit, row, column


def sent_back(model: Model, image: Tensor, name: str, rule: rules.Rule, choose: Callable[[Tensor], Places]) -> Sent:
    """The gradient of one neuron of each image, which `choose` takes from the layer's maps."""
    with torch.enable_grad(), rules.backward(rule) as met:
        leaf = image.to(model.device).detach().requires_grad_()
        maps = positions(model.run(leaf, [name])[name], image)
        unit, row, column = choose(maps.detach())
        activation = maps[torch.arange(len(maps), device=maps.device), unit, row, column]
        gradient = slope(activation, leaf, "the image").cpu()
    return Sent(gradient, unit.cpu(), row.cpu(), column.cpu(), activation.detach().cpu(), met.count)


def of_several(model: Model, image: Tensor, name: str, rule: rules.Rule, k: int) -> Sent:
    """The same of the k strongest neurons of each image, with an axis of k after the first: a copy of the image for each."""
    with torch.no_grad():
        unit, row, column = strongest(positions(model.run(image.to(model.device), [name])[name], image), None, k, name)
    count = unit.shape[1]
    places = (unit.flatten(), row.flatten(), column.flatten())
    sent = sent_to(model, image.repeat_interleave(count, 0), name, rule, places)

    def each(value: Tensor) -> Tensor:
        return value.unflatten(0, (len(image), count))

    return Sent(each(sent.gradient), each(sent.unit), each(sent.row), each(sent.column), each(sent.activation), sent.relus)


def sent_to(model: Model, image: Tensor, name: str, rule: rules.Rule, places: Places) -> Sent:
    """The gradient of the neuron of each image that is named for it. Images whose features would not fit into about a gigabyte, or of which fewer at once are faster, are sent in turns."""
    batch = worthwhile(model, image)
    chosen = zip(*(at.to(model.device).split(batch) for at in places), strict=True)
    parts = [sent_back(model, some, name, rule, lambda _maps, at=at: at) for some, at in zip(image.split(batch), chosen, strict=True)]

    def joined(part: Callable[[Sent], Tensor]) -> Tensor:
        return torch.cat([part(sent) for sent in parts])

    unit, row, column = (at.cpu() for at in places)
    return Sent(joined(lambda s: s.gradient), unit, row, column, joined(lambda s: s.activation), parts[0].relus)


# ── what they see ──


def field_of(model: Model, layer: str, row: int, column: int, image: Tensor) -> Box:
    """The pixels a neuron sees; the whole image where the layer has no places."""
    height, width = image.shape[-2:]
    try:
        return receptive_field(model, layer, height, width).box(row, column, height, width)
    except SightlineError:
        return 0, 0, height, width


def window_of(model: Model, layer: str, row: int, column: int, image: Tensor) -> Box:
    """The same, of one size for all neurons of a layer: it may reach beyond the image."""
    height, width = image.shape[-2:]
    try:
        return receptive_field(model, layer, height, width).window(row, column)
    except SightlineError:
        return 0, 0, height, width


def cropped(picture: Tensor, box: Box) -> Tensor:
    """The part of a picture in a window that may reach beyond it; there it is gray."""
    top, left, bottom, right = box
    height, width = picture.shape[-2:]
    above, before = max(-top, 0), max(-left, 0)
    large = F.pad(picture, (before, max(right - width, 0), above, max(bottom - height, 0)), value=render.GRAY)
    return large[:, :, top + above : bottom + above, left + before : right + before]


# ── pictures ──


def of_one(model: Model, image: Tensor, layer: str, rule: rules.Rule, sent: Sent) -> tuple[Tensor, str]:
    """A row for each image: the image outlined, the part that the neuron sees, and its map; and the caption."""
    boxes = [field_of(model, layer, int(y), int(x), image) for y, x in zip(sent.row, sent.column, strict=True)]
    rows = [picture(image[i : i + 1], sent.gradient[i : i + 1], box) for i, box in enumerate(boxes)]
    width = max(row.shape[3] for row in rows)
    top, left, bottom, right = boxes[0]
    caption = (
        f"Image with the {bottom - top}×{right - left} pixels that the neuron sees outlined, that part enlarged, and its {rule} map: unit "
        f"{int(sent.unit[0])} of {layer} at row {int(sent.row[0])}, column {int(sent.column[0])}, activation {float(sent.activation[0]):.3g}. "
        "Gray is zero; full colour is the 99.5th percentile."
    )
    return rows[0] if len(rows) == 1 else render.sheet(torch.cat([padded(row, width) for row in rows]), columns=1, gap=6), caption


def of_many(model: Model, image: Tensor, layer: str, rule: rules.Rule, sent: Sent) -> tuple[Tensor, str]:
    """A row for each image: a sheet of the parts that its neurons see beside a sheet of their maps on one scale; and the caption."""
    windows = [
        [window_of(model, layer, int(y), int(x), image) for y, x in zip(*at, strict=True)] for at in zip(sent.row, sent.column, strict=True)
    ]
    limit = scale(sent.gradient)
    rows: list[Tensor] = []
    for one, maps, boxes in zip(image, render.around_gray(sent.gradient.flatten(0, 1), limit).view_as(sent.gradient), windows, strict=True):
        parts = torch.cat([cropped(one[None], box) for box in boxes])
        colored = torch.cat([cropped(map_[None], box) for map_, box in zip(maps, boxes, strict=True)])
        rows.append(render.beside(*(render.sheet(sized(part)) for part in (parts, colored)), gap=12))
    top, left, bottom, right = windows[0][0]
    units, (most, least) = ", ".join(map(str, sent.unit[0].tolist())), (float(sent.activation[0, i]) for i in (0, -1))
    caption = (
        f"The {len(windows[0])} strongest neurons of {layer}, at most one of each unit, row by row from the strongest: units {units}, activation {most:.3g} "
        f"to {least:.3g}. Left the {bottom - top}×{right - left} pixels that each sees, gray beyond the image; right, in the same order, their {rule} maps, "
        f"all on one scale: gray is zero, full colour ±{limit:.3g}, the 99.5th percentile."
    )
    return render.sheet(torch.cat(rows), columns=1, gap=12), caption


def scale(gradient: Tensor) -> float:
    """The 99.5th percentile of the magnitudes that are not zero: most of an image lies outside what a neuron sees."""
    magnitude = gradient.abs().flatten()
    magnitude = magnitude[magnitude > 0]
    return float(render.quantile(magnitude, 0.995)) if len(magnitude) else 1.0


def sized(pictures: Tensor) -> Tensor:
    """Pictures of a size that a sheet of them can be looked at."""
    pictures = render.enlarge(pictures.detach().cpu(), LEAST)
    height, width = pictures.shape[-2:]
    share = min(1, MOST / min(height, width))
    return render.resized(pictures, round(height * share), round(width * share))


def picture(image: Tensor, gradient: Tensor, box: Box) -> Tensor:
    """Outlined image, crop, and the crop of the map around gray."""
    top, left, bottom, right = box
    limit = float(render.quantile(gradient.abs().flatten(), 0.995))
    colored = render.around_gray(gradient, limit)
    return render.beside(render.outline(image, box), image[:, :, top:bottom, left:right], colored[:, :, top:bottom, left:right])


def padded(picture: Tensor, width: int) -> Tensor:
    """White on the right up to `width`."""
    return F.pad(picture, (0, width - picture.shape[3]), value=1.0)
