"""The filters of a convolution as images."""

from typing import Annotated

from torch import Tensor, nn

from sightline.errors import SightlineError
from sightline.images.plotting.maps import enlarge_pixels, make_contact_sheet, render_around_gray
from sightline.models.model import Model
from sightline.models.tracing.connections import read_weight
from sightline.registry.method import register_method
from sightline.registry.parameter import ValueRange
from sightline.registry.result import Result

MAX_GRAY_FILTERS = 24  # rows of a sheet of filters that do not read colours

# Short side in pixels of a filter on its sheet.
COLOR_TILE_SIDE = 42
GRAY_TILE_SIDE = 24


@register_method(
    chapter="weights",
    title="Filters",
    question="What are the weights? Each unit of the first layer takes an inner product with a "
    "small patch; the patch it likes best looks like its filter.",
    reading="In a well-trained network the first filters are oriented edges, gratings and colour "
    "blobs. Grainy or blank filters point to short training, too little data or a dead unit.",
    caution="A filter's colours are around gray, not pictures of anything in the world. Filters of "
    "deeper layers read channels that have no colour, so their weights say little; look at "
    "activations, top patches or synthesis instead.",
    tour_runs=({}, {"layer": "middle", "k": 12}),
    tour_titles=("Filters of the first layer", "Filters of a layer in the middle"),
)
def filters(
    model: Model,
    *,
    layer: str = "first",
    k: Annotated[int, ValueRange(1, 1024)] = 256,
    inputs: Annotated[int, ValueRange(1, 64)] = 12,
) -> Result:
    """Shows a convolution's filters as images, all on one scale around gray.

    For a layer without filters, the last convolution before it is shown. Filters that read three
    channels are shown in colour, in the order of their units; `values["norm"]` has their norms.

    Other filters are shown as gray squares, one for each input channel: a row for each of the k
    filters of largest norm, its strongest input channels first. `values["units"]` are those filters
    and `values["inputs"]` the channels, filters×channels; `values["share"]` is the part of the
    squared norm that the channels hold, averaged over the filters.

    `values["filters"]` are all weights, units×channels×height×width.

    Args:
        k: How many filters at most; of a layer that doesn't read colours, no more than 24.
        inputs: How many input channels of each filter, for layers that don't read colours.
    """
    conv_name = find_conv_layer(model, model.layer(layer))
    weight = read_weight(model.module(conv_name))
    if conv_name != model.layer(layer):
        layer = model.layers[conv_name].alias or conv_name
    if weight.shape[1] == 3:
        return show_color_filters(weight, layer, k)
    return show_gray_filters(weight, layer, min(k, MAX_GRAY_FILTERS), inputs)


def show_color_filters(weight: Tensor, layer: str, k: int) -> Result:
    """The first k filters that read three channels, as colours."""
    filters_shown = weight[:k]
    colors = render_around_gray(filters_shown, float(weight.abs().max()))
    panel = make_contact_sheet(enlarge_pixels(colors, COLOR_TILE_SIDE), gap=4)
    caption = (
        f"{len(filters_shown)} of the {len(weight)} filters of {layer}, "
        f"{describe_filter_scale(weight)}."
    )
    values = {"filters": weight, "norm": weight.flatten(1).norm(dim=1)}
    return Result({"filters": panel}, values, {"filters": caption})


def show_gray_filters(weight: Tensor, layer: str, k: int, input_count: int) -> Result:
    """The k filters of largest norm, one row each, and their strongest input channels."""
    channel_norms = weight.flatten(2).norm(dim=2)
    units = channel_norms.norm(dim=1).argsort(descending=True)[:k]
    unit_channel_norms = channel_norms[units]
    channels = unit_channel_norms.argsort(dim=1, descending=True)[:, :input_count]
    tiles = weight[units[:, None], channels].flatten(0, 1).unsqueeze(1).expand(-1, 3, -1, -1)
    gray_tiles = render_around_gray(tiles, float(weight.abs().max()))
    panel = make_contact_sheet(
        enlarge_pixels(gray_tiles, GRAY_TILE_SIDE), columns=channels.shape[1], gap=3
    )

    shown_square = unit_channel_norms.gather(1, channels).square().sum(1)
    whole_square = unit_channel_norms.square().sum(1).clamp_min(1e-30)
    share = float((shown_square / whole_square).mean())
    caption = (
        f"{len(units)} of the {len(weight)} filters of {layer} (largest norm first), a row each; "
        f"in a row the {channels.shape[1]} of its {weight.shape[1]} input channels with the "
        f"largest weights, which hold {share:.0%} of the filter's squared norm. "
        f"{describe_filter_scale(weight)}. The channels have no colour and no meaning of their "
        "own, so such a picture says little about what the unit looks for."
    )
    values = {"filters": weight, "units": units, "inputs": channels, "share": share}
    return Result({"filters": panel}, values, {"filters": caption})


def describe_filter_scale(weight: Tensor) -> str:
    """The size of the filters and the scale of their colours, in words."""
    height, width = weight.shape[-2:]
    return (
        f"{height}×{width} pixels each, one scale for all "
        f"(gray is zero, ±{weight.abs().max():.3g} is full colour)"
    )


def find_conv_layer(model: Model, name: str) -> str:
    """The layer itself if it is a convolution, else the last convolution before it.

    Raises SightlineError for a fully connected layer, and if there is no such convolution.
    """
    order = list(model.layers)
    if name == "logits":
        name = order[-1]
    steps = {layer.name for layer in model.layers.values() if layer.step}
    if name not in steps and isinstance(model.module(name), nn.Linear):
        raise SightlineError(
            f"{name} is fully connected, it has no filters with a shape; "
            "choose a convolutional layer"
        )

    candidates = order[: order.index(name) + 1] if name in order else order
    convolutions = [
        candidate
        for candidate in candidates
        if candidate not in steps and isinstance(model.module(candidate), nn.Conv2d)
    ]
    if not convolutions:
        raise SightlineError(
            f"{name} has no filters with a shape, and no convolution comes before it; "
            "choose a convolutional layer"
        )
    return convolutions[-1]
