"""The page on which activation maps are browsed: layers, their channels by strength, and what each place of a map sees."""

import base64
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sightline.images.plotting.html import make_data_uri, render_template
from sightline.models.model import Model
from sightline.models.tracing.crops import find_receptive_box

MAP_LEVELS = 255


class ChannelMaps(NamedTuple):
    """Channels of a layer, in the order they are shown: their numbers K, their maps K×h×w, and where the scale of the colours ends."""

    units: Tensor
    maps: Tensor
    scale_limit: float


def render_browse_page(
    model: Model, image: Tensor, channels_by_layer: Mapping[str, ChannelMaps]
) -> str:
    """The page of one image 1×3×H×W. `shown` has the channels of each layer.

    A map travels in 255 steps between its own least and largest value, so the page's numbers are that exact.
    """
    layers = [
        encode_layer_maps(model, image, name, channels)
        for name, channels in channels_by_layer.items()
    ]
    height, width = image.shape[-2:]
    return render_template(
        "activations.html",
        name=model.name,
        image=make_data_uri(image),
        height=height,
        width=width,
        layers=layers,
    )


def encode_layer_maps(
    model: Model, image: Tensor, layer: str, channel_maps: ChannelMaps
) -> dict[str, Any]:
    """What the page has to know of one layer: the pixels that its rows and columns see (start, end), and its channels."""
    maps = channel_maps.maps.float().nan_to_num(0, 0, 0)
    flat = maps.flatten(1)
    low, high, peak = flat.amin(1), flat.amax(1), flat.argmax(1)
    steps = (
        ((flat - low[:, None]) / (high - low).clamp_min(1e-30)[:, None] * MAP_LEVELS)
        .round()
        .to(torch.uint8)
    )
    columns = maps.shape[2]
    channels = [
        {"unit": unit, "low": a, "high": b, "row": at // columns, "column": at % columns}
        for unit, a, b, at in zip(
            channel_maps.units.tolist(), low.tolist(), high.tolist(), peak.tolist(), strict=True
        )
    ]
    return {
        "name": layer,
        "signed": bool(low.min() < 0),
        "top": channel_maps.scale_limit or 1.0,
        "rows": [
            find_receptive_box(model, layer, row, 0, image)[0::2] for row in range(maps.shape[1])
        ],
        "columns": [
            find_receptive_box(model, layer, 0, column, image)[1::2] for column in range(columns)
        ],
        "channels": channels,
        "bytes": base64.b64encode(steps.numpy().tobytes()).decode(),
    }
