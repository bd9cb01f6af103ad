"""Features of any layer as maps of the image."""

import torch
from torch import Tensor

from sightline.errors import SightlineError
from sightline.models.layers.capture import Layer
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
        views = 1 if model is None else count_views(model, layer)
        advice = "choose a layer with feature maps"
        if model is not None and views > 1:
            advice = describe_views(model, views)
        raise SightlineError(
            f"{subject} has no positions in the image: its output is {tuple(feature.shape)} for "
            f"{describe_image_count(count)} of {height}×{width}; {advice}"
        )
    return layout.arrange_as_maps(feature)


def reshape_to_unit_grid(
    feature: Tensor, image: Tensor, model: ProbedModel | None = None, layer: str = ""
) -> Tensor:
    """Any layer's features as N×units×rows×columns; a vector has one position.

    `model` and `layer` as for `reshape_to_feature_maps`. Raises SightlineError as that, and for a
    layer with the vectors of several views of each image.
    """
    if feature.ndim == 2:
        if model is not None and len(feature) > len(image):
            views = count_views(model, layer)
            advice = describe_views(model, views) if views > 1 else "choose another layer"
            raise SightlineError(
                f"layer {layer} has no vector of each image: its output is {tuple(feature.shape)} "
                f"for {describe_image_count(len(image))}; {advice}"
            )
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


# ── several views of an image in one batch ──


def find_view_layers(model: ProbedModel) -> dict[str, int]:
    """The layers that see several views of each image in one batch, with the number of views.

    Views are whatever the network folds into its batch: mirror images, crops, frames, the two
    images of a pair, and windows and heads of an attention too. A layer's first axis is then longer
    than one for one image, and as many times longer for two.
    """
    candidates = [layer for layer in model.layers.values() if layer.batch > 1]
    if not candidates:
        return {}
    images = torch.cat([model.blank(), model.blank()])
    try:
        with torch.inference_mode(False), torch.no_grad():
            outputs = model.run(images, [layer.name for layer in candidates])
    except SightlineError:
        return {}  # it takes one image at a time
    return {
        layer.name: layer.batch
        for layer in candidates
        if len(outputs[layer.name]) == len(images) * layer.batch
    }


def count_views(model: ProbedModel, layer: str) -> int:
    """How many views of each image a layer sees in one batch, or its input as NAME:in."""
    return find_view_layers(model).get(layer.removesuffix(":in"), 1)


def describe_views(model: ProbedModel, views: int) -> str:
    """What a network with several views does, and the way out, for messages."""
    inner = find_viewing_module(model)
    load_it = f"load what sees them, sl.load(network.{inner}), or " if inner else ""
    return (
        f"{model.name} runs {views} views of each image in one batch (crops, mirror images, "
        "frames, a pair, windows), and its layers have a map of each view; "
        f"{load_it}ask saliency or occlusion, which need no layer"
    )


def find_viewing_module(model: ProbedModel) -> str:
    """The path of the outermost module around layers that see several views; empty without one."""
    view_layers = [model.layers[name] for name in find_view_layers(model)]
    containers = [layer.name for layer in view_layers if is_container(model, layer)]
    return min(containers, key=lambda path: path.count("."), default="")


def is_container(model: ProbedModel, layer: Layer) -> bool:
    """Whether a layer is the first call of a module with modules inside."""
    is_first_call = not layer.step and ":" not in layer.name
    return is_first_call and any(True for _ in model.module(layer.name).children())


def describe_image_count(count: int) -> str:
    """A number of images in words."""
    return "one image" if count == 1 else f"{count} images"
