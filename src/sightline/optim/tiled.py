"""The gradient of an objective for images of any size, tile by tile.

The tiles overlap, and memory is bounded by the size of a tile.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sightline.errors import SightlineError
from sightline.images.transforms import ImageSize
from sightline.models.model import Model
from sightline.models.network.guard import SIZE_MULTIPLES
from sightline.optim.objectives.objective import Objective
from sightline.optim.score_gradient import compute_loss_gradient, run_layers

# Neighbouring tiles overlap by at least this fraction of a tile: a fourth.
OVERLAP_DIVISOR = 4

# Sides of tiles are rounded up to a multiple of so many pixels.
TILE_SIDE_MULTIPLE = 8

# A tile's sides: at most so many pixels, or exactly so many rows and columns.
TileSize = int | ImageSize

# Where some pixels of a tile lie along an axis: on the image, and in the tile.
SpanPair = tuple[slice, slice]


def compute_tile_starts(length: int, tile_side: int) -> list[int]:
    """Where tiles start along an axis: evenly spaced, with the last one ending at `length`."""
    if length <= tile_side:
        return [0]
    max_step = tile_side - tile_side // OVERLAP_DIVISOR
    last_start = length - tile_side
    count = math.ceil(last_start / max_step) + 1
    return [round(index * last_start / (count - 1)) for index in range(count)]


def compute_tile_weights(length: int, tile_side: int) -> list[Tensor]:
    """Each tile's weight for each of its pixels along an axis; the weights of a pixel sum to 1.

    A tile counts most in its middle: near its edges the network sees padding instead of the image.
    At an edge of the image there is no other tile, and the weight stays full.
    """
    starts = compute_tile_starts(length, tile_side)
    side = min(length, tile_side)
    overlap = tile_side / OVERLAP_DIVISOR
    position = torch.arange(side) + 0.5
    no_edge = torch.full_like(position, torch.inf)
    total = torch.zeros(length)
    weights: list[Tensor] = []
    for start in starts:
        start_distance = position if start > 0 else no_edge
        end_distance = side - position if start + side < length else no_edge
        edge_distance = torch.minimum(start_distance, end_distance)
        ramp = (edge_distance / overlap).clamp(0, 1)
        weight = (ramp * (torch.pi / 2)).sin().square()
        total[start : start + side] += weight
        weights.append(weight)

    normalized_weights: list[Tensor] = []
    for start, weight in zip(starts, weights, strict=True):
        local_total = total[start : start + side]
        normalized_weights.append(weight / local_total)
    return normalized_weights


def balance_tile_side(length: int, tile_side: int) -> int:
    """The smallest side, at most `tile_side`, that covers an axis with as many tiles."""
    count = len(compute_tile_starts(length, tile_side))
    if count == 1:
        return length
    # `count` tiles of side s that overlap by s/4 cover s·(3·count + 1)/4 pixels.
    covered_fourths = count * (OVERLAP_DIVISOR - 1) + 1
    min_side = math.ceil(length * OVERLAP_DIVISOR / covered_fourths)
    multiples = math.ceil(min_side / TILE_SIDE_MULTIPLE)
    return min(tile_side, multiples * TILE_SIDE_MULTIPLE)


def find_tile_sides(height: int, width: int, tile_size: TileSize) -> ImageSize:
    """Rows and columns of the tiles of an image."""
    if isinstance(tile_size, int):
        return balance_tile_side(height, tile_size), balance_tile_side(width, tile_size)
    return tile_size


def split_wrapped_range(start: int, count: int, length: int) -> list[SpanPair]:
    """`count` pixels from `start` on, around an axis of `length`, as one span or two.

    Each span is given on the axis and within the `count` pixels.
    """
    start %= length
    first_count = min(count, length - start)
    spans = [(slice(start, start + first_count), slice(0, first_count))]
    if first_count < count:
        spans.append((slice(0, count - first_count), slice(first_count, count)))
    return spans


@dataclass(frozen=True)
class WrappedTile:
    """A tile that may continue at the opposite border of the image.

    Attributes:
        weight: What each of its pixels contributes to the image, h×w.
        row_spans: Its rows, from top to bottom.
        column_spans: Its columns, from left to right.
    """

    weight: Tensor
    row_spans: list[SpanPair]
    column_spans: list[SpanPair]

    def crop_image(self, image: Tensor) -> Tensor:
        """The image's pixels under the tile, N×C×h×w, a copy."""
        bands: list[Tensor] = []
        for image_rows, _ in self.row_spans:
            pieces = [image[..., image_rows, columns] for columns, _ in self.column_spans]
            bands.append(torch.cat(pieces, 3))
        return torch.cat(bands, 2)

    def add_weighted(self, image: Tensor, tile: Tensor) -> None:
        """Adds the tile's values, weighted, to the image in place."""
        weighted = tile * self.weight.to(tile.device)
        for image_rows, tile_rows in self.row_spans:
            for image_columns, tile_columns in self.column_spans:
                piece = weighted[..., tile_rows, tile_columns]
                image[..., image_rows, image_columns] += piece


def iterate_wrapped_tiles(
    height: int, width: int, tile_size: TileSize, shift: tuple[int, int] = (0, 0)
) -> Iterator[WrappedTile]:
    """The tiles of an image that is rolled by `shift` pixels down and right (`Tensor.roll`).

    They are positioned on the image as it is, so it needn't be rolled.
    """
    row_side, column_side = find_tile_sides(height, width, tile_size)
    rows = locate_wrapped_spans(height, row_side, shift[0])
    columns = locate_wrapped_spans(width, column_side, shift[1])
    for row_spans, row_weight in rows:
        for column_spans, column_weight in columns:
            weight = row_weight[:, None] * column_weight
            yield WrappedTile(weight, row_spans, column_spans)


def locate_wrapped_spans(
    length: int, tile_side: int, shift: int
) -> list[tuple[list[SpanPair], Tensor]]:
    """The spans and weights of the tiles along an axis of an image that is rolled by `shift`."""
    starts = compute_tile_starts(length, tile_side)
    weights = compute_tile_weights(length, tile_side)
    tiles: list[tuple[list[SpanPair], Tensor]] = []
    for start, weight in zip(starts, weights, strict=True):
        spans = split_wrapped_range(start - shift, len(weight), length)
        tiles.append((spans, weight))
    return tiles


@torch.enable_grad()
def compute_tiled_gradient(
    model: Model,
    objective: Objective,
    image: Tensor,
    tile_size: TileSize,
    shift: tuple[int, int] = (0, 0),
) -> tuple[Tensor, Tensor]:
    """∂objective/∂image of images N×C×H×W, and the objective, N.

    The objective is the mean over tiles of `tile_size`; an image that is no larger is one tile. The
    tiles are those of the image rolled by `shift` pixels down and right. Raises SightlineError if
    the network is cut off from differentiation.
    """
    height, width = image.shape[2:]
    score_function = objective.bind(model)
    layers = [model.layer(name) for name in objective.layers]

    gradient = torch.zeros_like(image)
    scores: list[Tensor] = []
    for tile in iterate_wrapped_tiles(height, width, tile_size, shift):
        score, loss_gradient = compute_loss_gradient(
            model, score_function, layers, tile.crop_image(image)
        )
        tile.add_weighted(gradient, -loss_gradient)
        scores.append(score)
    return gradient, torch.stack(scores).mean(0)


@torch.no_grad()
def compute_tiled_score(
    model: Model, objective: Objective, image: Tensor, tile_size: TileSize
) -> Tensor:
    """The objective of images N×C×H×W as in `compute_tiled_gradient`, N, without the gradient."""
    height, width = image.shape[2:]
    score_function = objective.bind(model)
    layers = [model.layer(name) for name in objective.layers]

    scores: list[Tensor] = []
    for tile in iterate_wrapped_tiles(height, width, tile_size):
        pixels = tile.crop_image(image)
        scores.append(score_function(pixels, run_layers(model, pixels, layers)))
    return torch.stack(scores).mean(0)


# ── sizes that a network takes ──


def choose_tile_size(
    model: Model, objective: Objective, size: ImageSize, tile_side: int
) -> TileSize | None:
    """The tiles that a network takes of an image of this size; None where it takes none.

    These are tiles of at most `tile_side` pixels a side; for a network that refuses them, the
    largest with both sides a multiple of a common number, or of the network's own size.
    """
    if takes_image_size(model, objective, find_tile_sides(*size, tile_side)):
        return tile_side
    height = min(size[0], tile_side)
    width = min(size[1], tile_side)
    candidates = {
        (height // multiple * multiple, width // multiple * multiple) for multiple in SIZE_MULTIPLES
    }
    largest_first = sorted(candidates, key=lambda sides: sides[0] * sides[1], reverse=True)
    own_height, own_width = model.image_size
    for rows, columns in [*largest_first, (own_height, own_width)]:
        fits = 0 < rows <= size[0] and 0 < columns <= size[1]
        if fits and takes_image_size(model, objective, (rows, columns)):
            return rows, columns
    return None


@torch.no_grad()
def takes_image_size(model: Model, objective: Objective, size: ImageSize) -> bool:
    """Whether the network runs on an image of this size, as far as the objective needs it."""
    return reaches_layers(model, objective.layers, size)


def reaches_layers(model: Model, layers: Iterable[str], size: ImageSize) -> bool:
    """Whether the network runs on an image of this size, as far as these layers."""
    gray = torch.full((1, model.channels, *size), 0.5, dtype=torch.float32, device=model.device)
    names = [model.layer(name) for name in layers]
    try:
        run_layers(model, gray, names)
    except SightlineError:
        return False
    return True
