"""The default collection: overlapping tiles of the sample photographs, cut on the fly, each photograph a class."""

import hashlib
from functools import cache

from torch import Tensor

from sightline.images.io import sample, samples

TILES_PER_SHORT_SIDE = 3  # tiles of a third of the short side, in steps of half a tile


class Tiles:
    """About 400 squares, photograph by photograph, row by row."""

    source: str | None = ""

    def __init__(self) -> None:
        self.class_names = tuple(samples())
        self.boxes = [
            (name, *box)
            for name in self.class_names
            for box in list_tile_boxes(*_load_photograph(name).shape[-2:])
        ]
        self.digest = hashlib.sha256(repr(self.boxes).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.boxes)

    def get_path(self, position: int) -> str:
        name, top, left, side = self.boxes[position]
        return f"{name}[{top}:{top + side},{left}:{left + side}]"

    def get_label(self, position: int) -> int:
        return self.class_names.index(self.boxes[position][0])

    def read_image(self, position: int) -> Tensor:
        name, top, left, side = self.boxes[position]
        return _load_photograph(name)[..., top : top + side, left : left + side]


def list_tile_boxes(height: int, width: int) -> list[tuple[int, int, int]]:
    """Top, left and side of the tiles of a picture."""
    side = min(height, width) // TILES_PER_SHORT_SIDE
    step = side // 2
    return [
        (top, left, side)
        for top in range(0, height - side + 1, step)
        for left in range(0, width - side + 1, step)
    ]


@cache
def _load_photograph(name: str) -> Tensor:
    return sample(name)
