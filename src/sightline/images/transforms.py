"""Resizing, cropping, blur and random warps. All are differentiable.

Each image of a batch gets its own random draw, from a generator that the caller owns.
"""

import itertools
import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.errors import SightlineError

ImageSize = tuple[int, int]

Transform = Callable[[Tensor], Tensor]

# Below this deviation in pixels a neighbouring pixel would weigh less than e^-200.
MIN_BLUR_SIGMA = 0.05


# ── size ──


def resize_image(
    image: Tensor,
    height: int,
    width: int,
    mode: Literal["bilinear", "bicubic", "nearest"] = "bilinear",
) -> Tensor:
    """N×C×height×width with values in [0, 1]; the image itself if it has that size.

    Bilinear and bicubic resizing are antialiased. Raises SightlineError below 1×1.
    """
    if min(height, width) < 1:
        raise SightlineError(
            f"an image can't be resized to {height}×{width}; both must be at least 1"
        )
    if image.shape[-2:] == (height, width):
        return image
    if mode == "nearest":
        return F.interpolate(image, size=(height, width), mode="nearest")
    resized = F.interpolate(
        image, size=(height, width), mode=mode, antialias=True, align_corners=False
    )
    return resized.clamp(0, 1)


def resize_bicubic(image: Tensor, size: ImageSize) -> Tensor:
    """The image at (height, width), smooth also where it is enlarged; see `resize_image`."""
    height, width = size
    return resize_image(image, height, width, mode="bicubic")


def resize_short_side(image: Tensor, pixels: int) -> Tensor:
    """The image with a shorter side of `pixels`, its aspect kept to the nearest pixel."""
    height, width = image.shape[-2:]
    scale = pixels / min(height, width)
    return resize_image(image, round(height * scale), round(width * scale))


def limit_short_side(image: Tensor, pixels: int) -> Tensor:
    """The image, reduced to a shorter side of `pixels` if it has more."""
    if min(image.shape[-2:]) <= pixels:
        return image
    return resize_short_side(image, pixels)


def crop_center(image: Tensor, height: int, width: int) -> Tensor:
    """The middle N×C×height×width, a view. Raises SightlineError if the image is smaller."""
    rows, columns = image.shape[-2:]
    if not (1 <= height <= rows and 1 <= width <= columns):
        raise SightlineError(
            f"a crop of {height}×{width} can't be cut from an image of {rows}×{columns}"
        )
    top = (rows - height) // 2
    left = (columns - width) // 2
    return image[..., top : top + height, left : left + width]


def cover_center(image: Tensor, height: int, width: int) -> Tensor:
    """The middle N×C×height×width of the image, resized so that it just covers that size."""
    image_height, image_width = image.shape[-2:]
    scale = max(height / image_height, width / image_width)
    resized_height = max(height, round(image_height * scale))
    resized_width = max(width, round(image_width * scale))
    return crop_center(resize_image(image, resized_height, resized_width), height, width)


# ── blur ──


def blur_image(image: Tensor, sigma: float) -> Tensor:
    """Gaussian blur with standard deviation `sigma` in pixels, mirrored at the borders.

    The kernel reaches three deviations far, or as far as the mirrored image does.
    """
    max_radius = min(image.shape[-2:]) - 1
    radius = min(max(1, math.ceil(3 * sigma)), max_radius)
    if sigma < MIN_BLUR_SIGMA or radius < 1:
        return image

    offsets = torch.arange(-radius, radius + 1, dtype=image.dtype, device=image.device)
    weights = torch.exp(-offsets.square() / (2 * sigma**2))
    weights = weights / weights.sum()
    channels = image.shape[1]
    row_kernel = weights.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    column_kernel = row_kernel.transpose(2, 3)

    padded = F.pad(image, (radius, radius, 0, 0), mode="reflect")
    image = F.conv2d(padded, row_kernel, groups=channels)
    padded = F.pad(image, (0, 0, radius, radius), mode="reflect")
    return F.conv2d(padded, column_kernel, groups=channels)


# ── random transforms ──


def make_random_affine(
    shift: float,
    scale: float,
    angle: float,
    generator: torch.Generator,
    *,
    same_for_batch: bool = False,
    window: ImageSize | None = None,
) -> Transform:
    """A transform that warps each image: shift, scaling and rotation, drawn anew at each call.

    Images move by up to `shift` pixels, are scaled by 1 ± `scale` and turned by up to `angle`
    degrees. Borders are mirrored. With `same_for_batch`, all images of a batch are warped alike.
    With `window`, a height and width, only a part of that size is seen, at the image's own scale
    and anywhere in it; it reaches beyond the borders by up to `shift`.

    One resampling does what Olah 2017 does in four steps (pad, jitter, scale, rotate).
    """

    def warp_batch(image: Tensor) -> Tensor:
        if not same_for_batch:
            return warp_each(image)
        # As channels of one image: torch then computes the sampling positions only once.
        as_channels = image.flatten(0, 1)[None]
        return warp_each(as_channels)[0].unflatten(0, image.shape[:2])

    def warp_each(image: Tensor) -> Tensor:
        count, _, height, width = image.shape
        rows, columns = window or (height, width)
        draw = 2 * torch.rand(4, count, generator=generator, dtype=torch.float32) - 1
        size = 1 + scale * draw[0]
        turn = math.radians(angle) * draw[1]
        cos = turn.cos() / size
        sin = turn.sin() / size
        # affine_grid measures in half sides, of the view and of the image, so a rotation of an
        # image that is not square needs its aspect ratio, and a shift its side.
        x_from_x = cos * (columns / width)
        x_from_y = -sin * rows / width
        y_from_x = sin * columns / height
        y_from_y = cos * (rows / height)
        x_shift = (2 * shift + width - columns) / width * draw[2]
        y_shift = (2 * shift + height - rows) / height * draw[3]
        x_row = torch.stack([x_from_x, x_from_y, x_shift], 1)
        y_row = torch.stack([y_from_x, y_from_y, y_shift], 1)
        return _sample_affine(image, torch.stack([x_row, y_row], 1), window)

    return warp_batch


def make_random_crops(
    count: int, size_range: tuple[float, float], noise_std: float, generator: torch.Generator
) -> Transform:
    """A transform that gives `count` noisy crops of each image, one after the other.

    A crop's sides are a random share of the image's sides within `size_range`. It is brought to
    the image's size and gets Gaussian noise of standard deviation `noise_std`. All images of a
    batch get the same crops and noise: N×C×H×W becomes (N·count)×C×H×W.
    """

    def crop_randomly(image: Tensor) -> Tensor:
        draw = torch.rand(3, count, generator=generator, dtype=torch.float32)
        min_size, max_size = size_range
        size = min_size + (max_size - min_size) * draw[0]
        room = 1 - size  # in half sides, how far the crop can move from the middle
        x_center = room * (2 * draw[1] - 1)
        y_center = room * (2 * draw[2] - 1)
        zero = torch.zeros_like(size)
        x_row = torch.stack([size, zero, x_center], 1)
        y_row = torch.stack([zero, size, y_center], 1)
        matrices = torch.stack([x_row, y_row], 1)

        views = image.repeat_interleave(count, 0)
        noise = torch.randn(count, *image.shape[1:], generator=generator, dtype=torch.float32)
        noise = noise.to(image.device)
        crops = _sample_affine(views, matrices.repeat(len(image), 1, 1))
        return crops + noise_std * noise.repeat(len(image), 1, 1, 1)

    return crop_randomly


def make_center_bias(
    steps: int, min_deviation: float = 0.25, max_deviation: float = 0.75
) -> Transform:
    """A transform that leaves the image as it is, but weights its gradient towards the middle.

    The weight is a Gaussian around the middle whose standard deviation grows over `steps` calls
    from `min_deviation` to `max_deviation`, in half sides (centre-biased regularization,
    Nguyen 2016).
    """
    calls = itertools.count()

    def bias_gradient(image: Tensor) -> Tensor:
        progress = min(1, next(calls) / max(1, steps - 1))
        deviation = min_deviation + (max_deviation - min_deviation) * progress
        height, width = image.shape[-2:]
        y = torch.linspace(-1, 1, height, dtype=image.dtype, device=image.device)
        x = torch.linspace(-1, 1, width, dtype=image.dtype, device=image.device)
        squared_distance = y[:, None].square() + x.square()
        weight = torch.exp(-squared_distance / (2 * deviation**2))
        with_gradient = image * weight
        without_gradient = (image * (1 - weight)).detach()
        return with_gradient + without_gradient

    return bias_gradient


def _sample_affine(image: Tensor, matrices: Tensor, size: ImageSize | None = None) -> Tensor:
    """Each image read through its 2×3 matrix from output to input, bilinear, borders mirrored.

    The output has the image's height and width, or those of `size`.
    """
    shape = [*image.shape[:2], *(size or image.shape[2:])]
    grid = F.affine_grid(matrices.to(image), shape, align_corners=False)
    return F.grid_sample(
        image, grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )
