"""Estimates the memory that optimizing an image takes, and the tiles that keep within a limit."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from sightline.errors import SightlineError
from sightline.images.transforms import ImageSize
from sightline.models.model import Model
from sightline.models.tracing.batch_size import list_output_bytes

BYTES_PER_GB = 1e9

MIN_STYLE_TILE = 128

RGB_PIXEL_BYTES = 12

# Images held beside the history: the image, its gradient, the start of the last step, its result,
# and what the optimizer makes on the way.
WORKING_IMAGES = 8

# Bytes for each pixel of a pair in the history: a step and a change of the gradient.
BYTES_PER_PAIR = 2 * RGB_PIXEL_BYTES

# Without a fixed history, L-BFGS keeps as many pairs as hold a pixel's total below this limit.
# Beside wide layers 20 pairs take too much; elsewhere they save a tenth of the steps.
MAX_BYTES_PER_PIXEL = 1600
MIN_PAIRS = 10
MAX_PAIRS = 20


def count_feature_bytes(model: Model, layers: Iterable[str]) -> float:
    """Bytes for each pixel of the image that a pass with gradient keeps.

    Counted are the outputs of all layers up to the deepest of `layers`, at their full size; what
    containers pass on is counted twice. Measured in float32: 1.9 bytes for each of 4 with VGG-19,
    whose ReLUs work in place, 3.1 with SqueezeNet and 3.6 with the embedded network.
    """
    names = list(model.layers)
    read_names = [model.layer(name).removesuffix(":in") for name in layers]
    deepest = max(names.index(name) for name in read_names)

    one_pixel = torch.empty(1, 3, 1, 1)
    output_bytes = list_output_bytes(model, one_pixel)
    return sum(output_bytes[: deepest + 1])


@dataclass(frozen=True)
class OptimizationMemory:
    """The memory that optimizing an image of some size takes, by estimate.

    Attributes:
        limit_gb: GB (10⁹ bytes) that it may take.
        feature_bytes: Bytes for each pixel that a pass through the network keeps.
        history_size: Pairs of images in the optimizer's history; None for as many as fit.
    """

    limit_gb: float
    feature_bytes: float
    history_size: int | None = None

    def choose_pair_count(self, size: ImageSize) -> int:
        """How many pairs the history of an image of this size has."""
        if self.history_size is not None:
            return self.history_size
        bytes_per_pixel = min(MAX_BYTES_PER_PIXEL, self.limit_gb * BYTES_PER_GB / math.prod(size))
        free_bytes = bytes_per_pixel - self.feature_bytes - RGB_PIXEL_BYTES * WORKING_IMAGES
        pair_count = free_bytes / BYTES_PER_PAIR
        return int(min(max(pair_count, MIN_PAIRS), MAX_PAIRS))

    def count_image_bytes(self, size: ImageSize) -> int:
        """Bytes for each pixel of the images held: the history and the working images."""
        return BYTES_PER_PAIR * self.choose_pair_count(size) + RGB_PIXEL_BYTES * WORKING_IMAGES

    def estimate_total(self, size: ImageSize) -> float:
        """GB for features and images of the whole size at once."""
        bytes_per_pixel = self.feature_bytes + self.count_image_bytes(size)
        return math.prod(size) * bytes_per_pixel / BYTES_PER_GB

    def fits(self, size: ImageSize) -> bool:
        """Whether an image of this size can be optimized in one piece."""
        return self.estimate_total(size) <= self.limit_gb

    def choose_tile_side(self, size: ImageSize, margin: int) -> int:
        """The side in pixels of the largest tiles within the limit.

        `margin` is what a tile needs on each side beyond its own pixels. The images are held whole,
        so that tiles save features only. Raises SightlineError where not even the smallest tiles
        fit.
        """
        image_gb = math.prod(size) * self.count_image_bytes(size) / BYTES_PER_GB
        free_bytes = max(self.limit_gb - image_gb, 0) * BYTES_PER_GB
        side = math.sqrt(free_bytes / self.feature_bytes) - 2 * margin
        if side < MIN_STYLE_TILE:
            smallest_area = (MIN_STYLE_TILE + 2 * margin) ** 2
            smallest_gb = image_gb + smallest_area * self.feature_bytes / BYTES_PER_GB
            raise SightlineError(
                f"{self.describe_need(size)}, and in tiles of {MIN_STYLE_TILE} pixels about"
                f" {smallest_gb:.3g} GB; raise memory or lower the size"
            )
        return int(side)

    def describe_need(self, size: ImageSize) -> str:
        """The beginning of an error message: what an image of this size takes beside the limit."""
        height, width = size
        return (
            f"{height}×{width} pixels need about {self.estimate_total(size):.3g} GB,"
            f" more than memory={self.limit_gb:g}"
        )
