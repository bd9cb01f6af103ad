"""Activation maps: where in the image each channel fires (Yosinski 2015, section 2)."""

from typing import Annotated

import torch
from torch import Tensor

from sightline.errors import SightlineError
from sightline.images.plotting.maps import (
    arrange_in_row,
    compute_quantile,
    draw_box_outline,
    enlarge_pixels,
    make_contact_sheet,
    render_heatmap,
    render_signed_map,
    resize_picture,
)
from sightline.methods.units.activations_page import ChannelMaps, render_browse_page
from sightline.models.model import Model
from sightline.models.outputs import reshape_to_feature_maps
from sightline.models.tracing.crops import find_receptive_box
from sightline.registry.method import register_method
from sightline.registry.parameter import ValueRange
from sightline.registry.result import Result


@register_method(
    chapter="analytical",
    title="Activation maps",
    question="Where in the image does each channel fire?",
    reading="Each square is one channel, laid out like the image. Early maps look like edge drawings; deeper ones are coarse and sparse, and some "
    "light up on one part of one object.",
    caution="A channel that fires on an object in one image need not be its detector: look at what else makes it fire. All squares of a layer share one "
    "scale, so dark ones are truly weak.",
)
def activations(
    model: Model,
    image: Tensor,
    *,
    layers: tuple[str, ...] = ("first", "middle", "last_conv"),
    k: Annotated[int, ValueRange(1, 256)] = 32,
    unit: Annotated[int | None, ValueRange(0, 1_000_000)] = None,
) -> Result:
    """Shows the k strongest channels of layers at several depths as maps over the image, strongest first.

    For each layer NAME (dots and colons become _) `values["NAME_maps"]` are all its maps, N×C×h×w and unscaled, `values["NAME_order"]` the
    channels shown, N×k. With `unit`, `values["row"]`, `["column"]` and `["activation"]` say where it is strongest and how strong, N each,
    and `values["box"]` N×4 which pixels it sees there: top, left, bottom, right (exclusive). `pages` has the same maps to browse, for each
    image a page "browse" (of a batch "browse_0" and on): click a channel and a place of it, and the pixels that the place sees are outlined.

    Args:
        layers: Layers to show: names, aliases or landmarks.
        k: How many channels of each layer.
        unit: Channel of the one layer given in layers, whose strongest place is shown on the image beside its map; None for none.
    """
    if not layers:
        raise SightlineError("layers is empty; name at least one, such as last_conv")
    if unit is not None and len(layers) != 1:
        raise SightlineError(
            f"unit is {unit}, of one layer; given were {len(layers)}: {', '.join(layers)}"
        )
    found = model.features(image, layers)
    panels: dict[str, Tensor] = {}
    captions: dict[str, str] = {}
    values: dict[str, Tensor] = {}
    browsed: list[dict[str, ChannelMaps]] = [{} for _ in image]
    for layer in layers:
        maps = reshape_to_feature_maps(found[layer], *image.shape[-2:]).detach().cpu()
        order = maps.flatten(2).amax(2).argsort(dim=1, descending=True)[:, :k]
        rows = [render_map_sheet(one[index]) for one, index in zip(maps, order, strict=True)]
        name = layer.replace(".", "_").replace(":", "_")
        panels[name] = make_contact_sheet(torch.cat(rows), columns=1, gap=8)
        values |= {f"{name}_maps": maps, f"{name}_order": order}
        for one, index, shown in zip(maps, order, browsed, strict=True):
            shown[layer] = ChannelMaps(index, one[index], float(find_activation_limit(one[index])))
        fired = (maps.flatten(2).amax(2) > 0).float().mean()
        captions[name] = (
            f"{layer} ({model.layer(layer)}): the {order.shape[1]} strongest of {maps.shape[1]} channels, {maps.shape[2]}×{maps.shape[3]} positions "
            f"each; {fired:.0%} of all channels fire somewhere. Strongest channel: {int(order[0, 0])}. {describe_activation_colors(maps[0, order[0]])}"
        )
        if unit is not None:
            panels[f"{name}_unit"], captions[f"{name}_unit"], found_at = render_unit_peak(
                model, image, layer, maps, unit
            )
            values |= found_at
    names = ["browse"] if len(image) == 1 else [f"browse_{i}" for i in range(len(image))]
    pages = {
        name: render_browse_page(model, image[i : i + 1], browsed[i])
        for i, name in enumerate(names)
    }
    captions |= dict.fromkeys(
        pages,
        "The same maps to browse: choose a channel and click a place of it to see which pixels it sees.",
    )
    return Result(panels, values, captions, pages=pages)


def render_unit_peak(
    model: Model, image: Tensor, layer: str, maps: Tensor, unit: int
) -> tuple[Tensor, str, dict[str, Tensor]]:
    """Per image a row of the image with what the unit sees at its strongest place outlined and the unit's map with that place; caption; values."""
    if unit >= maps.shape[1]:
        raise SightlineError(f"unit is {unit}; {layer} has units 0 to {maps.shape[1] - 1}")
    own = maps[:, unit]
    activation, at = own.flatten(1).max(1)
    row, column = at // own.shape[2], at % own.shape[2]
    boxes = [
        find_receptive_box(model, layer, int(y), int(x), image)
        for y, x in zip(row, column, strict=True)
    ]
    size, count = (image.shape[2], image.shape[3]), (own.shape[1], own.shape[2])
    colored = resize_picture(
        render_signed_map(own) if own.min() < 0 else render_heatmap(own, colormap="gray"),
        *size,
        "nearest",
    )
    rows: list[Tensor] = []
    for i, box in enumerate(boxes):
        marked = draw_box_outline(
            colored[i : i + 1], locate_map_cell(int(row[i]), int(column[i]), count, size)
        )
        rows.append(arrange_in_row(draw_box_outline(image[i : i + 1], box), marked))
    (top, left, bottom, right), top_of_map = boxes[0], float(own[0].abs().max())
    caption = (
        f"Unit {unit} of {layer} is strongest at row {int(row[0])}, column {int(column[0])} of its {own.shape[1]}×{own.shape[2]} places: activation "
        f"{float(activation[0]):.3g}. Left, outlined, the {bottom - top}×{right - left} pixels that it sees there; right its map with that place. "
        f"{f'White is zero, red positive, blue negative, full colour ±{top_of_map:.3g}.' if own.min() < 0 else 'Black is zero, white that activation.'}"
    )
    values = {"row": row, "column": column, "activation": activation, "box": torch.tensor(boxes)}
    return make_contact_sheet(torch.cat(rows), columns=1, gap=8), caption, values


def locate_map_cell(
    row: int, column: int, map_size: tuple[int, int], image_size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Where a place of a map of `count` rows and columns lies when the map is enlarged to `size`, with two pixels around it for a frame."""
    top, left = (
        at * side // n - 2 for at, side, n in zip((row, column), image_size, map_size, strict=True)
    )
    bottom, right = (
        -(-(at + 1) * side // n) + 2
        for at, side, n in zip((row, column), image_size, map_size, strict=True)
    )
    return top, left, bottom, right


def render_map_sheet(maps: Tensor) -> Tensor:
    """Maps K×h×w as one sheet on one scale, each at least 84 pixels."""
    top = find_activation_limit(maps).expand(len(maps))
    colored = render_signed_map(maps, top) if maps.min() < 0 else render_heatmap(maps, top, "gray")
    return make_contact_sheet(enlarge_pixels(colored, 84), columns=8, gap=3)


def find_activation_limit(maps: Tensor) -> Tensor:
    """Where the scale ends: the 99.8th percentile, so that a single spot doesn't leave the rest dark."""
    return compute_quantile(maps.abs().flatten(), 0.998)


def describe_activation_colors(maps: Tensor) -> str:
    """One sentence on the colours."""
    top = find_activation_limit(maps)
    return (
        f"White is zero, red positive, blue negative, full colour at ±{top:.3g} or more."
        if maps.min() < 0
        else f"Black is zero, white is {top:.3g} or more."
    )
