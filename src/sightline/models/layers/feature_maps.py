"""Features of any layer as maps of the image."""

import torch
from torch import Tensor

from sightline.errors import SightlineError
from sightline.models.layers.layouts import list_feature_layouts
from sightline.models.layers.placement import ProbedModel, find_feature_layout


def reshape_to_feature_maps(
    feature: Tensor,
    height: int,
    width: int,
    *,
    batch: int | None = None,
    model: ProbedModel | None = None,
    layer: str = "",
) -> Tensor:
    """Features as N×C×h×w maps of images of height × width pixels.

    Convolutional features are returned as they are, N×h×w×C is permuted, the tokens of a
    transformer are laid on their grid without class tokens, and windows are joined.

    Args:
        feature: a layer's output, or its gradient.
        height: of the images.
        width: of the images.
        batch: how many images; by default the length of the first axis.
        model: whose layer it is. It is run where the shape can be read in several ways, once for a
            layer; without it the most customary reading counts.
        layer: the layer's name.

    Raises SightlineError for features without positions in the image.
    """
    count = len(feature) if batch is None else batch
    if model is None:
        layouts = list_feature_layouts(feature.shape, count, height, width)
        layout = layouts[0] if layouts else None
    else:
        image_shape = (count, model.channels, height, width)
        layout = find_feature_layout(model, layer, feature.shape, image_shape)
    if layout is None:
        subject = f"layer {layer}" if layer else "this layer"
        raise SightlineError(
            f"{subject} has no positions in the image: its output is {tuple(feature.shape)} for "
            f"{describe_image_count(count)} of {height}×{width}; choose a layer with feature maps"
        )
    return layout.arrange_as_maps(feature)


def reshape_to_unit_grid(
    feature: Tensor, image: Tensor, model: ProbedModel | None = None, layer: str = ""
) -> Tensor:
    """Any layer's features as N×units×rows×columns; a vector has one position.

    `model` and `layer` as for `reshape_to_feature_maps`.
    """
    if feature.ndim == 2:
        return feature[:, :, None, None]
    height, width = image.shape[-2:]
    try:
        return reshape_to_feature_maps(
            feature, height, width, batch=len(image), model=model, layer=layer
        )
    except SightlineError:
        # A single token, as attention pooling gives it, is a vector.
        if feature.ndim == 3 and feature.shape[:2] == (len(image), 1):
            return feature[:, 0, :, None, None]
        raise


def count_layer_units(model: ProbedModel, layer: str) -> int:
    """How many channels or units a layer has, by its own name."""
    blank = model.blank()
    with torch.no_grad():
        feature = model.run(blank, [layer])[layer]
    return reshape_to_unit_grid(feature, blank, model, layer).shape[1]


def describe_image_count(count: int) -> str:
    """A number of images in words."""
    return "one image" if count == 1 else f"{count} images"
