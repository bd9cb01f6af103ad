"""What is done to an image on its way into the network: shifts, warps, blur. All differentiable; each image of a batch
gets its own random draw from a local generator."""

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

ImageSize = tuple[int, int]

Transform = Callable[[Tensor], Tensor]


def make_random_affine(
    shift: float,
    scale: float,
    angle: float,
    generator: torch.Generator,
    *,
    same_for_batch: bool = False,
) -> Transform:
    """One affine warp per image: shifted by up to `shift` pixels, scaled by 1 ± `scale`, turned by up to `angle` degrees.

    One resampling instead of the usual four (pad, jitter, scale, rotate: Olah 2017); borders are mirrored. With `alike`, all
    images of a batch are warped in the same way, as each would be alone.
    """

    def warp(image: Tensor) -> Tensor:
        if same_for_batch:  # as channels of one image: torch then works out where to read once instead of once for each image
            return each(image.flatten(0, 1)[None])[0].unflatten(0, image.shape[:2])
        return each(image)

    def each(image: Tensor) -> Tensor:
        count, _, height, width = image.shape
        draw = 2 * torch.rand(4, count, generator=generator) - 1
        size = 1 + scale * draw[0]
        turn = math.radians(angle) * draw[1]
        cos, sin = turn.cos() / size, turn.sin() / size
        # affine_grid counts in half sides, so a rotation of a wide picture needs the aspect put in.
        rows = [
            torch.stack([cos, -sin * height / width, 2 * shift / width * draw[2]], 1),
            torch.stack([sin * width / height, cos, 2 * shift / height * draw[3]], 1),
        ]
        grid = F.affine_grid(
            torch.stack(rows, 1).to(image.device), list(image.shape), align_corners=False
        )
        return F.grid_sample(
            image, grid, mode="bilinear", padding_mode="reflection", align_corners=False
        )

    return warp


def make_random_crops(
    count: int, size_range: tuple[float, float], noise_std: float, generator: torch.Generator
) -> Transform:
    """Views of each image, one after the other: `count` random squares of `box` (least, most) times the side, brought to the image's
    size, with Gaussian noise of deviation `grain`. All images of a batch are cut alike, as each would be alone."""

    def cut(image: Tensor) -> Tensor:
        draw = torch.rand(3, count, generator=generator)
        size = size_range[0] + (size_range[1] - size_range[0]) * draw[0]
        center = (1 - size) * (2 * draw[1:] - 1)  # in half sides: the square stays inside
        zero = torch.zeros_like(size)
        rows = torch.stack(
            [torch.stack([size, zero, center[0]], 1), torch.stack([zero, size, center[1]], 1)], 1
        )
        views = image.repeat_interleave(count, 0)
        grid = F.affine_grid(
            rows.repeat(len(image), 1, 1).to(image.device), list(views.shape), align_corners=False
        )
        noise = (
            torch.randn(count, *image.shape[1:], generator=generator)
            .to(image.device)
            .repeat(len(image), 1, 1, 1)
        )
        return (
            F.grid_sample(
                views, grid, mode="bilinear", padding_mode="reflection", align_corners=False
            )
            + noise_std * noise
        )

    return cut


def make_center_bias(
    steps: int, min_deviation: float = 0.25, max_deviation: float = 0.75
) -> Transform:
    """Leaves the image as it is; its gradient counts by a Gaussian around the middle, whose deviation grows from `least` to `most` half
    sides over so many calls (centre bias, Nguyen 2016)."""
    calls = itertools.count()

    def bias(image: Tensor) -> Tensor:
        deviation = min_deviation + (max_deviation - min_deviation) * min(
            1, next(calls) / max(1, steps - 1)
        )
        down, right = (
            torch.linspace(-1, 1, side, device=image.device) for side in image.shape[-2:]
        )
        weight = torch.exp(-(down[:, None].square() + right.square()) / (2 * deviation**2))
        return image * weight + (image * (1 - weight)).detach()

    return bias


def blur_image(image: Tensor, sigma: float) -> Tensor:
    """Gaussian blur with standard deviation `sigma` in pixels, mirrored at the borders."""
    radius = min(max(1, math.ceil(3 * sigma)), min(image.shape[-2:]) - 1)
    if sigma < 0.05 or radius < 1:  # a neighbour would count less than e^-200
        return image
    line = torch.exp(
        -torch.arange(-radius, radius + 1, device=image.device).square() / (2 * sigma**2)
    )
    kernel = (line / line.sum()).view(1, 1, 1, -1).expand(image.shape[1], 1, 1, -1)
    image = F.conv2d(
        F.pad(image, (radius, radius, 0, 0), mode="reflect"), kernel, groups=image.shape[1]
    )
    return F.conv2d(
        F.pad(image, (0, 0, radius, radius), mode="reflect"),
        kernel.transpose(2, 3),
        groups=image.shape[1],
    )


def resize_bicubic(image: Tensor, size: ImageSize) -> Tensor:
    """The image at another size, smooth both ways."""
    if image.shape[-2:] == size:
        return image
    return F.interpolate(
        image, size=size, mode="bicubic", antialias=True, align_corners=False
    ).clamp(0, 1)
