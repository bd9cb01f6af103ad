"""Networks that run several views of each image in one batch: mirror images, crops, frames, pairs.

VIEW_NETWORKS holds what builds each, and how many views it runs.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from zoo.backbone import CLASSES, Classifier


class MirrorImages(Classifier):
    """The mean over the image and its mirror image; all images stand before all mirror images."""

    def forward(self, image: Tensor) -> Tensor:
        """N×5."""
        views = torch.cat([image, image.flip(3)])
        return super().forward(views).view(2, len(image), CLASSES).mean(0)  # type: ignore[attr-defined]


class FourMirrorImages(Classifier):
    """The image mirrored in both axes, the views of an image side by side."""

    def forward(self, image: Tensor) -> Tensor:
        """N×5."""
        views = torch.stack([image, image.flip(3), image.flip(2), image.flip(2, 3)], 1)
        features = self.pool_features(views.flatten(0, 1))
        return self.head(features.view(len(image), 4, -1).mean(1))


class FiveCrops(nn.Module):
    """The corners and the centre, by a network of its own inside."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Classifier()

    def forward(self, image: Tensor) -> Tensor:
        """N×5."""
        height, width = (3 * side // 4 for side in image.shape[2:])
        top, left = image.shape[2] // 8, image.shape[3] // 8
        crops = [
            image[:, :, :height, :width],
            image[:, :, :height, -width:],
            image[:, :, -height:, :width],
            image[:, :, -height:, -width:],
            image[:, :, top : top + height, left : left + width],
        ]
        scores = self.net(torch.stack(crops, 1).flatten(0, 1))
        return scores.view(len(image), 5, CLASSES).amax(1)


class PairInOneBatch(Classifier):
    """The difference to another image that is given, both in one batch."""

    def forward(self, image: Tensor, other: Tensor) -> Tensor:
        """N×5."""
        first, second = self.pool_features(torch.cat([image, other])).chunk(2)
        return self.head(first - second)


class FoldedFrames(Classifier):
    """The mean over frames, here the image moved by a few pixels."""

    def forward(self, image: Tensor) -> Tensor:
        """N×5."""
        frames = torch.stack([image.roll(step, 3) for step in (0, 2, 4)], 1)
        features = self.pool_features(frames.flatten(0, 1))
        return self.head(features.unflatten(0, (len(image), 3)).mean(1))


VIEW_NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "mirror_images": (MirrorImages, 2),
    "four_mirror_images": (FourMirrorImages, 4),
    "five_crops": (FiveCrops, 5),
    "pair_in_one_batch": (PairInOneBatch, 2),
    "folded_frames": (FoldedFrames, 3),
}


class BagOfPatches(Classifier):
    """The best of patches that make up the image, all in one batch."""

    def forward(self, image: Tensor) -> Tensor:
        """N×5."""
        side = 16
        patches = image.unfold(2, side, side).unfold(3, side, side).permute(0, 2, 3, 1, 4, 5)
        features = self.pool_features(patches.flatten(1, 2).flatten(0, 1))
        return self.head(features.view(len(image), -1, features.shape[1]).amax(1))
