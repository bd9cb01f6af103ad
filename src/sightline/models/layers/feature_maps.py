"""Features of any layer as maps of the image."""

from typing import NamedTuple

from torch import Tensor

from sightline.errors import SightlineError

# A grid of features matches an image if their aspect ratios differ by less than this share.
ASPECT_TOLERANCE = 0.1

# Class and register tokens stand before those of the image.
MAX_EXTRA_TOKENS = 16


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
