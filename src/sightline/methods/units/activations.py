"""Activation maps: where in the image each channel fires (Yosinski 2015, section 2)."""

from typing import Annotated

import torch
from torch import Tensor

from sightline.errors import SightlineError
from sightline.images.plotting.captioned_rows import FigureRow
from sightline.images.plotting.figures import ColorScale, FigureData, PictureRows
from sightline.images.plotting.maps import (
    arrange_in_row,
    compute_quantile,
    draw_box_outline,
    enlarge_pixels,
    make_contact_sheet,
    render_heatmap,
    render_signed_map,
)
from sightline.images.transforms import resize_image
from sightline.methods.units.activations_page import ChannelMaps, render_browse_page
from sightline.models.layers.attention_matrices import refuse_attention_matrix
from sightline.models.layers.feature_maps import reshape_to_feature_maps
from sightline.models.model import Model
from sightline.models.tracing.crops import PixelBox, find_receptive_box
from sightline.registry.method import register_method
from sightline.registry.parameter import ValueRange
from sightline.registry.result import Result

# Of these a network may lack some: one without gradients has no known last convolution.
DEFAULT_LAYERS = ("first", "middle", "last_conv")

SCALE_QUANTILE = 0.998  # of the magnitudes: a single spot doesn't leave the rest dark

MAP_TILE_SIDE = 84  # short side in pixels of a map on its sheet
SHEET_COLUMNS = 8
OUTLINE_WIDTH = 2  # pixels around a position of a map, for its outline


@register_method(
    chapter="analytical",
    title="Activation maps",
    question="Where in the image does each channel fire?",
    reading="Each square is one channel, laid out like the image. Early maps look like edge "
    "drawings; deeper ones are coarse and sparse, and some light up on one part of one object.",
    caution="A channel that fires on an object in one image need not be its detector: look at what "
    "else makes it fire. All squares of a layer share one scale, so dark ones are truly weak.",
    tour_runs=({"k": 16},),
)
def activations(
    model: Model,
    image: Tensor,
    *,
    layers: tuple[str, ...] = DEFAULT_LAYERS,
    k: Annotated[int, ValueRange(1, 256)] = 32,
    unit: Annotated[int | None, ValueRange(0, 1_000_000)] = None,
) -> Result:
    """Shows the k strongest channels of layers at several depths as maps over the image.

    For each layer NAME (dots, colons and slashes become _) `values["NAME_maps"]` are all its maps,
    N×C×h×w and unscaled, and `values["NAME_order"]` the channels shown, N×k, strongest first.

    With `unit`, `values["row"]`, `["column"]` and `["activation"]` say where it is strongest and
    how strong, N each, and `values["box"]`, N×4, which pixels it sees there: top, left, bottom,
    right (exclusive).

    `pages` has the same maps to browse: a page "browse" for one image, "browse_0" and so on for a
    batch. Click a channel and a position of its map, and the pixels it sees are outlined.

    Args:
        layers: Layers to show: names, aliases or landmarks. Default ones that the network lacks
            are left out.
        k: How many channels of each layer.
        unit: Channel of the one layer given in layers, whose strongest position is shown on the
            image beside its map; None for none.
    """
    layers = choose_shown_layers(model, layers, unit)
    features = model.features(image, layers)
    panels: dict[str, Tensor] = {}
    captions: dict[str, str] = {}
    values: dict[str, Tensor] = {}
    figures: dict[str, FigureData] = {}
    maps_by_image: list[dict[str, ChannelMaps]] = [{} for _ in image]
    for layer in layers:
        name = layer.replace(".", "_").replace(":", "_").replace("/", "_")
        refuse_attention_matrix(features[layer], layer)
        maps = reshape_to_feature_maps(
            features[layer].detach(),
            *image.shape[-2:],
            batch=len(image),
            model=model,
            layer=model.layer(layer),
        ).cpu()
        peaks = maps.flatten(2).amax(2)
        order = peaks.argsort(dim=1, descending=True)[:, :k]
        sheets: list[Tensor] = []
        for image_maps, channels, layer_maps in zip(maps, order, maps_by_image, strict=True):
            shown_maps = image_maps[channels]
            limit = find_activation_limit(shown_maps)
            sheets.append(render_map_sheet(shown_maps, limit))
            layer_maps[layer] = ChannelMaps(channels, shown_maps, float(limit))
        values[f"{name}_maps"] = maps
        values[f"{name}_order"] = order
        panels[name] = make_contact_sheet(torch.cat(sheets), columns=1, gap=8)
        figures[name] = make_channel_rows(maps[0, order[0]], order[0])
        captions[name] = (
            f"{layer} ({model.layer(layer)}): the {order.shape[1]} strongest of {maps.shape[1]} "
            f"channels, {maps.shape[2]}×{maps.shape[3]} positions each; "
            f"{(peaks > 0).float().mean():.0%} of all channels fire somewhere. "
            f"Strongest channel: {int(order[0, 0])}. {describe_map_scale(maps[0, order[0]])}"
        )
        if unit is not None:
            unit_result = show_unit_peak(model, image, layer, maps, unit)
            panels[f"{name}_unit"] = unit_result.panels["unit"]
            captions[f"{name}_unit"] = unit_result.captions["unit"]
            values |= unit_result.values

    page_names = ["browse"] if len(image) == 1 else [f"browse_{i}" for i in range(len(image))]
    pages: dict[str, str] = {}
    for page_name, picture, layer_maps in zip(
        page_names, model.to_picture(image).split(1), maps_by_image, strict=True
    ):
        pages[page_name] = render_browse_page(model, picture, layer_maps)
        captions[page_name] = (
            "The same maps to browse: choose a channel, then click a position of its map to see "
            "which pixels it sees."
        )
    return Result(panels, values, captions, pages=pages, figures=figures)


def choose_shown_layers(model: Model, layers: tuple[str, ...], unit: int | None) -> tuple[str, ...]:
    """The layers asked for; of the default ones those that the network has.

    Raises SightlineError for no layer, and for several with a unit.
    """
    if not layers:
        raise SightlineError("layers is empty; name at least one, such as last_conv")
    if unit is not None and len(layers) != 1:
        raise SightlineError(
            f"unit= needs exactly one layer; layers= names {len(layers)}: {', '.join(layers)}"
        )
    if layers != DEFAULT_LAYERS:
        return layers
    return tuple(name for name in layers if name in model.landmarks) or layers


# ── sheets of maps ──


def render_map_sheet(maps: Tensor, limit: Tensor) -> Tensor:
    """Maps K×h×w of one layer as one sheet, all on the scale that ends at `limit`."""
    limits = limit.expand(len(maps))
    draw = render_signed_map if bool(maps.min() < 0) else render_heatmap
    colors = draw(maps, limits)
    return make_contact_sheet(enlarge_pixels(colors, MAP_TILE_SIDE), columns=SHEET_COLUMNS, gap=3)


def make_channel_rows(maps: Tensor, channels: Tensor) -> PictureRows:
    """Maps K×h×w of channels of one layer, all on one scale."""
    limit = find_activation_limit(maps)
    limits = limit.expand(len(maps))
    is_signed = bool(maps.min() < 0)
    draw = render_signed_map if is_signed else render_heatmap
    colors = draw(maps, limits)
    names = [str(channel) for channel in channels.tolist()]
    scale = ColorScale("diverging" if is_signed else "sequential", float(limit))
    rows = [FigureRow("", colors.split(1), names)]
    return PictureRows(rows, MAP_TILE_SIDE, is_pixelated=True, scale=scale)


def find_activation_limit(maps: Tensor) -> Tensor:
    """Where the colour scale of maps ends: the 99.8th percentile of their magnitudes."""
    return compute_quantile(maps.abs().flatten(), SCALE_QUANTILE)


def describe_map_scale(maps: Tensor) -> str:
    """The colours of a sheet of maps, in one sentence."""
    limit = find_activation_limit(maps)
    if maps.min() < 0:
        return f"White is zero, red positive, blue negative, full colour at ±{limit:.3g} or more."
    return f"Black is zero, the brightest {limit:.3g} or more."


# ── one unit ──


def show_unit_peak(model: Model, image: Tensor, layer: str, maps: Tensor, unit: int) -> Result:
    """The panel "unit": a row for each image, with what a unit sees at its strongest position.

    On the left the image with those pixels outlined, on the right the unit's map with the position
    outlined. `maps` are all maps of the layer, N×C×h×w.
    """
    if unit >= maps.shape[1]:
        raise SightlineError(f"unit is {unit}; {layer} has units 0 to {maps.shape[1] - 1}")
    unit_maps = maps[:, unit]
    map_rows, map_columns = unit_maps.shape[1:]
    activation, flat_index = unit_maps.flatten(1).max(1)
    rows = flat_index // map_columns
    columns = flat_index % map_columns

    is_signed = bool(unit_maps.min() < 0)
    height, width = image.shape[-2:]
    colors = render_signed_map(unit_maps) if is_signed else render_heatmap(unit_maps)
    enlarged_maps = resize_image(colors, height, width, "nearest")
    boxes: list[PixelBox] = []
    pairs: list[Tensor] = []
    for i, (row, column) in enumerate(zip(rows.tolist(), columns.tolist(), strict=True)):
        box = find_receptive_box(model, layer, row, column, image)
        cell = locate_map_cell(row, column, (map_rows, map_columns), (height, width))
        outlined_image = draw_box_outline(model.to_picture(image[i : i + 1]), box)
        outlined_map = draw_box_outline(enlarged_maps[i : i + 1], cell)
        boxes.append(box)
        pairs.append(arrange_in_row(outlined_image, outlined_map))
    panel = make_contact_sheet(torch.cat(pairs), columns=1, gap=8)

    limit = float(unit_maps[0].abs().max())
    scale = "Black is zero, the brightest that activation."
    if is_signed:
        scale = f"White is zero, red positive, blue negative, full colour ±{limit:.3g}."
    top, left, bottom, right = boxes[0]
    caption = (
        f"Unit {unit} of {layer} is strongest at row {int(rows[0])}, column {int(columns[0])} of "
        f"its {map_rows}×{map_columns} positions: activation {float(activation[0]):.3g}. Left, "
        f"outlined, the {bottom - top}×{right - left} pixels that it sees there; right, its map "
        f"with that position outlined. {scale}"
    )
    values = {"row": rows, "column": columns, "activation": activation, "box": torch.tensor(boxes)}
    return Result({"unit": panel}, values, {"unit": caption})


def locate_map_cell(
    row: int, column: int, map_size: tuple[int, int], image_size: tuple[int, int]
) -> PixelBox:
    """The pixels of one position of a map enlarged to the image, and 2 more on each side."""
    top, bottom = locate_cell_span(row, map_size[0], image_size[0])
    left, right = locate_cell_span(column, map_size[1], image_size[1])
    return (
        top - OUTLINE_WIDTH,
        left - OUTLINE_WIDTH,
        bottom + OUTLINE_WIDTH,
        right + OUTLINE_WIDTH,
    )


def locate_cell_span(index: int, count: int, length: int) -> tuple[int, int]:
    """First and last (exclusive) pixel of one of `count` cells that share `length` pixels."""
    start = index * length // count
    end = -(-(index + 1) * length // count)  # rounded up
    return start, end
