"""The windows of an image that are covered one after the other, and the ordinary way to run."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sightline.models.model import Model


class OcclusionScores(NamedTuple):
    """Scores of covered images, and how they were computed.

    Attributes:
        label_indices: of the labels.
        clean_scores: of the image with nothing covered, one for each label.
        scores: windows×labels.
        localized_share: share of the network's multiply-adds that were computed incrementally.
        speedup_bound: multiply-adds of running every covered image whole over those spent.
        fallback: why nothing was computed incrementally; empty if it was.
        batch: how many covered images were run whole at once; 0 if incrementally.
    """

    label_indices: Tensor
    clean_scores: Tensor
    scores: Tensor
    localized_share: float
    speedup_bound: float
    fallback: str = ""
    batch: int = 0


@dataclass(frozen=True)
class OcclusionWindows:
    """An image, and the windows that are covered in it.

    Attributes:
        image: 1×3×H×W.
        fill: what covers: the window shows this image there, 1×3×H×W.
        positions: (top, left) of each window.
        side: of the square windows, in pixels.
    """

    image: Tensor
    fill: Tensor
    positions: Sequence[tuple[int, int]]
    side: int

    def crop_windows(self, window_indices: Sequence[int], source: Tensor) -> Tensor:
        """What an image 1×C×H×W shows in these windows, windows×C×side×side."""
        crops: list[Tensor] = []
        for index in window_indices:
            top, left = self.positions[index]
            crops.append(source[:, :, top : top + self.side, left : left + self.side])
        return torch.cat(crops)

    def occlude_windows(self, window_indices: Sequence[int | None]) -> Tensor:
        """Copies of the image, each with one of these windows covered, windows×3×H×W.

        None leaves the image as it is.
        """
        images = self.image.repeat(len(window_indices), 1, 1, 1)
        for image, index in zip(images, window_indices, strict=True):
            if index is not None:
                top, left = self.positions[index]
                rows = slice(top, top + self.side)
                cols = slice(left, left + self.side)
                image[:, rows, cols] = self.fill[0, :, rows, cols]
        return images


def run_occluded_images(
    model: Model, windows: OcclusionWindows, batches: Iterable[Sequence[int | None]]
) -> Iterator[Tensor]:
    """Logits of the covered images of each batch of window indices, run whole.

    None stands for the image with nothing covered.
    """
    for indices in batches:
        images = windows.occlude_windows(indices)
        yield model.run(images, ["logits"])["logits"]
