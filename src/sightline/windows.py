"""The places of an image that are covered in turn, run in the ordinary way."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .model import Model


class Covering(NamedTuple):
    """Scores windows × labels; the share of the network's multiply-adds that were localized; multiply-adds of running
    every covered image whole over those spent."""

    scores: Tensor
    share: float
    bound: float


@dataclass(frozen=True)
class Windows:
    """An image 1×3×H×W, of which a square of side `side` is covered at each place (top, left) with what is there in `fill`, 1×3×H×W."""

    image: Tensor
    fill: Tensor
    places: Sequence[tuple[int, int]]
    side: int

    def patches(self, part: Sequence[int], of: Tensor) -> Tensor:
        """What `of`, 1×3×H×W, shows in some of the windows."""
        return torch.cat([of[:, :, y : y + self.side, x : x + self.side] for y, x in (self.places[i] for i in part)])

    def covered(self, part: Sequence[int]) -> Tensor:
        """The image with some of the windows covered, each in a copy."""
        found = self.image.repeat(len(part), 1, 1, 1)
        for i, patch in enumerate(self.patches(part, self.fill)):
            y, x = self.places[part[i]]
            found[i, :, y : y + self.side, x : x + self.side] = patch
        return found


def whole(model: Model, windows: Windows, batch: int) -> Iterator[Tensor]:
    """Logits of every covered image, run whole, a batch at a time."""
    every = range(len(windows.places))
    for start in every[::batch]:
        yield model.run(windows.covered(every[start : start + batch]), ["logits"])["logits"]
