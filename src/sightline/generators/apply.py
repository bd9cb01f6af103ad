"""Style networks at work: images of any size, folders, and videos held steady along the motion."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.errors import SightlineError, get_first_error_line
from sightline.generators.architectures.style import MIN_STYLIZER_SIDE
from sightline.generators.checkpoint import AnyStyleNetwork, FixedStyleNetwork
from sightline.images.io import read, resize_short_side
from sightline.images.library import PICTURE_SUFFIXES


@torch.no_grad()
def restyle_images(
    style_network: FixedStyleNetwork | AnyStyleNetwork, image: Tensor, mix: Tensor
) -> Tensor:
    """Images N×3×H×W restyled, of the same size; `mix` is 1×styles or N×styles. Raises SightlineError below 16 pixels a side."""
    height, width = require_min_side(image).shape[-2:]
    given = image.to(style_network.device).contiguous(memory_format=torch.channels_last)
    try:
        return (
            style_network.network(given, mix.to(style_network.device).expand(len(image), -1))
            .cpu()
            .contiguous()
        )
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if "allocate" in str(error):
            raise SightlineError(
                f"no memory to restyle {height}×{width} pixels at once ({get_first_error_line(error)}); give a smaller size"
            ) from error
        raise


def require_min_side(image: Tensor, name: str = "an image") -> Tensor:
    """The images, if a style network can take them."""
    height, width = image.shape[-2:]
    if min(height, width) < MIN_STYLIZER_SIDE:
        raise SightlineError(
            f"{name} of {height}×{width} pixels is too small for a style network; each side must have at least {MIN_STYLIZER_SIDE}"
        )
    return image


def resize_if_given(image: Tensor, size: int | None) -> Tensor:
    """The image with `size` pixels on its short side, or as it is."""
    return image if size is None else resize_short_side(image, size)


def list_folder_pictures(folder: Path) -> list[Path]:
    """The picture files of a folder, sorted; raises SightlineError if there are none."""
    found = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in PICTURE_SUFFIXES and path.is_file()
    )
    if not found:
        raise SightlineError(
            f"the folder {str(folder)!r} holds no picture ({', '.join(PICTURE_SUFFIXES)})"
        )
    return found


def read_picture_batches(
    paths: Iterable[Path], size: int | None, batch_size: int
) -> Iterator[tuple[list[Path], Tensor | SightlineError]]:
    """Pictures read and stacked while they have one size, at most `batch` of them; one that can't be read, or is too small, as its error."""
    held: list[Path] = []
    stack: list[Tensor] = []
    for path in paths:
        try:
            image = require_min_side(resize_if_given(read(path), size), path.name)
        except SightlineError as error:
            yield [path], error
            continue
        if stack and (len(stack) == batch_size or stack[0].shape != image.shape):
            yield held, torch.cat(stack)
            held, stack = [], []
        held.append(path)
        stack.append(image)
    if stack:
        yield held, torch.cat(stack)


# ── video ──


def restyle_video(
    style_network: FixedStyleNetwork | AnyStyleNetwork,
    frames: Iterable[Tensor],
    mix: Tensor,
    *,
    size: int | None = None,
    batch_size: int = 4,
    temporal_weight: float = 0.0,
) -> Iterator[Tensor]:
    """Frames 1×3×H×W restyled one by one. `temporal` in [0, 1] is how much of the last restyled frame is kept where the motion is known."""
    source = iter(resize_if_given(frame, size) for frame in frames)
    last: tuple[Tensor, Tensor] | None = None
    while part := list(islice(source, batch_size)):
        made = restyle_images(style_network, torch.cat(part), mix)
        for frame, one in zip(part, made.split(1), strict=True):
            steady = one
            if last and temporal_weight > 0:
                carried, known = warp_to_frame(*last, frame)
                steady = one + temporal_weight * known * (carried - one)
            last = frame, steady
            yield steady


def warp_to_frame(previous_frame: Tensor, picture: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
    """`picture`, made from the frame `before`, moved along the optical flow to `frame`, and where that can be trusted, 1×1×H×W of 0 and 1.

    Flow and its inverse must cancel: |f + b|² ≤ 0.01 (|f|² + |b|²) + 0.5 (Ruder 2016, eq. 5).
    """
    back, forth = (
        compute_optical_flow(frame, previous_frame),
        compute_optical_flow(previous_frame, frame),
    )
    there = warp_by_flow(forth, back)
    error, length = (
        (back + there).square().sum(1, keepdim=True),
        back.square().sum(1, keepdim=True) + there.square().sum(1, keepdim=True),
    )
    return warp_by_flow(picture, back), (error <= 0.01 * length + 0.5).float()


def compute_optical_flow(source_frame: Tensor, target_frame: Tensor) -> Tensor:
    """Dense optical flow 1×2×H×W in pixels: what is at p in `one` is at p + flow in `two` (DIS, Kroeger 2016)."""
    import cv2
    import numpy as np

    gray = [
        (picture[0].mean(0) * 255).round().byte().numpy()
        for picture in (source_frame, target_frame)
    ]
    found: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST).calc(
        gray[0], gray[1], np.zeros((*gray[0].shape, 2), np.float32)
    )
    return torch.from_numpy(found).permute(2, 0, 1).unsqueeze(0)


def warp_by_flow(image: Tensor, displacement: Tensor) -> Tensor:
    """The image read at p + move for each place p; beyond its borders their pixels are repeated."""
    height, width = image.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    grid = torch.stack(
        [
            (x + displacement[0, 0] + 0.5) * 2 / width - 1,
            (y + displacement[0, 1] + 0.5) * 2 / height - 1,
        ],
        -1,
    )
    return F.grid_sample(
        image, grid[None], mode="bilinear", padding_mode="border", align_corners=False
    )
