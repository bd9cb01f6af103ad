"""The places of an image that are covered in turn, run in the ordinary way."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sightline.models.model import Model


class OcclusionScores(NamedTuple):
    """Scores windows × labels; the share of the network's multiply-adds that were localized; multiply-adds of running
    every covered image whole over those spent."""

    scores: Tensor
    localized_share: float
    speedup_bound: float


@dataclass(frozen=True)
class OcclusionWindows:
    """An image 1×3×H×W, of which a square of side `side` is covered at each place (top, left) with what is there in `fill`, 1×3×H×W."""

    image: Tensor
    fill: Tensor
    positions: Sequence[tuple[int, int]]
    side: int

    def crop_windows(self, window_indices: Sequence[int], source: Tensor) -> Tensor:
        """What `of`, 1×3×H×W, shows in some of the windows."""
        return torch.cat(
            [
                source[:, :, y : y + self.side, x : x + self.side]
                for y, x in (self.positions[i] for i in window_indices)
            ]
        )

    def occlude_windows(self, window_indices: Sequence[int]) -> Tensor:
        """The image with some of the windows covered, each in a copy."""
        found = self.image.repeat(len(window_indices), 1, 1, 1)
        for i, patch in enumerate(self.crop_windows(window_indices, self.fill)):
            y, x = self.positions[window_indices[i]]
            found[i, :, y : y + self.side, x : x + self.side] = patch
        return found


def run_occluded_images(model: Model, windows: OcclusionWindows, batch: int) -> Iterator[Tensor]:
    """Logits of every covered image, run whole, a batch at a time."""
    every = range(len(windows.positions))
    for start in every[::batch]:
        yield model.run(windows.occlude_windows(every[start : start + batch]), ["logits"])["logits"]
