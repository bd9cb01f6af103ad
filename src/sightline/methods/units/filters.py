"""Filters as images (the lecture's first question: what are the weights?)."""

from typing import Annotated

import torch
from torch import Tensor, nn

from sightline.errors import SightlineError
from sightline.images.plotting.maps import enlarge_pixels, make_contact_sheet, render_around_gray
from sightline.models.model import Model
from sightline.registry.method import register_method
from sightline.registry.parameter import ValueRange
from sightline.registry.result import Result


@register_method(
    chapter="weights",
    title="Filters",
    question="What are the weights? Each unit of the first layer takes an inner product with a small patch; the patch it likes best looks like its filter.",
    reading="In a well-trained network the first filters are oriented edges, gratings and colour blobs. Grainy or blank filters point to short "
    "training, too little data or a dead unit.",
    caution="A filter's colours are around gray, not pictures of anything in the world. Filters of deeper layers read channels that have no colour, "
    "so their weights say little; look at activations, top patches or synthesis instead.",
    tour_runs=({}, {"layer": "middle", "k": 12}),
)
def filters(
    model: Model,
    *,
    layer: str = "first",
    k: Annotated[int, ValueRange(1, 1024)] = 256,
    inputs: Annotated[int, ValueRange(1, 64)] = 12,
) -> Result:
    """Shows a convolution's filters as images, all on one common scale around gray.

    A layer without filters stands for the last convolution that its output comes from. Filters that read three colours are
    shown in colour, in the order of their units. Deeper ones are shown as gray squares, one per input channel: a row for
    each of the k filters of largest norm, its strongest input channels first.

    Args:
        k: How many filters at most; of a layer that doesn't read colours, no more than 24.
        inputs: How many input channels of each filter, for layers that don't read colours.
    """
    name = find_conv_layer(model, model.layer(layer))
    weight = model.module(name).get_parameter("weight").detach().float().cpu()
    layer = layer if name == model.layer(layer) else model.layers[name].alias or name
    count, channels, height, width = weight.shape
    common = f"{height}×{width} pixels each, one scale for all (gray is zero, ±{weight.abs().max():.3g} is full colour)"
    if channels == 3:
        shown = weight[:k]
        panel = make_contact_sheet(
            enlarge_pixels(render_around_gray(shown, float(weight.abs().max())), 42), gap=4
        )
        caption = f"{len(shown)} of the {count} filters of {layer}, {common}."
        values: dict[str, Tensor] = {"filters": weight, "norm": weight.flatten(1).norm(dim=1)}
        return Result({"filters": panel}, values, {"filters": caption})
    strength = weight.flatten(2).norm(dim=2)
    rows = strength.norm(dim=1).argsort(descending=True)[: min(k, 24)]
    columns = strength[rows].argsort(dim=1, descending=True)[:, :inputs]
    chosen = torch.stack([weight[row][column] for row, column in zip(rows, columns, strict=True)])
    squares = render_around_gray(
        chosen.flatten(0, 1).unsqueeze(1).expand(-1, 3, -1, -1), float(weight.abs().max())
    )
    panel = make_contact_sheet(enlarge_pixels(squares, 24), columns=columns.shape[1], gap=3)
    share = float(
        (
            strength[rows].gather(1, columns).square().sum(1)
            / strength[rows].square().sum(1).clamp_min(1e-30)
        ).mean()
    )
    caption = (
        f"{len(rows)} of the {count} filters of {layer} (largest norm first), a row each; in a row the {columns.shape[1]} of its {channels} input "
        f"channels with the largest weights, which hold {share:.0%} of the filter's squared norm. {common}. The channels have no colour and no "
        f"meaning of their own, so such a picture says little about what the unit looks for."
    )
    return Result(
        {"filters": panel},
        {"filters": weight, "units": rows, "inputs": columns, "share": share},
        {"filters": caption},
    )


def find_conv_layer(model: Model, name: str) -> str:
    """The layer itself if it is a convolution, else the last one that ran before its output was there.

    Raises SightlineError for networks and layers without one.
    """
    order = list(model.layers)
    name = order[-1] if name == "logits" else name
    upto = order[: order.index(name) + 1] if name in order else order
    convs = [other for other in upto if isinstance(model.module(other), nn.Conv2d)]
    if isinstance(model.module(name), nn.Linear):
        raise SightlineError(
            f"{name} is fully connected, it has no filters with a shape; choose a convolutional layer"
        )
    if not convs:
        raise SightlineError(
            f"{name} has no filters with a shape, and no convolution comes before it; choose a convolutional layer"
        )
    return convs[-1]
