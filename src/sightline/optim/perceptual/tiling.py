"""An image in tiles, each with the margin that its units see: which places of which layer belong to which tile."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from sightline.errors import SightlineError
from sightline.models.model import Model
from sightline.models.tracing.receptive_field import ReceptiveField, receptive_field


@dataclass(frozen=True)
class TileSpan:
    """Places along one axis: from `start` in the whole map, `low` to `high` in the tile's own."""

    map_start: int
    tile_start: int
    tile_end: int


@dataclass(frozen=True)
class ImageTile:
    """What is read of the image (top, left, bottom, right), and for each layer the rows and columns that this tile answers for."""

    box: tuple[int, int, int, int]
    rows: Mapping[str, TileSpan]
    columns: Mapping[str, TileSpan]

    def crop_image(self, image: Tensor) -> Tensor:
        """The tile's pixels of N×3×H×W, margin included."""
        top, left, bottom, right = self.box
        return image[:, :, top:bottom, left:right]

    def crop_owned_features(self, name: str, features: Tensor) -> Tensor:
        """Of a layer's map of the tile, what it answers for."""
        rows, columns = self.rows[name], self.columns[name]
        return features[
            :, :, rows.tile_start : rows.tile_end, columns.tile_start : columns.tile_end
        ]

    def crop_whole_map(self, name: str, whole_map: Tensor) -> Tensor:
        """The same places of a map of the whole image."""
        rows, columns = self.rows[name], self.columns[name]
        return whole_map[
            ...,
            rows.map_start : rows.map_start + rows.tile_end - rows.tile_start,
            columns.map_start : columns.map_start + columns.tile_end - columns.tile_start,
        ]


def iterate_image_tiles(
    model: Model, layers: Sequence[str], height: int, width: int, tile_side: int
) -> Iterator[ImageTile]:
    """Cuts an image of height × width pixels into tiles of about `side` pixels, and what the layers see beyond them.

    Each place belongs to the tile that holds the centre of what it sees, and only there. Raises SightlineError for a layer
    that sees the whole image.
    """
    fields = {name: receptive_field(model, name) for name in layers}
    if blind := [name for name, field in fields.items() if 0 in field.stride]:
        raise SightlineError(
            f"layer {blind[0]} of {model.name} sees the whole image, which can't be cut into tiles; give more memory"
        )
    for top, bottom, rows in split_axis_into_tiles(fields, 0, height, tile_side):
        for left, right, columns in split_axis_into_tiles(fields, 1, width, tile_side):
            yield ImageTile((top, left, bottom, right), rows, columns)


def split_axis_into_tiles(
    fields: Mapping[str, ReceptiveField], axis: int, length: int, tile_side: int
) -> Iterator[tuple[int, int, dict[str, TileSpan]]]:
    """The tiles along one axis: where each begins and ends, margin included, and its places in each layer."""
    step = math.lcm(*(field.stride[axis] for field in fields.values()))
    margin = max(field.size[axis] for field in fields.values())
    count = max(1, min(round(length / tile_side), length // step))
    edges = [round(length * number / count / step) * step for number in range(count)] + [length]
    for low, high in pairwise(edges):
        begin = max(0, (low - margin) // step * step)
        end = length if high + margin >= length else -(-(high + margin) // step) * step
        yield (
            begin,
            min(end, length),
            {
                name: find_owned_span(field, axis, length, (begin, low, high))
                for name, field in fields.items()
            },
        )


def find_owned_span(
    field: ReceptiveField, axis: int, length: int, edges: tuple[int, int, int]
) -> TileSpan:
    """Of a tile that is read from `begin`: the places whose field's centre lies from `low` to `high`; what lies beyond the first or last belongs to that tile."""
    begin, low, high = edges
    stride, middle = field.stride[axis], field.offset[axis] + field.size[axis] / 2
    first = 0 if low == 0 else max(0, math.ceil((low - middle) / stride))
    last = 2**31 if high == length else max(0, math.ceil((high - middle) / stride))
    return TileSpan(first, first - begin // stride, last - begin // stride)


@torch.no_grad()
def measure_feature_map_sizes(
    model: Model, layers: Sequence[str], height: int, width: int
) -> dict[str, tuple[int, int]]:
    """Height and width of each layer's map of a whole image, found on a strip of its height and one of its width."""
    names = {name: model.layer(name) for name in layers}
    short = min(model.size, height, width)
    strips = [
        model.run(torch.zeros(1, 3, *size, device=model.device), names.values())
        for size in ((height, short), (short, width))
    ]
    return {
        name: (strips[0][layer].shape[2], strips[1][layer].shape[3])
        for name, layer in names.items()
    }


@dataclass(frozen=True)
class TilePlan:
    """How an image is cut, and the size (height, width) of each layer's map of the whole."""

    tiles: Sequence[ImageTile]
    feature_map_sizes: Mapping[str, tuple[int, int]]

    @property
    def position_shares(self) -> dict[str, float]:
        """What one place of a layer counts in a mean over all."""
        return {
            name: 1 / (height * width) for name, (height, width) in self.feature_map_sizes.items()
        }


def plan_tiles(
    model: Model, layers: Sequence[str], size: tuple[int, int], tile_side: int
) -> TilePlan:
    """The plan for an image of that size (height, width) in tiles of about `side` pixels."""
    return TilePlan(
        list(iterate_image_tiles(model, layers, *size, tile_side)),
        measure_feature_map_sizes(model, layers, *size),
    )
