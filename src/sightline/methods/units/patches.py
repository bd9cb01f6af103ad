"""Maximally activating patches: the parts of a collection's images that drive one unit, or every unit of a layer, the most
(Girshick 2014; Springenberg 2015, figure 3), and what lies in the middle (Olah 2017, on the spectrum of examples)."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from torch import Tensor

from sightline.data.scan.access import name_image_classes, resolve_network, resolve_scan
from sightline.data.store.reader import Scan, TopImages
from sightline.errors import SightlineError, make_out_of_range_error
from sightline.images.plotting.captioned_rows import FigureRow, compose_figure_rows
from sightline.images.plotting.maps import (
    draw_histogram,
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

PATCH_TILE_SIDE, PATCH_TILE_COLUMNS = 96, 12  # pixels of a tile, and tiles in a row of a sheet


@register_method(
    chapter="analytical",
    title="Maximally activating patches",
    question="What makes this unit fire the most, over a whole collection?",
    reading="The strongest patches, at most one of each image, and under each the pixels that push the unit up there. What they share is what the unit "
    "stands for; the row from the middle of the distribution shows what it does on ordinary images, which the strongest ones hide.",
    caution="The extremes of a unit can look pure while most of its activity is something else: look at the middle row and at where it lies in the "
    "distribution. A small collection may not hold what the unit is made for.",
    tour_runs=({"unit": 7}, {"k": 4, "units": 48}),
)
def patches(
    model: Model | Scan,
    *,
    folder: str | Path | None = None,
    store: str | Path | None = None,
    layer: str | None = None,
    unit: Annotated[int | None, ValueRange(0, 1_000_000)] = None,
    k: Annotated[int, ValueRange(1, 100)] = 9,
    rule: Literal["gradient", "deconvnet", "guided"] = "guided",
    units: Annotated[int, ValueRange(1, 4096)] = 64,
) -> Result:
    """Shows the patches that make a unit fire the most, its middle cases and the distribution; or the whole layer as one sheet.

    Of a unit `values["activation"]`, `["ids"]`, `["row"]`, `["column"]` and `["box"]` (k×4: top, left, bottom, right of what the
    neuron sees of the image, exclusive, of one size and perhaps beyond it) are those of its k strongest images; `["middle_..."]` the same
    of the middle ones; `["gradient"]` is k×3×H×W, its map; `["quantiles"]` the distribution's 0, 10, …, 100 %.
    Without a unit the first axis is the layer's units.

    Args:
        folder: Collection to search: a folder of images; None for tiles of the sample photographs.
        store: File that keeps the pass over the collection; alone, it is read as it is. None for one in the user's cache.
        layer: A layer of the scan; None for the middle one of those that have places.
        unit: Channel to look at; None for a sheet of all.
        k: How many patches; for a sheet 1, 4, 9, … of each unit are shown, as many as fit into a square.
        rule: Backward rule of the maps: "gradient" g·1[x>0], "deconvnet" g·1[g>0], "guided" both.
        units: How many units a sheet shows at most, from the first.
    """
    found = resolve_scan(model, folder, store, layer=layer)
    name = found.layer(layer) if layer is not None else find_middle_layer(found)
    top = found.top(name)
    if unit is None:
        return show_layer_patches(model, found, name, min(k, len(top.values)), units)
    if unit >= top.values.shape[1]:
        raise SightlineError(f"unit is {unit}; {name} has units 0 to {top.values.shape[1] - 1}")
    if k > len(top.values):
        raise make_out_of_range_error(
            "k", k, 1, f"{len(top.values)}, the number of images that the scan keeps of each unit"
        )
    return show_unit_patches(model, found, name, unit=unit, k=k, rule=rule)


def find_middle_layer(scan: Scan) -> str:
    """The middle one of the layers whose units have places, else of all."""
    spatial = [
        layer for layer in scan.layers if scan.top(layer).positions is not None
    ] or scan.layers
    return spatial[len(spatial) // 2]


# ── one unit ──


def show_unit_patches(
    model: Model | Scan, scan: Scan, layer: str, *, unit: int, k: int, rule: BackwardRule
) -> Result:
    """The strongest patches of a unit with their maps, cases from across its range, and the distribution."""
    net, top, sample = resolve_network(model, scan), scan.top(layer), scan.sample(layer)
    strong = UnitExamples.from_scan(net, scan, layer, select_unit_top_images(top, unit, slice(k)))
    order = (
        torch.linspace(0.1, 0.9, min(k, len(sample.values)))
        .mul(len(sample.values) - 1)
        .round()
        .long()
    )
    usual = UnitExamples.from_scan(
        net, scan, layer, select_unit_top_images(TopImages(*sample[:3]), unit, order)
    )
    sent = backpropagate_given_neurons(
        net,
        strong.images,
        layer,
        rule,
        (torch.full_like(strong.ids, unit), strong.row, strong.column),
    )
    limit = find_gradient_limit(sent.gradient)
    maps = [
        crop_padded_window(m[None], box)
        for m, box in zip(render_around_gray(sent.gradient, limit), strong.boxes, strict=True)
    ]
    rows = [
        FigureRow(
            f"the strongest of unit {unit} of {layer}",
            [resize_for_sheet(part) for part in strong.patches],
            strong.describe_examples(scan),
        ),
        FigureRow(f"their {rule} maps", [resize_for_sheet(part) for part in maps], [""] * k),
        FigureRow(
            "from across its range: the strongest tenth to the weakest tenth",
            [resize_for_sheet(part) for part in usual.patches],
            usual.describe_examples(scan),
        ),
    ]
    values = {
        **strong.collect_values(),
        **{f"middle_{key}": value for key, value in usual.collect_values().items()},
        "gradient": sent.gradient,
    }
    values["quantiles"] = sample.quantiles[:, unit]
    top_, left, bottom, right = strong.boxes[0]
    seen = (
        f"{bottom - top_}×{right - left} pixels that it sees, gray beyond the image,"
        if top.positions is not None
        else "whole images"
    )
    caption = (
        f"The {seen} where unit {unit} of {layer} is strongest among {scan.images:,} images, with its activation and the image's "
        f"class; below, what pushes it up there (gray is zero, full colour ±{limit:.3g}, the 99.5th percentile); last, evenly spread over its range."
    )
    counts = f"Peak activation of unit {unit} in a uniform sample of {len(sample.values):,} images; marked are the strongest {k} of all {scan.images:,}."
    histogram = draw_histogram(
        sample.values[:, unit].tolist(),
        strong.activation.tolist(),
        f"peak activation of unit {unit}",
    )
    return Result(
        {"patches": compose_figure_rows(rows, PATCH_TILE_SIDE), "distribution": histogram},
        values,
        {"patches": caption, "distribution": counts},
    )


def select_unit_top_images(
    top_images: TopImages, unit: int, selection: slice | Tensor
) -> TopImages:
    """Some of the images of one unit: values and ids k, positions k×2."""
    return TopImages(
        top_images.values[selection, unit],
        top_images.ids[selection, unit],
        None if top_images.positions is None else top_images.positions[selection, unit],
    )


@dataclass(frozen=True)
class UnitExamples:
    """Images in which a unit was measured: how strong, which, where, and what it sees there."""

    activation: Tensor
    ids: Tensor
    row: Tensor
    column: Tensor
    images: Tensor
    boxes: list[PixelBox]

    @classmethod
    def from_scan(
        cls, model: Model, scan: Scan, layer: str, top_images: TopImages
    ) -> "UnitExamples":
        """The images from the collection, and the boxes from the network's geometry."""
        pictures = torch.cat([scan.image(id) for id in top_images.ids.tolist()])
        places = (
            torch.zeros(len(pictures), 2, dtype=torch.long)
            if top_images.positions is None
            else top_images.positions
        )
        boxes = [
            find_receptive_window(model, layer, row, column, pictures)
            for row, column in places.tolist()
        ]
        return cls(top_images.values, top_images.ids, places[:, 0], places[:, 1], pictures, boxes)

    @property
    def patches(self) -> list[Tensor]:
        """What the unit sees of each image."""
        return [
            crop_padded_window(picture[None], box)
            for picture, box in zip(self.images, self.boxes, strict=True)
        ]

    def describe_examples(self, scan: Scan) -> list[str]:
        """Activation and class."""
        return [
            f"{value:.3g}\n{name}"
            for value, name in zip(
                self.activation.tolist(), name_image_classes(scan, self.ids.tolist()), strict=True
            )
        ]

    def collect_values(self) -> dict[str, Tensor]:
        """The numbers."""
        return {
            "activation": self.activation,
            "ids": self.ids,
            "row": self.row,
            "column": self.column,
            "box": torch.tensor(self.boxes),
        }


# ── a layer ──


def show_layer_patches(
    model: Model | Scan, scan: Scan, layer: str, patches_per_unit: int, max_units: int
) -> Result:
    """For each unit a square of its strongest patches."""
    net, top, side = resolve_network(model, scan), scan.top(layer), math.isqrt(patches_per_unit)
    count, shown = min(max_units, top.values.shape[1]), side**2
    loaded = {id: scan.image(id) for id in top.ids[:shown, :count].unique().tolist()}
    tiles: list[Tensor] = []
    boxes: list[list[PixelBox]] = []
    for unit in range(count):
        ids, places = top.ids[:shown, unit].tolist(), top.positions
        spots = [[0, 0]] * shown if places is None else places[:shown, unit].tolist()
        boxes.append(
            [
                find_receptive_window(net, layer, row, column, loaded[id])
                for id, (row, column) in zip(ids, spots, strict=True)
            ]
        )
        parts = torch.cat(
            [
                resize_for_sheet(crop_padded_window(loaded[id], box))
                for id, box in zip(ids, boxes[-1], strict=True)
            ]
        )
        tiles.append(make_contact_sheet(parts, columns=side, gap=max(1, parts.shape[-1] // 40)))
    words = [f"unit {unit}\n{float(top.values[0, unit]):.3g}" for unit in range(count)]
    rows = [
        FigureRow(
            "", tiles[start : start + PATCH_TILE_COLUMNS], words[start : start + PATCH_TILE_COLUMNS]
        )
        for start in range(0, count, PATCH_TILE_COLUMNS)
    ]
    values = {
        "activation": top.values[:shown, :count].T,
        "ids": top.ids[:shown, :count].T,
        "box": torch.tensor(boxes),
    }
    if top.positions is not None:
        values |= {
            "row": top.positions[:shown, :count, 0].T,
            "column": top.positions[:shown, :count, 1].T,
        }
    caption = (
        f"The {shown} strongest patches of each of {count} of the {top.values.shape[1]} units of {layer} among {scan.images:,} images, at most one of an image, "
        "gray beyond it; under each unit its highest activation."
    )
    return Result(
        {"patches": compose_figure_rows(rows, max(PATCH_TILE_SIDE, 32 * side))},
        values,
        {"patches": caption},
    )
