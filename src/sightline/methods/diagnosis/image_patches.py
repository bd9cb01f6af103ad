"""Patches of images: where a unit responds most, covered, painted over, or put onto other images.

A patch is a window in each of several images, all of the same size.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sightline.models.layers.feature_maps import reshape_to_unit_grid
from sightline.models.model import Model
from sightline.models.tracing.crops import find_receptive_window

# A patch is as wide as what a unit sees, within these shares of the image's side: a unit of an
# early layer sees a part of what it stands for, one of a late layer mostly uses its view's middle.
MIN_COVERED_SHARE = 0.25
MAX_COVERED_SHARE = 0.35

# How often another place is drawn until it does not overlap the patch.
PLACE_ATTEMPTS = 20

# Pixels around a patch that it is painted over from.
INPAINT_RADIUS = 3


@dataclass(frozen=True)
class Patches:
    """A window in each of n images.

    Attributes:
        tops: The first row of each, n.
        lefts: The first column of each, n.
        height: How many rows each has.
        width: How many columns each has.
    """

    tops: NDArray[np.int64]
    lefts: NDArray[np.int64]
    height: int
    width: int

    def list_windows(self) -> list[tuple[slice, slice]]:
        """The rows and the columns of each image's patch."""
        windows: list[tuple[slice, slice]] = []
        for top, left in zip(self.tops.tolist(), self.lefts.tolist(), strict=True):
            rows = slice(top, top + self.height)
            columns = slice(left, left + self.width)
            windows.append((rows, columns))
        return windows

    def take_first(self, count: int) -> "Patches":
        """The patches of the first images."""
        return Patches(self.tops[:count], self.lefts[:count], self.height, self.width)

    def cut(self, images: Tensor) -> Tensor:
        """What the images show there, N×C×height×width."""
        pieces: list[Tensor] = []
        for image, (rows, columns) in zip(images, self.list_windows(), strict=True):
            pieces.append(image[:, rows, columns])
        return torch.stack(pieces)

    def mark(self, images: Tensor) -> Tensor:
        """Which pixels lie there, N×1×H×W."""
        height, width = images.shape[-2:]
        mask = torch.zeros(len(images), 1, height, width, dtype=torch.bool)
        for image_mask, (rows, columns) in zip(mask, self.list_windows(), strict=True):
            image_mask[:, rows, columns] = True
        return mask


# ── where ──


def locate_patches(model: Model, images: Tensor, layer: str, unit: int) -> Patches:
    """Where a unit responds most in each image: 25 to 35 % of its sides around that place."""
    boxes = find_peak_windows(model, images, layer, unit)
    tops, lefts, bottoms, rights = boxes.T
    image_height, image_width = images.shape[-2:]
    height = fit_patch_length(int(bottoms[0] - tops[0]), image_height)
    width = fit_patch_length(int(rights[0] - lefts[0]), image_width)
    return Patches(
        tops=center_windows(tops, bottoms, height, image_height),
        lefts=center_windows(lefts, rights, width, image_width),
        height=height,
        width=width,
    )


def find_peak_windows(model: Model, images: Tensor, layer: str, unit: int) -> NDArray[np.int64]:
    """What a unit sees where it responds most in each image: top, left, bottom, right, n×4.

    The windows may reach beyond the image.
    """
    name = model.layer(layer)
    with torch.no_grad():
        feature = model.run(images, [name])[name]
    maps = reshape_to_unit_grid(feature, images, model, name)[:, unit]
    map_width = maps.shape[2]
    boxes: list[tuple[int, int, int, int]] = []
    for peak in maps.flatten(1).argmax(1).tolist():
        row, column = divmod(peak, map_width)
        boxes.append(find_receptive_window(model, name, row, column, images))
    return np.array(boxes, dtype=np.int64)


def fit_patch_length(seen: int, length: int) -> int:
    """How long a patch is, for a unit that sees so many of an image's pixels along one side."""
    smallest = round(MIN_COVERED_SHARE * length)
    largest = round(MAX_COVERED_SHARE * length)
    return max(1, smallest, min(seen, largest))


def center_windows(
    starts: NDArray[np.int64], stops: NDArray[np.int64], length: int, image_length: int
) -> NDArray[np.int64]:
    """Where windows of a length begin that have the same centres and lie inside the image."""
    centers = (starts + stops) / 2
    first = np.round(centers - length / 2)
    return first.clip(0, image_length - length).astype(np.int64)


def draw_places(patches: Patches, image_size: tuple[int, int], seed: int) -> Patches:
    """Other places of the same size, away from the patches where the image is large enough."""
    generator = np.random.default_rng(seed)
    image_height, image_width = image_size
    places: list[tuple[int, int]] = []
    for top, left in zip(patches.tops.tolist(), patches.lefts.tolist(), strict=True):
        place = (top, left)
        for _ in range(PLACE_ATTEMPTS):
            place = (
                int(generator.integers(0, image_height - patches.height + 1)),
                int(generator.integers(0, image_width - patches.width + 1)),
            )
            is_below_or_above = abs(place[0] - top) >= patches.height
            is_beside = abs(place[1] - left) >= patches.width
            if is_below_or_above or is_beside:
                break
        places.append(place)
    tops, lefts = np.array(places, dtype=np.int64).T
    return Patches(tops, lefts, patches.height, patches.width)


# ── what is done with them ──


def cover_with_mean(images: Tensor, patches: Patches) -> Tensor:
    """The images with their own mean color in the place of the patches."""
    mask = patches.mark(images).to(images.device)
    means = images.mean((2, 3), keepdim=True)
    return torch.where(mask, means, images)


def inpaint(images: Tensor, patches: Patches) -> Tensor:
    """The images with the patches filled in from around them (Telea 2004); 3 channels only."""
    mask = patches.mark(images)
    painted: list[Tensor] = []
    for image, image_mask in zip(images.detach().cpu(), mask, strict=True):
        painted.append(inpaint_image(image, image_mask[0]))
    result = torch.where(mask, torch.stack(painted), images.cpu())
    return result.to(images.device)


def inpaint_image(image: Tensor, mask: Tensor) -> Tensor:
    """An image 3×H×W whose pixels in a mask H×W are filled in from around them."""
    import cv2

    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8)
    picture = np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())
    hole = mask.numpy().astype(np.uint8)
    filled = cv2.inpaint(picture, hole, INPAINT_RADIUS, cv2.INPAINT_TELEA)
    return torch.from_numpy(filled).permute(2, 0, 1).float() / 255


def paste(images: Tensor, pieces: Tensor, patches: Patches) -> Tensor:
    """The images with a piece each at the place of the patches."""
    pasted = images.clone()
    for image, piece, (rows, columns) in zip(pasted, pieces, patches.list_windows(), strict=True):
        image[:, rows, columns] = piece
    return pasted
