"""The default dataset: parts of the sample pictures at several sizes, one class a picture."""

import hashlib
from functools import cache

from torch import Tensor

from sightline.images.io.library import PAINTING_NAMES, read_style_picture
from sightline.images.io.pictures import sample, samples
from sightline.images.sample_names import DRAWN_SAMPLE

# Side of a part as a share of the picture's short side, and the step from one to the next as a
# share of the part's side: the whole, halves that overlap, and thirds that do not.
PART_SIZES = ((1, 1.0), (2, 0.5), (3, 1.0))


class SampleParts:
    """About 400 square parts of photographs, textures and paintings, picture by picture."""

    source: str | None = ""

    def __init__(self) -> None:
        # The drawn sample is what the report asks about: a dataset of its parts would tell nothing.
        photographs = [name for name in samples() if name != DRAWN_SAMPLE]
        self.class_names = (*photographs, *PAINTING_NAMES)
        self.boxes: list[tuple[str, int, int, int]] = []
        for name in self.class_names:
            height, width = _load_picture(name).shape[-2:]
            for top, left, side in list_part_boxes(height, width):
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
        return _load_picture(name)[..., top : top + side, left : left + side]


def list_part_boxes(height: int, width: int) -> list[tuple[int, int, int]]:
    """Top, left and side of each part of a picture, the largest first."""
    boxes: list[tuple[int, int, int]] = []
    for divisor, step_share in PART_SIZES:
        side = min(height, width) // divisor
        step = max(1, round(side * step_share))
        for top in _list_part_starts(height, side, step):
            for left in _list_part_starts(width, side, step):
                boxes.append((top, left, side))
    return boxes


def _list_part_starts(length: int, side: int, step: int) -> list[int]:
    """Where parts start along one axis, spread evenly from edge to edge, about `step` apart."""
    slack = length - side
    count = round(slack / step)
    if not count:
        return [slack // 2]
    return [round(number * slack / count) for number in range(count + 1)]


@cache
def _load_picture(name: str) -> Tensor:
    return read_style_picture(name) if name in PAINTING_NAMES else sample(name)
