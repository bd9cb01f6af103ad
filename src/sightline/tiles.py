"""An image in tiles, each with the margin that its units see: which places of which layer belong to which tile."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from .errors import SightlineError
from .model import Model
from .receptive import ReceptiveField, receptive_field


@dataclass(frozen=True)
class Part:
    """Places along one axis: from `start` in the whole map, `low` to `high` in the tile's own."""

    start: int
    low: int
    high: int


@dataclass(frozen=True)
class Tile:
    """What is read of the image (top, left, bottom, right), and for each layer the rows and columns that this tile answers for."""

    box: tuple[int, int, int, int]
    rows: Mapping[str, Part]
    columns: Mapping[str, Part]

    def cut(self, image: Tensor) -> Tensor:
        """The tile's pixels of N×3×H×W, margin included."""
        top, left, bottom, right = self.box
        return image[:, :, top:bottom, left:right]

    def own(self, name: str, features: Tensor) -> Tensor:
        """Of a layer's map of the tile, what it answers for."""
        rows, columns = self.rows[name], self.columns[name]
        return features[:, :, rows.low : rows.high, columns.low : columns.high]

    def of(self, name: str, whole: Tensor) -> Tensor:
        """The same places of a map of the whole image."""
        rows, columns = self.rows[name], self.columns[name]
        return whole[..., rows.start : rows.start + rows.high - rows.low, columns.start : columns.start + columns.high - columns.low]


def tiles(model: Model, layers: Sequence[str], height: int, width: int, side: int) -> Iterator[Tile]:
    """Cuts an image of height × width pixels into tiles of about `side` pixels, and what the layers see beyond them.

    Each place belongs to the tile that holds the centre of what it sees, and only there. Raises SightlineError for a layer
    that sees the whole image.
    """
    fields = {name: receptive_field(model, name) for name in layers}
    if blind := [name for name, field in fields.items() if 0 in field.stride]:
        raise SightlineError(f"layer {blind[0]} of {model.name} sees the whole image, which can't be cut into tiles; give more memory")
    for top, bottom, rows in stretches(fields, 0, height, side):
        for left, right, columns in stretches(fields, 1, width, side):
            yield Tile((top, left, bottom, right), rows, columns)


def stretches(fields: Mapping[str, ReceptiveField], axis: int, length: int, side: int) -> Iterator[tuple[int, int, dict[str, Part]]]:
    """The tiles along one axis: where each begins and ends, margin included, and its places in each layer."""
    step = math.lcm(*(field.stride[axis] for field in fields.values()))
    margin = max(field.size[axis] for field in fields.values())
    count = max(1, min(round(length / side), length // step))
    edges = [round(length * number / count / step) * step for number in range(count)] + [length]
    for low, high in pairwise(edges):
        begin = max(0, (low - margin) // step * step)
        end = length if high + margin >= length else -(-(high + margin) // step) * step
        yield begin, min(end, length), {name: part(field, axis, length, (begin, low, high)) for name, field in fields.items()}


def part(field: ReceptiveField, axis: int, length: int, edges: tuple[int, int, int]) -> Part:
    """Of a tile that is read from `begin`: the places whose field's centre lies from `low` to `high`; what lies beyond the first or last belongs to that tile."""
    begin, low, high = edges
    stride, middle = field.stride[axis], field.offset[axis] + field.size[axis] / 2
    first = 0 if low == 0 else max(0, math.ceil((low - middle) / stride))
    last = 2**31 if high == length else max(0, math.ceil((high - middle) / stride))
    return Part(first, first - begin // stride, last - begin // stride)


@torch.no_grad()
def map_sizes(model: Model, layers: Sequence[str], height: int, width: int) -> dict[str, tuple[int, int]]:
    """Height and width of each layer's map of a whole image, found on a strip of its height and one of its width."""
    names = {name: model.layer(name) for name in layers}
    short = min(model.size, height, width)
    strips = [model.run(torch.zeros(1, 3, *size, device=model.device), names.values()) for size in ((height, short), (short, width))]
    return {name: (strips[0][layer].shape[2], strips[1][layer].shape[3]) for name, layer in names.items()}


@dataclass(frozen=True)
class Plan:
    """How an image is cut, and the size (height, width) of each layer's map of the whole."""

    tiles: Sequence[Tile]
    sizes: Mapping[str, tuple[int, int]]

    @property
    def shares(self) -> dict[str, float]:
        """What one place of a layer counts in a mean over all."""
        return {name: 1 / (height * width) for name, (height, width) in self.sizes.items()}


def planned(model: Model, layers: Sequence[str], size: tuple[int, int], side: int) -> Plan:
    """The plan for an image of that size (height, width) in tiles of about `side` pixels."""
    return Plan(list(tiles(model, layers, *size, side)), map_sizes(model, layers, *size))
