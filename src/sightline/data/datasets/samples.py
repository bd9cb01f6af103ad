"""The default dataset: overlapping tiles of the sample photographs, one class a photograph."""

import hashlib
from functools import cache

from torch import Tensor

from sightline.images.io.pictures import sample, samples

TILES_PER_SHORT_SIDE = 3  # a tile's side is a third of the photograph's short side


class Tiles:
    """About 400 square tiles, photograph by photograph, row by row."""

    source: str | None = ""

    def __init__(self) -> None:
        self.class_names = tuple(samples())
        self.boxes: list[tuple[str, int, int, int]] = []
        for name in self.class_names:
            height, width = _load_photograph(name).shape[-2:]
            for top, left, side in list_tile_boxes(height, width):
                self.boxes.append((name, top, left, side))
        self.digest = hashlib.sha256(repr(self.boxes).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, position: int) -> Tensor:
        return self.read_image(position)

    def get_path(self, position: int) -> str:
        name, top, left, side = self.boxes[position]
        return f"{name}[{top}:{top + side},{left}:{left + side}]"

    def get_label(self, position: int) -> int:
        name = self.boxes[position][0]
        return self.class_names.index(name)

    def read_image(self, position: int) -> Tensor:
        name, top, left, side = self.boxes[position]
        return _load_photograph(name)[..., top : top + side, left : left + side]


def list_tile_boxes(height: int, width: int) -> list[tuple[int, int, int]]:
    """Top, left and side of each tile of a photograph, half a tile apart."""
    side = min(height, width) // TILES_PER_SHORT_SIDE
    step = side // 2
    tops = range(0, height - side + 1, step)
    lefts = range(0, width - side + 1, step)
    return [(top, left, side) for top in tops for left in lefts]


@cache
def _load_photograph(name: str) -> Tensor:
    return sample(name)
