"""Intermediate features by gradient, deconvnet and guided backpropagation (Zeiler & Fergus 2014; Springenberg 2015)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.errors import SightlineError
from sightline.images.plotting.maps import (
    arrange_in_row,
    compute_quantile,
    draw_box_outline,
    find_gradient_limit,
    make_contact_sheet,
    render_around_gray,
)
from sightline.models.model import Model
from sightline.models.outputs import differentiate_scores, reshape_to_unit_grid
from sightline.models.overrides.relu import BackwardRule, backward
from sightline.models.tracing.batch_size import choose_batch_size
from sightline.models.tracing.crops import (
    PixelBox,
    crop_padded_window,
    find_receptive_box,
    find_receptive_window,
    resize_for_sheet,
)
from sightline.registry.method import AttributionSpec, register_method
from sightline.registry.parameter import ValueRange
from sightline.registry.result import Result

BACKWARD_RULES = ("gradient", "deconvnet", "guided")

NeuronPositions = tuple[Tensor, Tensor, Tensor]  # unit, row and column of neurons


@dataclass(frozen=True)
class NeuronGradients:
    """Gradients N×3×H×W of one neuron of each image, which neuron (N each), how strong it is, and how many ReLUs were met."""

    gradient: Tensor
    unit: Tensor
    row: Tensor
    column: Tensor
    activation: Tensor
    relus: int


@register_method(
    chapter="analytical",
    title="Guided backpropagation",
    question="What in the image makes one neuron fire?",
    reading="Left, the part of the image that the neuron can see; right of it the image's pixels that push the neuron up, with negative influences held back at "
    "every ReLU. Shapes that stand out are what this neuron answers to here. Of several neurons each has its part on the left sheet and its map in the same "
    "place on the right one.",
    caution="Guided backpropagation draws image edges almost whatever the network has learned (Adebayo 2018; Nie 2018): read it as a picture of what the "
    "neuron sees, not as evidence for a class.",
    tour_runs=({}, {"k": 9, "layer": "middle"}),
    # It explains a neuron; the class score is one.
    attribution=AttributionSpec(
        "gradient",
        "rule",
        "unit",
        gradient_kinds=BACKWARD_RULES,
        magnitude_kinds=BACKWARD_RULES,
        test_parameters={"layer": "logits", "k": 1},
    ),
)
def guided(
    model: Model,
    image: Tensor,
    *,
    layer: str = "middle",
    unit: Annotated[int | None, ValueRange(0, 1_000_000)] = None,
    rule: Literal["gradient", "deconvnet", "guided"] = "guided",
    k: Annotated[int, ValueRange(1, 64)] = 1,
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
        raise SightlineError(
            f"k is {k} and unit is {unit}; a unit is shown at its one strongest position: leave out k or unit"
        )
    if k == 1:
        sent = backpropagate_chosen_neurons(
            model,
            image,
            name,
            rule,
            lambda maps: select_first_neurons(find_strongest_neurons(maps, unit, 1, layer)),
        )
        panel, caption = draw_single_neuron(model, image, layer, rule, sent)
    else:
        sent = backpropagate_strongest_neurons(model, image, name, rule, k)
        panel, caption = draw_several_neurons(model, image, layer, rule, sent)
    if not sent.relus:
        caption += (
            " No ReLU lies between the image and this layer, so every rule is the plain gradient."
        )
    return Result({"guided": panel}, vars(sent), {"guided": caption})


# ── which neurons, and their gradients ──


def find_strongest_neurons(maps: Tensor, unit: int | None, k: int, layer: str) -> NeuronPositions:
    """Unit, row and column, N×k each, of the k units that are strongest somewhere in N×units×rows×columns, or of the unit."""
    if unit is not None and unit >= maps.shape[1]:
        raise SightlineError(f"unit is {unit}; {layer} has units 0 to {maps.shape[1] - 1}")
    peak, at = maps.flatten(2).max(2)
    channel = (
        peak.argsort(dim=1, descending=True, stable=True)[:, :k]
        if unit is None
        else torch.full_like(at[:, :1], unit)
    )
    at = at.gather(1, channel)
    return channel, at // maps.shape[3], at % maps.shape[3]


def select_first_neurons(neurons: NeuronPositions) -> NeuronPositions:
    """The strongest of N×k places, N."""
    unit, row, column = (value[:, 0] for value in neurons)
    return unit, row, column


def backpropagate_chosen_neurons(
    model: Model,
    image: Tensor,
    layer: str,
    rule: BackwardRule,
    choose_neurons: Callable[[Tensor], NeuronPositions],
) -> NeuronGradients:
    """The gradient of one neuron of each image, which `choose` takes from the layer's maps."""
    with torch.enable_grad(), backward(rule) as met:
        leaf = image.to(model.device).detach().requires_grad_()
        maps = reshape_to_unit_grid(model.run(leaf, [layer])[layer], image)
        unit, row, column = choose_neurons(maps.detach())
        activation = maps[torch.arange(len(maps), device=maps.device), unit, row, column]
        gradient = differentiate_scores(activation, leaf, "the image").cpu()
    return NeuronGradients(
        gradient, unit.cpu(), row.cpu(), column.cpu(), activation.detach().cpu(), met.count
    )


def backpropagate_strongest_neurons(
    model: Model, image: Tensor, layer: str, rule: BackwardRule, k: int
) -> NeuronGradients:
    """The same of the k strongest neurons of each image, with an axis of k after the first: a copy of the image for each."""
    with torch.no_grad():
        unit, row, column = find_strongest_neurons(
            reshape_to_unit_grid(model.run(image.to(model.device), [layer])[layer], image),
            None,
            k,
            layer,
        )
    count = unit.shape[1]
    places = (unit.flatten(), row.flatten(), column.flatten())
    sent = backpropagate_given_neurons(
        model, image.repeat_interleave(count, 0), layer, rule, places
    )

    def each(value: Tensor) -> Tensor:
        return value.unflatten(0, (len(image), count))

    return NeuronGradients(
        each(sent.gradient),
        each(sent.unit),
        each(sent.row),
        each(sent.column),
        each(sent.activation),
        sent.relus,
    )


def backpropagate_given_neurons(
    model: Model, image: Tensor, layer: str, rule: BackwardRule, neurons: NeuronPositions
) -> NeuronGradients:
    """The gradient of the neuron of each image that is named for it. Images whose features would not fit into about a gigabyte, or of which fewer at once are faster, are sent in turns."""
    batch = choose_batch_size(model, image)
    chosen = zip(*(at.to(model.device).split(batch) for at in neurons), strict=True)
    parts = [
        backpropagate_chosen_neurons(model, some, layer, rule, lambda _maps, at=at: at)
        for some, at in zip(image.split(batch), chosen, strict=True)
    ]

    def joined(part: Callable[[NeuronGradients], Tensor]) -> Tensor:
        return torch.cat([part(sent) for sent in parts])

    unit, row, column = (at.cpu() for at in neurons)
    return NeuronGradients(
        joined(lambda s: s.gradient),
        unit,
        row,
        column,
        joined(lambda s: s.activation),
        parts[0].relus,
    )


# ── pictures ──


def draw_single_neuron(
    model: Model, image: Tensor, layer: str, rule: BackwardRule, gradients: NeuronGradients
) -> tuple[Tensor, str]:
    """A row for each image: the image outlined, the part that the neuron sees, and its map; and the caption."""
    boxes = [
        find_receptive_box(model, layer, int(y), int(x), image)
        for y, x in zip(gradients.row, gradients.column, strict=True)
    ]
    rows = [
        draw_neuron_row(image[i : i + 1], gradients.gradient[i : i + 1], box)
        for i, box in enumerate(boxes)
    ]
    width = max(row.shape[3] for row in rows)
    top, left, bottom, right = boxes[0]
    caption = (
        f"Image with the {bottom - top}×{right - left} pixels that the neuron sees outlined, that part enlarged, and its {rule} map: unit "
        f"{int(gradients.unit[0])} of {layer} at row {int(gradients.row[0])}, column {int(gradients.column[0])}, activation {float(gradients.activation[0]):.3g}. "
        "Gray is zero; full colour is the 99.5th percentile."
    )
    return rows[0] if len(rows) == 1 else make_contact_sheet(
        torch.cat([pad_row_to_width(row, width) for row in rows]), columns=1, gap=6
    ), caption


def draw_several_neurons(
    model: Model, image: Tensor, layer: str, rule: BackwardRule, gradients: NeuronGradients
) -> tuple[Tensor, str]:
    """A row for each image: a sheet of the parts that its neurons see beside a sheet of their maps on one scale; and the caption."""
    windows = [
        [
            find_receptive_window(model, layer, int(y), int(x), image)
            for y, x in zip(*at, strict=True)
        ]
        for at in zip(gradients.row, gradients.column, strict=True)
    ]
    limit = find_gradient_limit(gradients.gradient)
    rows: list[Tensor] = []
    for one, maps, boxes in zip(
        image,
        render_around_gray(gradients.gradient.flatten(0, 1), limit).view_as(gradients.gradient),
        windows,
        strict=True,
    ):
        parts = torch.cat([crop_padded_window(one[None], box) for box in boxes])
        colored = torch.cat(
            [crop_padded_window(map_[None], box) for map_, box in zip(maps, boxes, strict=True)]
        )
        rows.append(
            arrange_in_row(
                *(make_contact_sheet(resize_for_sheet(part)) for part in (parts, colored)), gap=12
            )
        )
    top, left, bottom, right = windows[0][0]
    units, (most, least) = (
        ", ".join(map(str, gradients.unit[0].tolist())),
        (float(gradients.activation[0, i]) for i in (0, -1)),
    )
    caption = (
        f"The {len(windows[0])} strongest neurons of {layer}, at most one of each unit, row by row from the strongest: units {units}, activation {most:.3g} "
        f"to {least:.3g}. Left the {bottom - top}×{right - left} pixels that each sees, gray beyond the image; right, in the same order, their {rule} maps, "
        f"all on one scale: gray is zero, full colour ±{limit:.3g}, the 99.5th percentile."
    )
    return make_contact_sheet(torch.cat(rows), columns=1, gap=12), caption


def draw_neuron_row(image: Tensor, gradient: Tensor, box: PixelBox) -> Tensor:
    """Outlined image, crop, and the crop of the map around gray."""
    top, left, bottom, right = box
    limit = float(compute_quantile(gradient.abs().flatten(), 0.995))
    colored = render_around_gray(gradient, limit)
    return arrange_in_row(
        draw_box_outline(image, box),
        image[:, :, top:bottom, left:right],
        colored[:, :, top:bottom, left:right],
    )


def pad_row_to_width(row: Tensor, width: int) -> Tensor:
    """White on the right up to `width`."""
    return F.pad(row, (0, width - row.shape[3]), value=1.0)
