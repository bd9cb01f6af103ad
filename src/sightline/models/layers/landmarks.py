"""Landmarks of a network, guessed from its structure: the layers that methods use by default."""

from collections.abc import Sequence

from torch import nn

from sightline.models.layers.capture import Layer

LANDMARK_NAMES = ("first", "middle", "last_conv", "penultimate", "logits")

# A network with fewer convolutions uses them to cut the image into patches.
MIN_CONVOLUTIONS = 3

# How the common transformers name the norm before a block's attention.
_NORM_BEFORE_ATTENTION = ("norm1", "ln_1", "layernorm_before")


def guess_landmarks(layers: Sequence[Layer], modules: Sequence[nn.Module]) -> dict[str, str]:
    """`first`, `middle`, `last_conv`, `penultimate` and `logits` as layer names.

    `modules` are those of the layers, one for each. `NAME:in` is the input of a layer's module. A
    landmark that the structure does not have is left out.
    """
    pairs = list(zip(layers, modules, strict=True))
    convolutions = [layer for layer, module in pairs if isinstance(module, nn.Conv2d)]
    linear_layers = [layer for layer, module in pairs if isinstance(module, nn.Linear)]

    landmarks = {"logits": "logits"}
    if convolutions:
        landmarks["first"] = convolutions[0].name
    middle = _find_middle_layer(layers, convolutions)
    if middle:
        landmarks["middle"] = middle
    last_conv = _find_last_spatial_layer(layers)
    if last_conv:
        landmarks["last_conv"] = last_conv
    if linear_layers:
        landmarks["penultimate"] = f"{linear_layers[-1].name}:in"
    return landmarks


def _find_middle_layer(layers: Sequence[Layer], convolutions: Sequence[Layer]) -> str | None:
    """The ReLU after the middle convolution or, with few convolutions, the middle feature map."""
    if len(convolutions) < MIN_CONVOLUTIONS:
        candidates = [layer for layer in layers if _is_feature_map(layer) or _has_tokens(layer)]
        if candidates:
            return candidates[len(candidates) // 2].name
    if not convolutions:
        return None
    middle = convolutions[len(convolutions) // 2]
    for layer in layers[layers.index(middle) :]:
        if layer.is_spatial and "ReLU" in layer.kind:
            return layer.name
    return middle.name


def _find_last_spatial_layer(layers: Sequence[Layer]) -> str | None:
    """The last feature map of a convolutional network, or the last useful tokens of a transformer.

    A transformer's class score reads a single token after the last attention, so the other tokens
    have a gradient only before that attention.
    """
    token_layers = [layer for layer in layers if _has_tokens(layer)]
    if token_layers and token_layers[-1].shape[0] > 1:
        before_attention = [
            layer for layer in token_layers if layer.name.endswith(_NORM_BEFORE_ATTENTION)
        ]
        return (before_attention or token_layers)[-1].name
    feature_maps = [layer for layer in layers if _is_feature_map(layer)]
    return feature_maps[-1].name if feature_maps else None


def _is_feature_map(layer: Layer) -> bool:
    return layer.is_spatial and "Pool" not in layer.kind


def _has_tokens(layer: Layer) -> bool:
    """Whether the output is tokens × channels."""
    return len(layer.shape) == 2
