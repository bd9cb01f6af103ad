"""Maximally activating patches of a dataset, for one unit or every unit of a layer.

The parts of images that drive a unit the most (Girshick 2014; Springenberg 2015, figure 3), and
cases from across its range (the spectrum of examples, Olah 2017).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
from torch import Tensor

from sightline.data.scan.access import name_image_classes, resolve_network, resolve_scan
from sightline.data.store.reader import Scan, TopImages
from sightline.errors import SightlineError, make_out_of_range_error
from sightline.images.plotting.captioned_rows import FigureRow, compose_figure_rows
from sightline.images.plotting.charts import draw_histogram
from sightline.images.plotting.figures import FigureData, Histogram, PictureRows
from sightline.images.plotting.maps import (
    find_gradient_limit,
    make_contact_sheet,
    render_around_gray,
)
from sightline.methods.attribution.guided import backpropagate_given_neurons
from sightline.models.model import Model
from sightline.models.overrides.relu import BackwardRule
from sightline.models.tracing.crops import (
    PixelBox,
    crop_padded_window,
    find_receptive_window,
    resize_for_sheet,
)
from sightline.registry.method import register_method
from sightline.registry.parameter import ValueRange
from sightline.registry.result import Result

# Shares of the sorted sample from which, and up to which, cases from across the range are taken.
RANGE_START = 0.1
RANGE_END = 0.9

DEFAULT_PATCHES = 9

PATCH_TILE_SIDE = 96  # pixels of a tile of a sheet
PATCH_TILE_COLUMNS = 12  # tiles in a row of a sheet
# Gradients around gray with less deviation than this are left out: one sees nothing in them.
MIN_CONTRAST = 0.005

MIN_PATCH_TILE_SIDE = 32  # pixels of one patch in a tile that holds several


@register_method(
    chapter="analytical",
    title="Maximally activating patches",
    question="What makes this unit fire the most, over a whole dataset?",
    reading="The strongest patches, at most one of each image, and under each the pixels that push "
    "the unit up there. What they share is what the unit stands for; the row from across the range "
    "shows what it does on ordinary images, which the strongest ones hide.",
    caution="The extremes of a unit can look pure while most of its activity is something else: "
    "look at the last row and at where it lies in the distribution. A small dataset may not hold "
    "what the unit is made for.",
    tour_runs=({"unit": 7}, {"k": 4, "max_units": 24}),
    tour_titles=("Unit {unit} of {layer}", "{max_units} units of {layer} at a glance"),
    former_names={"units": "max_units"},
)
def patches(
    model: Model | Scan,
    *,
    folder: str | Path | None = None,
    store: str | Path | None = None,
    layer: str | None = None,
    unit: Annotated[int | None, ValueRange(0, 1_000_000)] = None,
    k: Annotated[int | None, ValueRange(1, 100)] = None,
    rule: Literal["gradient", "deconvnet", "guided"] = "guided",
    max_units: Annotated[int, ValueRange(1, 4096)] = 64,
) -> Result:
    """Shows the patches that make a unit fire the most, or those of a whole layer as one sheet.

    For a unit, `values["activation"]`, `["ids"]`, `["row"]`, `["column"]` and `["box"]` are those
    of its k strongest images, strongest first. A box is top, left, bottom, right (exclusive) of
    what the neuron sees of the image; all have one size, and may reach beyond the image.
    `["middle_activation"]` and so on are the same for k images from across the unit's range.
    `["gradient"]`, k×3×H×W, is the gradient at the strongest images by `rule`, and `["quantiles"]`
    are the 0, 10, …, 100 % quantiles of the unit's responses.

    Without a unit, `values` has the same of the strongest images, with the layer's units as the
    first axis; no middle cases, gradients or quantiles.

    Args:
        folder: Dataset to search: a folder of images; None for parts of the sample pictures.
        store: File that keeps the pass over the dataset; alone, it is read as it is. None for one
            in the user's cache.
        layer: A layer of the scan; None for the middle one of those with maps, or the last hidden
            layer of a network without convolutions.
        unit: Channel to look at; None for a sheet of all.
        k: How many patches; None for 9, or all if the scan keeps fewer. On a sheet 1, 4, 9, … of
            each unit are shown, as many as fit into a square.
        rule: Backward rule of the gradients: "gradient" g·1[x>0], "deconvnet" g·1[g>0], "guided"
            both.
        max_units: How many units a sheet shows at most, from the first.
    """
    scan = resolve_scan(model, folder, store, layer=layer)
    layer_name = find_middle_followed_layer(scan) if layer is None else scan.layer(layer)
    image_count, unit_count = scan.top(layer_name).values.shape
    if unit is not None and unit >= unit_count:
        raise SightlineError(f"unit is {unit}; {layer_name} has units 0 to {unit_count - 1}")
    if k is not None and k > image_count:
        limit = f"{image_count}, the number of images that the scan keeps of each unit"
        raise make_out_of_range_error("k", k, 1, limit)

    count = k or min(DEFAULT_PATCHES, image_count)
    if unit is None:
        result = show_layer_patches(model, scan, layer_name, count, max_units)
    else:
        result = show_unit_patches(model, scan, layer_name, unit=unit, k=count, rule=rule)
    if k is None and count < DEFAULT_PATCHES:
        noun = "image" if count == 1 else "images"
        caption = f"{result.captions['patches']} The scan keeps only {count} {noun} of each unit."
        result = replace(result, captions={**result.captions, "patches": caption})
    return result if layer is not None else replace(result, chosen={"layer": layer_name})


def require_followed_layers(scan: Scan) -> None:
    """Raises SightlineError for a scan that follows no units."""
    if not scan.layers:
        raise SightlineError("the scan follows the units of no layer; scan again with layers=")


def find_middle_followed_layer(scan: Scan) -> str:
    """The middle one of the layers with maps; of all layers if none has maps."""
    layers = [layer for layer in scan.layers if scan.top(layer).positions is not None]
    layers = layers or scan.layers
    require_followed_layers(scan)
    return layers[len(layers) // 2]


# ── images of one unit ──


def select_unit_top_images(
    top_images: TopImages, unit: int, selection: slice | Tensor
) -> TopImages:
    """Some of the images of one unit: values and ids k, positions k×2."""
    positions = top_images.positions
    return TopImages(
        top_images.values[selection, unit],
        top_images.ids[selection, unit],
        None if positions is None else positions[selection, unit],
    )


def pick_range_indices(count: int, k: int) -> Tensor:
    """At most k evenly spaced indices into a sorted sample, from its first tenth to its last."""
    shares = torch.linspace(RANGE_START, RANGE_END, min(k, count))
    return shares.mul(count - 1).round().long()


@dataclass(frozen=True)
class UnitExamples:
    """Images with a unit's response to each, and what the unit sees at its strongest position.

    `activation`, `ids`, `row` and `column` have one entry for each of the images, k×C×H×W, which
    `pictures` shows, k×3×H×W.
    """

    activation: Tensor
    ids: Tensor
    row: Tensor
    column: Tensor
    images: Tensor
    pictures: Tensor
    boxes: list[PixelBox]

    @classmethod
    def from_scan(
        cls, model: Model, scan: Scan, layer: str, top_images: TopImages
    ) -> "UnitExamples":
        """The images from the dataset, and the boxes from the network's receptive fields."""
        images = torch.cat([scan.image(image_id) for image_id in top_images.ids.tolist()])
        positions = top_images.positions
        if positions is None:
            positions = torch.zeros(len(images), 2, dtype=torch.long)
        boxes = [
            find_receptive_window(model, layer, row, column, images)
            for row, column in positions.tolist()
        ]
        row, column = positions.unbind(1)
        pictures = model.to_picture(images)
        return cls(top_images.values, top_images.ids, row, column, images, pictures, boxes)

    @property
    def patches(self) -> list[Tensor]:
        """What the unit sees of each image, 1×3×h×w."""
        return crop_windows(self.pictures, self.boxes)

    def describe_examples(self, scan: Scan) -> list[str]:
        """Activation and class of each image."""
        class_names = name_image_classes(scan, self.ids.tolist())
        return [
            f"{activation:.3g}\n{class_name}"
            for activation, class_name in zip(self.activation.tolist(), class_names, strict=True)
        ]

    def collect_values(self) -> dict[str, Tensor]:
        """The numbers by the names under which a result has them."""
        return {
            "activation": self.activation,
            "ids": self.ids,
            "row": self.row,
            "column": self.column,
            "box": torch.tensor(self.boxes),
        }


def crop_windows(images: Tensor, boxes: Sequence[PixelBox]) -> list[Tensor]:
    """The part of each image in its window, gray where the window reaches beyond the image."""
    return [
        crop_padded_window(image, box) for image, box in zip(images.split(1), boxes, strict=True)
    ]


# ── figures ──


def show_unit_patches(
    model: Model | Scan, scan: Scan, layer: str, *, unit: int, k: int, rule: BackwardRule
) -> Result:
    """The strongest patches of a unit with their gradients, cases from across its range, and the
    distribution of its responses."""
    network = resolve_network(model, scan)
    sample = scan.sample(layer)
    sample_images = TopImages(sample.values, sample.ids, sample.positions)
    strongest_images = select_unit_top_images(scan.top(layer), unit, slice(k))
    range_indices = pick_range_indices(len(sample.values), k)
    range_images = select_unit_top_images(sample_images, unit, range_indices)
    strongest = UnitExamples.from_scan(network, scan, layer, strongest_images)
    across_range = UnitExamples.from_scan(network, scan, layer, range_images)

    neurons = (torch.full_like(strongest.ids, unit), strongest.row, strongest.column)
    gradients = backpropagate_given_neurons(network, strongest.images, layer, rule, neurons)
    gradient = gradients.gradient
    limit = find_gradient_limit(gradient)
    rendered = render_around_gray(network.to_picture(gradient), limit)
    gradient_patches = crop_windows(rendered, strongest.boxes)

    is_faint = torch.cat([patch.flatten() for patch in gradient_patches]).std() < MIN_CONTRAST
    rows = [
        FigureRow(
            f"the strongest of unit {unit} of {layer}",
            [resize_for_sheet(patch) for patch in strongest.patches],
            strongest.describe_examples(scan),
        ),
        FigureRow(
            f"their {rule} gradients",
            [resize_for_sheet(patch) for patch in gradient_patches],
            [""] * k,
        ),
        FigureRow(
            "from across its range: the strongest tenth to the weakest tenth",
            [resize_for_sheet(patch) for patch in across_range.patches],
            across_range.describe_examples(scan),
        ),
    ]
    gradient_note = (
        "the gradient: what pushes it up there (gray is zero, full colour "
        f"±{limit:.3g}, the 99.5th percentile)"
    )
    if is_faint:
        del rows[1]
        gradient_note = "no gradients, which are too faint to be seen"
    histogram = Histogram(
        sample.values[:, unit].tolist(),
        strongest.activation.tolist(),
        f"peak activation of unit {unit}",
    )
    panels = {
        "patches": compose_figure_rows(rows, PATCH_TILE_SIDE),
        "distribution": draw_histogram(histogram.values, histogram.marks, histogram.x_label),
    }
    figures: dict[str, FigureData] = {
        "patches": PictureRows(rows, PATCH_TILE_SIDE),
        "distribution": histogram,
    }
    middle_values = {f"middle_{name}": v for name, v in across_range.collect_values().items()}
    values = {
        **strongest.collect_values(),
        **middle_values,
        "gradient": gradient,
        "quantiles": sample.quantiles[:, unit],
    }

    seen_area = "whole images"
    if strongest_images.positions is not None:
        top, left, bottom, right = strongest.boxes[0]
        seen_area = f"{bottom - top}×{right - left} pixels that it sees, gray beyond the image,"
    captions = {
        "patches": f"The {seen_area} where unit {unit} of {layer} is strongest among "
        f"{scan.images:,} images, with its activation and the image's class; below, "
        f"{gradient_note}; last, images evenly spread over its range.",
        "distribution": f"Peak activation of unit {unit} in a uniform sample of "
        f"{len(sample.values):,} images. Ticks mark the strongest {k} of all {scan.images:,}.",
    }
    return Result(panels, values, captions, figures=figures)


def show_layer_patches(
    model: Model | Scan, scan: Scan, layer: str, patches_per_unit: int, max_units: int
) -> Result:
    """A sheet with a square of the strongest patches of each unit."""
    network = resolve_network(model, scan)
    top_images = scan.top(layer)
    square_side = math.isqrt(patches_per_unit)
    patch_count = square_side**2
    unit_count = min(max_units, top_images.values.shape[1])
    activation = top_images.values[:patch_count, :unit_count].T
    ids = top_images.ids[:patch_count, :unit_count].T
    values = {"activation": activation, "ids": ids}
    positions = torch.zeros(*ids.shape, 2, dtype=torch.long)
    if top_images.positions is not None:
        positions = top_images.positions[:patch_count, :unit_count].transpose(0, 1)
        values |= {"row": positions[..., 0], "column": positions[..., 1]}

    # Units share many of their strongest images, so each is read once.
    images = {image_id: scan.image(image_id) for image_id in ids.unique().tolist()}
    tiles: list[Tensor] = []
    boxes: list[list[PixelBox]] = []
    for unit_ids, unit_positions in zip(ids.tolist(), positions.tolist(), strict=True):
        unit_patches: list[Tensor] = []
        unit_boxes: list[PixelBox] = []
        for image_id, (row, column) in zip(unit_ids, unit_positions, strict=True):
            image = images[image_id]
            box = find_receptive_window(network, layer, row, column, image)
            unit_boxes.append(box)
            patch = crop_padded_window(network.to_picture(image), box)
            unit_patches.append(resize_for_sheet(patch))
        gap = max(1, unit_patches[0].shape[-1] // 40)
        tiles.append(make_contact_sheet(torch.cat(unit_patches), columns=square_side, gap=gap))
        boxes.append(unit_boxes)
    values["box"] = torch.tensor(boxes)

    tile_captions = [
        f"unit {unit}\n{peak:.3g}" for unit, peak in enumerate(activation[:, 0].tolist())
    ]
    rows: list[FigureRow] = []
    for start in range(0, unit_count, PATCH_TILE_COLUMNS):
        span = slice(start, start + PATCH_TILE_COLUMNS)
        rows.append(FigureRow("", tiles[span], tile_captions[span]))
    tile_side = max(PATCH_TILE_SIDE, MIN_PATCH_TILE_SIDE * square_side)
    subject = "whole images"
    detail = ""
    if top_images.positions is not None:
        subject = "patches"
        detail = ", at most one of an image, gray beyond it"
    caption = (
        f"The {patch_count} strongest {subject} of each of {unit_count} of the "
        f"{top_images.values.shape[1]} units of {layer} among {scan.images:,} images{detail}; "
        "under each unit its highest activation."
    )
    return Result(
        {"patches": compose_figure_rows(rows, tile_side)},
        values,
        {"patches": caption},
        figures={"patches": PictureRows(rows, tile_side)},
    )
