"""The page to browse activation maps: layers, their channels, and what each position sees."""

import base64
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sightline.errors import escape_for_display
from sightline.images.plotting.html import make_data_uri, render_template
from sightline.models.model import Model
from sightline.models.tracing.crops import find_receptive_box

MAP_LEVELS = 255  # steps between the least and the largest value of a map on the page


class ChannelMaps(NamedTuple):
    """Channels of a layer in the order they are shown.

    Their numbers K, their maps K×h×w, and the value at which the colour scale ends.
    """

    units: Tensor
    maps: Tensor
    scale_limit: float


def render_browse_page(
    model: Model, image: Tensor, channels_by_layer: Mapping[str, ChannelMaps]
) -> str:
    """The page of one image 1×3×H×W, with the channels of each layer by its name.

    A map is stored in 255 steps between its least and largest value, so the numbers on the page are
    that exact.
    """
    layers = [
        encode_layer_maps(model, image, name, channels)
        for name, channels in channels_by_layer.items()
    ]
    height, width = image.shape[-2:]
    return render_template(
        "activations.html",
        name=escape_for_display(model.name),
        image=make_data_uri(image),
        height=height,
        width=width,
        layers=layers,
    )


def encode_layer_maps(
    model: Model, image: Tensor, layer: str, channel_maps: ChannelMaps
) -> dict[str, Any]:
    """The data of one layer for the page, as JSON holds it.

    `rows` and `columns` are the pixels (start, end) that each row and column of its maps sees.
    """
    maps = channel_maps.maps.float().nan_to_num(0, 0, 0)
    row_count, column_count = maps.shape[1:]
    flat_maps = maps.flatten(1)
    low = flat_maps.amin(1)
    high = flat_maps.amax(1)
    value_range = (high - low).clamp_min(1e-30)
    shares = (flat_maps - low[:, None]) / value_range[:, None]
    steps = (shares * MAP_LEVELS).round().to(torch.uint8)

    channels: list[dict[str, float]] = []
    peaks = flat_maps.argmax(1).tolist()
    for unit, lowest, largest, peak in zip(
        channel_maps.units.tolist(), low.tolist(), high.tolist(), peaks, strict=True
    ):
        row, column = divmod(peak, column_count)
        channels.append(
            {"unit": unit, "low": lowest, "high": largest, "row": row, "column": column}
        )

    row_boxes = [find_receptive_box(model, layer, row, 0, image) for row in range(row_count)]
    column_boxes = [
        find_receptive_box(model, layer, 0, column, image) for column in range(column_count)
    ]
    return {
        "name": escape_for_display(layer),
        "signed": bool(low.min() < 0),
        "limit": channel_maps.scale_limit or 1.0,
        "rows": [(top, bottom) for top, _, bottom, _ in row_boxes],
        "columns": [(left, right) for _, left, _, right in column_boxes],
        "channels": channels,
        "bytes": base64.b64encode(steps.numpy().tobytes()).decode(),
    }
