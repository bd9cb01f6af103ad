"""Activation maps: where in the image each channel fires (Yosinski 2015, section 2)."""

from typing import Annotated

import torch
from torch import Tensor

from ... import render
from ...catalog import Between, method
from ...model import Model
from ...outputs import as_maps
from ...result import Result


@method(
    title="Activation maps",
    question="Where in the image does each channel fire?",
    reading="Each square is one channel, laid out like the image. Early maps look like edge drawings; deeper ones are coarse and sparse, and some "
    "light up on one part of one object.",
    caution="A channel that fires on an object in one image need not be its detector: look at what else makes it fire. All squares of a layer share one "
    "scale, so dark ones are truly weak.",
)
def activations(
    model: Model, image: Tensor, *, layers: tuple[str, ...] = ("first", "middle", "last_conv"), k: Annotated[int, Between(1, 256)] = 32
) -> Result:
    """Shows the k strongest channels of layers at several depths as maps over the image, strongest first.

    Args:
        layers: Layers to show: names, aliases or landmarks.
        k: How many channels of each layer.
    """
    found = model.features(image, layers)
    panels: dict[str, Tensor] = {}
    captions: dict[str, str] = {}
    values: dict[str, Tensor] = {}
    for layer in layers:
        maps = as_maps(found[layer], *image.shape[-2:]).detach().cpu()
        order = maps.flatten(2).amax(2).argsort(dim=1, descending=True)[:, :k]
        rows = [sheet_of(one[index]) for one, index in zip(maps, order, strict=True)]
        name = layer.replace(".", "_").replace(":", "_")
        panels[name] = render.sheet(torch.cat(rows), columns=1, gap=8)
        values |= {f"{name}_maps": maps, f"{name}_order": order}
        fired = (maps.flatten(2).amax(2) > 0).float().mean()
        captions[name] = (
            f"{layer} ({model.layer(layer)}): the {order.shape[1]} strongest of {maps.shape[1]} channels, {maps.shape[2]}×{maps.shape[3]} positions "
            f"each; {fired:.0%} of all channels fire somewhere. Strongest channel: {int(order[0, 0])}. {scale_of(maps[0, order[0]])}"
        )
    return Result(panels, values, captions)


def sheet_of(maps: Tensor) -> Tensor:
    """Maps K×h×w as one sheet on one scale, each at least 84 pixels."""
    top = top_of(maps).expand(len(maps))
    colored = render.signed(maps, top) if maps.min() < 0 else render.heat(maps, top, "gray")
    return render.sheet(render.enlarge(colored, 84), columns=8, gap=3)


def top_of(maps: Tensor) -> Tensor:
    """Where the scale ends: the 99.8th percentile, so that a single spot doesn't leave the rest dark."""
    magnitude = maps.abs().flatten()
    return magnitude.kthvalue(max(1, round(0.998 * len(magnitude)))).values


def scale_of(maps: Tensor) -> str:
    """One sentence on the colours."""
    top = top_of(maps)
    return (
        f"White is zero, red positive, blue negative, full colour at ±{top:.3g} or more."
        if maps.min() < 0
        else f"Black is zero, white is {top:.3g} or more."
    )
