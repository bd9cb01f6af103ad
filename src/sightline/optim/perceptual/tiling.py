"""An image in tiles, each with a margin as wide as the receptive fields.

Every position of every layer belongs to exactly one tile.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from sightline.errors import SightlineError
from sightline.models.model import Model
from sightline.models.tracing.receptive_field import ReceptiveField, receptive_field

# The end of the positions of the last tile along an axis: beyond any feature map.
UNBOUNDED_END = 2**31


@dataclass(frozen=True)
class TileSpan:
    """The positions of a layer that a tile owns along one axis.

    Attributes:
        map_start: Where they start in the feature map of the whole image.
        tile_start: Where they start in the tile's own feature map.
        tile_end: Where they end in the tile's own feature map, exclusive.
    """

    map_start: int
    tile_start: int
    tile_end: int

    @property
    def map_slice(self) -> slice:
        """The positions in the feature map of the whole image."""
        count = self.tile_end - self.tile_start
        return slice(self.map_start, self.map_start + count)

    @property
    def tile_slice(self) -> slice:
        """The positions in the tile's own feature map."""
        return slice(self.tile_start, self.tile_end)


@dataclass(frozen=True)
class ImageTile:
    """The pixels of a tile, and the positions that it owns in each layer.

    Attributes:
        box: Top, left, bottom and right of its pixels, margin included.
        rows: The rows that it owns, by layer.
        columns: The columns that it owns, by layer.
    """

    box: tuple[int, int, int, int]
    rows: Mapping[str, TileSpan]
    columns: Mapping[str, TileSpan]

    def crop_image(self, image: Tensor) -> Tensor:
        """The tile's pixels of N×3×H×W, margin included, as a view."""
        top, left_edge, bottom, right_edge = self.box
        return image[:, :, top:bottom, left_edge:right_edge]

    def crop_owned_features(self, name: str, features: Tensor) -> Tensor:
        """The positions that the tile owns, of its own feature map of a layer."""
        rows = self.rows[name].tile_slice
        columns = self.columns[name].tile_slice
        return features[:, :, rows, columns]

    def crop_whole_map(self, name: str, whole_map: Tensor) -> Tensor:
        """The same positions of a map …×h×w of the whole image, as a view."""
        rows = self.rows[name].map_slice
        columns = self.columns[name].map_slice
        return whole_map[..., rows, columns]


def iterate_image_tiles(
    model: Model, layers: Sequence[str], height: int, width: int, tile_side: int
) -> Iterator[ImageTile]:
    """Cuts an image of height×width pixels into tiles of about `tile_side` pixels plus margin.

    Each position belongs to the tile that contains the centre of its receptive field. Raises
    SightlineError for a layer that sees the whole image.
    """
    fields = {name: receptive_field(model, name) for name in layers}
    for name, field in fields.items():
        if 0 in field.stride:
            raise SightlineError(
                f"layer {name} of {model.name} sees the whole image, which can't be cut into "
                "tiles; give more memory"
            )
    for top, bottom, rows in split_axis_into_tiles(fields, 0, height, tile_side):
        for start, end, columns in split_axis_into_tiles(fields, 1, width, tile_side):
            yield ImageTile((top, start, bottom, end), rows, columns)


def split_axis_into_tiles(
    fields: Mapping[str, ReceptiveField], axis: int, length: int, tile_side: int
) -> Iterator[tuple[int, int, dict[str, TileSpan]]]:
    """The tiles along one axis: start and end with margin, and the owned positions by layer."""
    # A tile that starts at a multiple of all strides has its feature maps on the image's grid.
    strides = [field.stride[axis] for field in fields.values()]
    step = math.lcm(*strides)
    margin = max(field.size[axis] for field in fields.values())

    max_count = length // step
    count = max(1, min(round(length / tile_side), max_count))
    edges: list[int] = []
    for index in range(count):
        even_edge = length * index / count
        edges.append(round(even_edge / step) * step)
    edges.append(length)

    for low, high in pairwise(edges):
        start_step = (low - margin) // step
        start = max(0, start_step * step)
        end = length
        if high + margin < length:
            end_step = math.ceil((high + margin) / step)
            end = min(length, end_step * step)
        spans = {
            name: find_owned_span(field, axis, length, start, (low, high))
            for name, field in fields.items()
        }
        yield start, end, spans


def find_owned_span(
    field: ReceptiveField, axis: int, length: int, tile_start: int, bounds: tuple[int, int]
) -> TileSpan:
    """The positions whose receptive field has its centre in `bounds`, low ≤ centre < high.

    The first and the last tile along the axis also own what lies beyond them.
    """
    low, high = bounds
    stride = field.stride[axis]
    first_centre = field.offset[axis] + field.size[axis] / 2

    start = 0
    if low > 0:
        first_inside = math.ceil((low - first_centre) / stride)
        start = max(0, first_inside)

    end = UNBOUNDED_END
    if high < length:
        first_beyond = math.ceil((high - first_centre) / stride)
        end = max(0, first_beyond)

    tile_offset = tile_start // stride
    return TileSpan(start, start - tile_offset, end - tile_offset)


@torch.no_grad()
def measure_feature_map_sizes(
    model: Model, layers: Sequence[str], height: int, width: int
) -> dict[str, tuple[int, int]]:
    """Height and width of each layer's map of an image.

    Measured on a strip as high as the image and one as wide.
    """
    canonical_names = [model.layer(name) for name in layers]
    short_side = min(model.size, height, width)
    tall_strip = torch.zeros(1, model.channels, height, short_side, device=model.device)
    wide_strip = torch.zeros(1, model.channels, short_side, width, device=model.device)
    tall_features = model.run(tall_strip, canonical_names)
    wide_features = model.run(wide_strip, canonical_names)

    sizes: dict[str, tuple[int, int]] = {}
    for name, layer in zip(layers, canonical_names, strict=True):
        map_height = tall_features[layer].shape[2]
        map_width = wide_features[layer].shape[3]
        sizes[name] = (map_height, map_width)
    return sizes


@dataclass(frozen=True)
class TilePlan:
    """An image's tiles, and the size (height, width) of each layer's map of the whole image."""

    tiles: Sequence[ImageTile]
    feature_map_sizes: Mapping[str, tuple[int, int]]

    @property
    def position_shares(self) -> dict[str, float]:
        """What one position counts in the mean over a layer's map, by layer."""
        return {
            name: 1 / (height * width) for name, (height, width) in self.feature_map_sizes.items()
        }


def plan_tiles(
    model: Model, layers: Sequence[str], size: tuple[int, int], tile_side: int
) -> TilePlan:
    """The plan for an image of a size (height, width) in tiles of about `tile_side` pixels."""
    height, width = size
    return TilePlan(
        list(iterate_image_tiles(model, layers, height, width, tile_side)),
        measure_feature_map_sizes(model, layers, height, width),
    )
