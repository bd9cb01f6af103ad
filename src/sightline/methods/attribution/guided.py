"""Intermediate features by gradient, deconvnet and guided backpropagation.

Zeiler & Fergus 2014; Springenberg 2015.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.errors import SightlineError
from sightline.images.plotting.captioned_rows import FigureRow
from sightline.images.plotting.figures import PictureRows
from sightline.images.plotting.maps import (
    arrange_in_row,
    compute_quantile,
    draw_box_outline,
    find_gradient_limit,
    make_contact_sheet,
    render_around_gray,
)
from sightline.models.heads.gradients import differentiate_scores
from sightline.models.heads.target_text import TargetChoice
from sightline.models.layers.feature_maps import reshape_to_unit_grid
from sightline.models.model import Model
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

# Pixels of a picture on a page.
NEURON_TILE_SIDE = 256
NEURON_PATCH_SIDE = 96

BACKWARD_RULES = ("gradient", "deconvnet", "guided")

NeuronPositions = tuple[Tensor, Tensor, Tensor]  # unit, row and column of neurons


@register_method(
    chapter="analytical",
    title="Guided backpropagation",
    question="What in the image makes a neuron fire?",
    reading="Left, the image patch that the neuron sees; right of it the pixels that raise its "
    "activation, with negative gradients stopped at every ReLU. Shapes that stand out are what the "
    "neuron responds to here. For several neurons, the left sheet holds their patches and the "
    "right one their gradients in the same order.",
    caution="Guided backpropagation draws image edges almost whatever the network has learned "
    "(Adebayo 2018; Nie 2018): read it as a picture of what the neuron sees, not as evidence for a "
    "class.",
    tour_runs=({}, {"k": 9, "layer": "middle"}),
    tour_titles=("What the strongest neuron sees", "What {k} strong neurons see"),
    # It explains a neuron; a class score is one.
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
    target: TargetChoice | None = None,
    layer: str = "middle",
    unit: Annotated[int | None, ValueRange(0, 1_000_000)] = None,
    rule: Literal["gradient", "deconvnet", "guided"] = "guided",
    k: Annotated[int, ValueRange(1, 64)] = 1,
) -> Result:
    """Backpropagates activations to the pixels, with a backward rule at every ReLU.

    The activation is that of a layer's strongest neuron, of a unit's strongest position, or of a
    layer's k strongest units. `values["gradient"]` is N×3×H×W, signed and unscaled.
    `values["attribution"]`, N×H×W, is its largest magnitude over the channels: at least 0.
    `values["unit"]`, `["row"]` and `["column"]` say which neuron it is and `["activation"]` how
    strong, N each. `values["relus"]` is how many ReLUs the rule met: without any, the three rules
    are the same.

    With k above 1 the tensors have an axis of k neurons after the first (of all units if the layer
    has fewer), strongest first: N×k×3×H×W and N×k. Such a result has no `attribution`: no single
    one explains the image.

    Args:
        target: What is propagated back instead of a layer's neuron: unit, classes, pixel, region,
            box, similar_to, regression or score of `sightline`, their text, or a function of the
            network's output.
        unit: Channel whose strongest position is taken; None for the strongest neuron of the whole
            layer.
        rule: "gradient" g·1[x>0], "deconvnet" g·1[g>0], "guided" both.
        k: How many neurons of the layer, at most one of each unit, each at the unit's strongest
            position; above 1, `unit` must be None.
    """
    if target is not None:
        model = model.with_target(target)
        layer = "logits"
        unit = 0
    layer_name = model.layer(layer)
    if k > 1 and unit is not None:
        raise SightlineError(
            f"k is {k} and unit is {unit}; a unit is shown at its strongest position only: "
            "give k or unit, not both"
        )
    if k == 1:
        gradients = backpropagate_chosen_neurons(
            model,
            image,
            layer_name,
            rule,
            lambda maps: select_first_neurons(find_strongest_neurons(maps, unit, 1, layer)),
        )
        panel, caption = draw_single_neuron(model, image, layer, rule, gradients)
        rows = make_neuron_rows(model, image, layer, gradients)
        attribution = gradients.gradient.abs().amax(1)
        values = {"attribution": attribution, **vars(gradients)}
    else:
        gradients = backpropagate_strongest_neurons(model, image, layer_name, rule, k)
        panel, caption = draw_several_neurons(model, image, layer, rule, gradients)
        rows = make_neuron_group_rows(model, image, layer, gradients)
        values = vars(gradients)
    if not gradients.relus:
        caption += (
            " No ReLU lies between the image and this layer: every rule is the plain gradient."
        )
    return Result({"guided": panel}, values, {"guided": caption}, figures={"guided": rows})


# ── neurons and their gradients ──


@dataclass(frozen=True)
class NeuronGradients:
    """Gradients of neurons with respect to the image.

    `gradient` is N×3×H×W; `unit`, `row` and `column` say which neuron it is for each image and
    `activation` how strong, N each. With k neurons for each image, these are N×k×3×H×W and N×k.
    `relus` is how many ReLUs the backward rule met.
    """

    gradient: Tensor
    unit: Tensor
    row: Tensor
    column: Tensor
    activation: Tensor
    relus: int


def find_strongest_neurons(maps: Tensor, unit: int | None, k: int, layer: str) -> NeuronPositions:
    """The strongest positions of the k strongest units of N×units×rows×columns, or of one unit.

    Returns unit, row and column, N×k each. Raises SightlineError for a unit the layer does not
    have.
    """
    if unit is not None and unit >= maps.shape[1]:
        raise SightlineError(f"unit is {unit}; {layer} has units 0 to {maps.shape[1] - 1}")
    peaks, peak_indices = maps.flatten(2).max(2)
    if unit is None:
        order = peaks.argsort(dim=1, descending=True, stable=True)
        units = order[:, :k]
    else:
        units = torch.full_like(peak_indices[:, :1], unit)

    flat_index = peak_indices.gather(1, units)
    column_count = maps.shape[3]
    row = flat_index // column_count
    column = flat_index % column_count
    return units, row, column


def select_first_neurons(neurons: NeuronPositions) -> NeuronPositions:
    """The strongest of N×k neurons, N."""
    unit, row, column = (value[:, 0] for value in neurons)
    return unit, row, column


def backpropagate_chosen_neurons(
    model: Model,
    image: Tensor,
    layer: str,
    rule: BackwardRule,
    choose_neurons: Callable[[Tensor], NeuronPositions],
) -> NeuronGradients:
    """The gradient of one neuron of each image.

    `choose_neurons` takes the layer's maps N×units×rows×columns and returns unit, row and column,
    N each.
    """
    with torch.enable_grad(), backward(rule) as relu_counter:
        leaf = image.to(model.device).detach().requires_grad_()
        features = model.run(leaf, [layer])[layer]
        maps = reshape_to_unit_grid(features, image, model, layer)
        unit, row, column = choose_neurons(maps.detach())

        image_numbers = torch.arange(len(maps), device=maps.device)
        activation = maps[image_numbers, unit, row, column]
        gradient = differentiate_scores(activation, leaf, "the image")
    return NeuronGradients(
        gradient=gradient.cpu(),
        unit=unit.cpu(),
        row=row.cpu(),
        column=column.cpu(),
        activation=activation.detach().cpu(),
        relus=relu_counter.count,
    )


def backpropagate_strongest_neurons(
    model: Model, image: Tensor, layer: str, rule: BackwardRule, k: int
) -> NeuronGradients:
    """The gradients of the k strongest neurons of each image, on an axis of k after the first."""
    with torch.no_grad():
        features = model.run(image.to(model.device), [layer])[layer]
        maps = reshape_to_unit_grid(features, image, model, layer)
        unit, row, column = find_strongest_neurons(maps, None, k, layer)

    count = unit.shape[1]
    image_copies = image.repeat_interleave(count, 0)
    flat_neurons = (unit.flatten(), row.flatten(), column.flatten())
    gradients = backpropagate_given_neurons(model, image_copies, layer, rule, flat_neurons)

    def group_by_image(value: Tensor) -> Tensor:
        return value.unflatten(0, (len(image), count))

    return NeuronGradients(
        gradient=group_by_image(gradients.gradient),
        unit=group_by_image(gradients.unit),
        row=group_by_image(gradients.row),
        column=group_by_image(gradients.column),
        activation=group_by_image(gradients.activation),
        relus=gradients.relus,
    )


def backpropagate_given_neurons(
    model: Model, image: Tensor, layer: str, rule: BackwardRule, neurons: NeuronPositions
) -> NeuronGradients:
    """The gradient of a given neuron for each image: unit, row and column, N each.

    Images are run in batches of about a gigabyte of features, or fewer where that is faster.
    """
    batch = choose_batch_size(model, image, image_count=len(image))
    unit, row, column = (value.to(model.device) for value in neurons)
    results: list[NeuronGradients] = []
    for start in range(0, len(image), batch):
        chunk = slice(start, start + batch)
        chunk_neurons = (unit[chunk], row[chunk], column[chunk])
        results.append(
            backpropagate_chosen_neurons(
                model, image[chunk], layer, rule, lambda _maps, neurons=chunk_neurons: neurons
            )
        )
    return NeuronGradients(
        gradient=torch.cat([result.gradient for result in results]),
        unit=unit.cpu(),
        row=row.cpu(),
        column=column.cpu(),
        activation=torch.cat([result.activation for result in results]),
        relus=results[0].relus,
    )


# ── figures ──


def draw_single_neuron(
    model: Model, image: Tensor, layer: str, rule: BackwardRule, gradients: NeuronGradients
) -> tuple[Tensor, str]:
    """For each image a row of the outlined image, the patch its neuron sees and the gradient there.

    Also returns the caption.
    """
    boxes: list[PixelBox] = []
    panel_rows: list[Tensor] = []
    for i in range(len(image)):
        row = int(gradients.row[i])
        column = int(gradients.column[i])
        box = find_receptive_box(model, layer, row, column, image)
        boxes.append(box)

        picture = model.to_picture(image[i : i + 1])
        gradient = model.to_picture(gradients.gradient[i : i + 1])
        panel_rows.append(draw_neuron_row(picture, gradient, box))

    panel = panel_rows[0]
    if len(panel_rows) > 1:
        width = max(panel_row.shape[3] for panel_row in panel_rows)
        padded_rows = [pad_row_to_width(panel_row, width) for panel_row in panel_rows]
        panel = make_contact_sheet(torch.cat(padded_rows), columns=1, gap=6)

    unit = int(gradients.unit[0])
    row = int(gradients.row[0])
    column = int(gradients.column[0])
    activation = float(gradients.activation[0])
    caption = (
        f"Image with the {describe_box_size(boxes[0])} pixels that the neuron sees outlined, that "
        f"patch enlarged, and its {rule} backpropagation: unit {unit} of {layer} at row {row}, "
        f"column {column}, activation {activation:.3g}. Gray is zero; full colour is the 99.5th "
        f"percentile.{describe_zero_gradients(gradients.gradient[0])}"
    )
    return panel, caption


def draw_several_neurons(
    model: Model, image: Tensor, layer: str, rule: BackwardRule, gradients: NeuronGradients
) -> tuple[Tensor, str]:
    """For each image a sheet of the patches its neurons see, beside a sheet of their gradients.

    All gradients have one scale. Also returns the caption.
    """
    limit = find_gradient_limit(gradients.gradient)
    windows_by_image: list[list[PixelBox]] = []
    for rows, columns in zip(gradients.row.tolist(), gradients.column.tolist(), strict=True):
        positions = zip(rows, columns, strict=True)
        windows_by_image.append(
            [find_receptive_window(model, layer, row, column, image) for row, column in positions]
        )

    panel_rows: list[Tensor] = []
    for i, windows in enumerate(windows_by_image):
        picture = model.to_picture(image[i : i + 1])
        patch_sheet = make_patch_sheet([picture] * len(windows), windows)
        rendered = render_around_gray(model.to_picture(gradients.gradient[i]), limit)
        gradient_sheet = make_patch_sheet(rendered.split(1), windows)
        panel_rows.append(arrange_in_row(patch_sheet, gradient_sheet, gap=12))

    neuron_count = len(windows_by_image[0])
    window_size = describe_box_size(windows_by_image[0][0])  # the same for all neurons of a layer
    unit_names = ", ".join(map(str, gradients.unit[0].tolist()))
    strongest = float(gradients.activation[0, 0])
    weakest = float(gradients.activation[0, -1])
    caption = (
        f"The {neuron_count} strongest neurons of {layer}, at most one of each unit, row by row "
        f"from the strongest: units {unit_names}, activation {strongest:.3g} to {weakest:.3g}. "
        f"Left the {window_size} pixels that each sees, gray beyond the image; right, in the same "
        f"order, their {rule} backpropagation, all on one scale: gray is zero, full colour "
        f"±{limit:.3g}, the 99.5th percentile.{describe_zero_gradients(gradients.gradient[0])}"
    )
    return make_contact_sheet(torch.cat(panel_rows), columns=1, gap=12), caption


def describe_zero_gradients(gradients: Tensor) -> str:
    """A sentence on neurons that no pixel changes; empty where there is none.

    `gradients` are those of one image, C×H×W for one neuron or k×C×H×W.
    """
    by_neuron = gradients.reshape(-1, *gradients.shape[-3:]).flatten(1)
    zero_count = int((by_neuron == 0).all(1).sum())
    if not zero_count:
        return ""
    subject = "It is" if len(by_neuron) == 1 else f"{zero_count} of them are"
    return (
        f" {subject} zero everywhere: no pixel changes a neuron that is silent, or at the cap of "
        "its activation (6 for ReLU6)."
    )


def make_neuron_rows(
    model: Model, image: Tensor, layer: str, gradients: NeuronGradients
) -> PictureRows:
    """The first image with the box that its neuron sees, and the patch and the gradient there."""
    row = int(gradients.row[0])
    column = int(gradients.column[0])
    box = find_receptive_box(model, layer, row, column, image)
    picture = model.to_picture(image[:1])
    gradient = model.to_picture(gradients.gradient[:1])
    pictures = list_neuron_pictures(picture, gradient, box)
    captions = ["what the neuron sees, outlined", "the patch", "what raises the activation"]
    return PictureRows([FigureRow("", pictures, captions)], NEURON_TILE_SIDE)


def make_neuron_group_rows(
    model: Model, image: Tensor, layer: str, gradients: NeuronGradients
) -> PictureRows:
    """The patches of the first image's k neurons, each above its gradient, on one scale."""
    limit = find_gradient_limit(gradients.gradient)
    picture = model.to_picture(image[:1])
    rendered = render_around_gray(model.to_picture(gradients.gradient[0]), limit)
    patches: list[Tensor] = []
    gradient_patches: list[Tensor] = []
    positions = zip(gradients.row[0].tolist(), gradients.column[0].tolist(), strict=True)
    for number, (row, column) in enumerate(positions):
        window = find_receptive_window(model, layer, row, column, image)
        patches.append(crop_padded_window(picture, window))
        gradient_patches.append(crop_padded_window(rendered[number : number + 1], window))
    names = [f"unit {unit}" for unit in gradients.unit[0].tolist()]
    rows = [
        FigureRow("what each sees", patches, names),
        FigureRow("what raises its activation", gradient_patches, [""] * len(names)),
    ]
    return PictureRows(rows, NEURON_PATCH_SIDE)


def make_patch_sheet(images: Sequence[Tensor], windows: Sequence[PixelBox]) -> Tensor:
    """A sheet of what each of k images 1×3×H×W shows in its window."""
    patches = [
        crop_padded_window(image, window) for image, window in zip(images, windows, strict=True)
    ]
    return make_contact_sheet(resize_for_sheet(torch.cat(patches)))


def draw_neuron_row(image: Tensor, gradient: Tensor, box: PixelBox) -> Tensor:
    """The outlined image, the image in the box, and the gradient in the box around gray."""
    return arrange_in_row(*list_neuron_pictures(image, gradient, box))


def list_neuron_pictures(image: Tensor, gradient: Tensor, box: PixelBox) -> list[Tensor]:
    """The outlined image, the image in the box, and the gradient in the box around gray."""
    limit = float(compute_quantile(gradient.abs().flatten(), 0.995))
    row_start, column_start, row_end, column_end = box
    in_box = (..., slice(row_start, row_end), slice(column_start, column_end))
    return [
        draw_box_outline(image, box),
        image[in_box],
        render_around_gray(gradient, limit)[in_box],
    ]


def describe_box_size(box: PixelBox) -> str:
    """Height×width of a box in pixels."""
    row_start, column_start, row_end, column_end = box
    return f"{row_end - row_start}×{column_end - column_start}"


def pad_row_to_width(row: Tensor, width: int) -> Tensor:
    """Adds white on the right up to `width`."""
    return F.pad(row, (0, width - row.shape[3]), value=1.0)
