"""What the outputs of networks and layers mean: class scores, feature maps, gradients of scores."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from sightline.errors import SightlineError, make_unknown_name_error

# A grid of features matches an image if their aspect ratios differ by less than this share.
ASPECT_TOLERANCE = 0.1

# Class and register tokens stand before those of the image.
MAX_EXTRA_TOKENS = 16


def select_logits(output: Any, selector: int | str | None, network_name: str) -> Tensor:
    """Logits N×classes from what a network returns.

    That is a tensor, or one of a tuple or dict that `selector` picks: the index in a tuple (by
    default 0), the key in a dict (by default `logits`, `out` or the first one). The scores of a
    network that scores every position are averaged over positions.

    Raises SightlineError where there are no logits.
    """
    if isinstance(output, Mapping):
        output = _select_from_dict(cast(Mapping[Any, Any], output), selector)
    elif isinstance(output, (tuple, list)):
        output = _select_from_tuple(cast(Sequence[Any], output), selector, network_name)
    if not isinstance(output, Tensor) or output.ndim < 2:
        raise SightlineError(
            f"{network_name} returns {type(output).__name__}, not N×classes; "
            "pick its logits with output="
        )
    return output.flatten(2).mean(2) if output.ndim > 2 else output


def _select_from_dict(output: Mapping[Any, Any], selector: int | str | None) -> Any:
    keys = list(output)
    if selector is None:
        selector = next((key for key in ("logits", "out") if key in keys), keys[0])
    if selector not in keys:
        raise make_unknown_name_error("output", selector, map(str, keys))
    return output[selector]


def _select_from_tuple(output: Sequence[Any], selector: int | str | None, network_name: str) -> Any:
    index = selector or 0
    if not isinstance(index, int) or not -len(output) <= index < len(output):
        raise SightlineError(
            f"output is {index!r}; {network_name} returns {len(output)} values: "
            "give a number from 0"
        )
    return output[index]


def reshape_to_feature_maps(feature: Tensor, height: int, width: int) -> Tensor:
    """Features as N×C×h×w maps of an image of height × width pixels.

    Convolutional features are returned as they are, N×h×w×C is permuted, and the N×T×C tokens of a
    transformer are laid on their grid without class tokens.

    Raises SightlineError for features without positions in the image.
    """
    aspect = height / width
    if feature.ndim == 4:
        return feature.permute(0, 3, 1, 2) if _is_channels_last(feature, aspect) else feature
    grid = _find_token_grid(feature.shape[1], aspect) if feature.ndim == 3 else None
    if grid is None:
        raise SightlineError(
            f"this layer has no positions in the image: its output is {tuple(feature.shape)}; "
            "choose a convolutional layer"
        )
    image_tokens = feature[:, grid.extra_tokens :]
    return image_tokens.transpose(1, 2).unflatten(2, (grid.rows, grid.columns))


def _is_channels_last(feature: Tensor, aspect: float) -> bool:
    """Whether the axes 1 and 2, and not 2 and 3, have the image's aspect ratio."""
    _, first, second, third = feature.shape
    leading_aspect = first / second
    trailing_aspect = second / third
    if abs(leading_aspect / aspect - 1) >= ASPECT_TOLERANCE:
        return False
    return abs(trailing_aspect / aspect - 1) > ASPECT_TOLERANCE


class TokenGrid(NamedTuple):
    """How the tokens of a transformer lie on the image."""

    extra_tokens: int
    rows: int
    columns: int


def _find_token_grid(tokens: int, aspect: float) -> TokenGrid | None:
    """The grid of the image's aspect ratio that leaves the fewest extra tokens."""
    for extra_tokens in range(min(MAX_EXTRA_TOKENS + 1, tokens)):
        image_tokens = tokens - extra_tokens
        rows = round((image_tokens * aspect) ** 0.5)
        if rows == 0 or image_tokens % rows:
            continue
        columns = image_tokens // rows
        grid_aspect = rows * rows / image_tokens
        if abs(grid_aspect / aspect - 1) < ASPECT_TOLERANCE:
            return TokenGrid(extra_tokens, rows, columns)
    return None


def reshape_to_unit_grid(feature: Tensor, image: Tensor) -> Tensor:
    """Any layer's features as N×units×rows×columns; a vector has one position."""
    if feature.ndim == 2:
        return feature[:, :, None, None]
    height, width = image.shape[-2:]
    return reshape_to_feature_maps(feature, height, width)


def differentiate_scores(
    scores: Tensor, inputs: Tensor, inputs_name: str, *, retain_graph: bool = False
) -> Tensor:
    """The gradient of the sum of the scores with respect to the inputs, of the inputs' shape.

    Raises SightlineError where the scores don't depend on the inputs, or not in a differentiable
    way.
    """
    if not scores.requires_grad:
        raise SightlineError(
            f"the network's output has no gradient with respect to {inputs_name}: "
            "some step of it is cut off from differentiation"
        )
    (gradient,) = cast(
        tuple[Tensor | None],
        torch.autograd.grad(scores.sum(), inputs, retain_graph=retain_graph, allow_unused=True),
    )
    if gradient is None:
        raise SightlineError(f"the score does not depend on {inputs_name}; choose another layer")
    return gradient
