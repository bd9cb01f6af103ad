"""Applies trained style networks to images of any size, to folders and to videos."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.errors import (
    SightlineError,
    escape_for_display,
    is_out_of_memory,
    make_memory_error,
)
from sightline.generators.architectures.style import MIN_STYLIZER_SIDE
from sightline.generators.checkpoint import AnyStyleNetwork, FixedStyleNetwork
from sightline.images.decode.formats import IMAGE_FILE_SUFFIXES
from sightline.images.io.pictures import read_alpha, read_picture
from sightline.images.transforms import resize_image, resize_short_side

# Ruder 2016, eq. 5: |f + b|² ≤ 0.01 (|f|² + |b|²) + 0.5 for a flow f and its inverse b.
FLOW_RELATIVE_TOLERANCE = 0.01
FLOW_ABSOLUTE_TOLERANCE = 0.5


@torch.no_grad()
def restyle_images(
    style_network: FixedStyleNetwork | AnyStyleNetwork, image: Tensor, mix: Tensor
) -> Tensor:
    """Restyles images N×3×H×W in [0, 1]; returns images of the same shape on the CPU.

    `mix` comes from the network's `make_mix`, with one row for all images or one row each. Raises
    SightlineError for images with fewer than 16 pixels a side, and without enough memory.
    """
    if image.shape[1] != 3:
        raise SightlineError(
            f"a style network takes images of 3 channels; this one has {image.shape[1]}"
        )
    height, width = require_min_side(image).shape[-2:]
    device = style_network.device
    inputs = image.to(device).contiguous(memory_format=torch.channels_last)
    mix_rows = mix.to(device).expand(len(image), -1)
    try:
        restyled = style_network.network(inputs, mix_rows)
        return restyled.cpu().contiguous()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise make_memory_error(
            f"to restyle {len(image)} images of {height}×{width} pixels at once", "size", "batch"
        ) from error


def require_min_side(image: Tensor, name: str = "an image") -> Tensor:
    """Returns the image. Raises SightlineError where it is too small for a style network."""
    height, width = image.shape[-2:]
    if min(height, width) < MIN_STYLIZER_SIDE:
        raise SightlineError(
            f"{name} of {height}×{width} pixels is too small for a style network;"
            f" each side must have at least {MIN_STYLIZER_SIDE}"
        )
    return image


def resize_if_given(image: Tensor, size: int | None) -> Tensor:
    """Resizes the short side to `size` pixels. Returns the image unchanged when `size` is None."""
    return image if size is None else resize_short_side(image, size)


def add_source_alpha(picture: Tensor, source: Path) -> Tensor:
    """A restyled picture 1×3×H×W with the opacity of its source as a fourth channel, if it has any.

    Raises SightlineError where the source can't be read any more.
    """
    alpha = read_alpha(source)
    if alpha is None:
        return picture
    height, width = picture.shape[-2:]
    return torch.cat([picture, resize_image(alpha, height, width).to(picture.device)], 1)


def list_folder_pictures(folder: Path) -> list[Path]:
    """Lists the image files of a folder by name. Raises SightlineError if there are none."""
    paths = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_FILE_SUFFIXES and path.is_file()
    ]
    if not paths:
        suffixes = ", ".join(IMAGE_FILE_SUFFIXES)
        raise SightlineError(f"the folder {str(folder)!r} holds no picture ({suffixes})")
    return sorted(paths)


def refuse_to_overwrite(source: Path, target: Path) -> None:
    """Raises SightlineError if what is written would take the place of what is read."""
    if target.exists() and source.exists() and target.samefile(source):
        raise SightlineError(
            f"{escape_for_display(str(source))} would be overwritten; give another --out"
        )


def name_restyled_files(paths: Sequence[Path]) -> dict[Path, str]:
    """The name of each picture's restyled file: its own as .png.

    Where that is another picture's too, as of a.png and a.jpg, the suffix stays in the name.
    """
    stem_counts = Counter(path.stem.casefold() for path in paths)
    names: dict[Path, str] = {}
    for path in paths:
        is_unique = stem_counts[path.stem.casefold()] == 1
        names[path] = f"{path.stem if is_unique else path.name}.png"
    return names


def read_picture_batches(
    paths: Iterable[Path], size: int | None, batch_size: int
) -> Iterator[tuple[list[Path], Tensor | SightlineError]]:
    """Reads images in order and stacks neighbours of equal size, at most `batch_size` at once.

    Yields the paths with their images N×3×H×W. An image that can't be read, or is too small, is
    yielded as one path with its error; images that wait for their batch come after it.
    """
    batch_paths: list[Path] = []
    batch: list[Tensor] = []
    for path in paths:
        try:
            image = require_min_side(resize_if_given(read_picture(path), size), path.name)
        except SightlineError as error:
            yield [path], error
            continue

        is_full = len(batch) == batch_size
        has_other_size = bool(batch) and batch[0].shape != image.shape
        if is_full or has_other_size:
            yield batch_paths, torch.cat(batch)
            batch_paths = []
            batch = []
        batch_paths.append(path)
        batch.append(image)

    if batch:
        yield batch_paths, torch.cat(batch)


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
    """Restyles frames 1×3×H×W and yields them one by one; at most `batch_size` frames are held.

    `temporal_weight`, in [0, 1], is the share of the previous restyled frame, moved along the
    optical flow, that is blended in wherever the flow is reliable. 0 restyles every frame by
    itself.
    """
    resized_frames = iter(resize_if_given(frame, size) for frame in frames)
    previous_frame: Tensor | None = None
    previous_output: Tensor | None = None

    while batch := list(islice(resized_frames, batch_size)):
        restyled_batch = restyle_images(style_network, torch.cat(batch), mix)
        for frame, restyled in zip(batch, restyled_batch.split(1), strict=True):
            output = restyled
            if temporal_weight > 0 and previous_frame is not None and previous_output is not None:
                warped, is_reliable = warp_to_frame(previous_frame, previous_output, frame)
                weight = temporal_weight * is_reliable
                output = restyled + weight * (warped - restyled)
            previous_frame = frame
            previous_output = output
            yield output


def warp_to_frame(previous_frame: Tensor, picture: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
    """Moves `picture`, which was made from `previous_frame`, along the optical flow to `frame`.

    All are 1×3×H×W. Returns the warped picture and a mask 1×1×H×W: 1 where the flow is reliable,
    that is where flow and inverse flow cancel (Ruder 2016, eq. 5), else 0.
    """
    backward_flow = compute_optical_flow(frame, previous_frame)
    forward_flow = compute_optical_flow(previous_frame, frame)
    # The forward flow, read at the position in `previous_frame` that the backward flow points to.
    returned_flow = warp_by_flow(forward_flow, backward_flow)

    squared_error = (backward_flow + returned_flow).square().sum(1, keepdim=True)
    backward_length = backward_flow.square().sum(1, keepdim=True)
    returned_length = returned_flow.square().sum(1, keepdim=True)
    squared_length = backward_length + returned_length
    tolerance = FLOW_RELATIVE_TOLERANCE * squared_length + FLOW_ABSOLUTE_TOLERANCE
    is_reliable = (squared_error <= tolerance).float()
    return warp_by_flow(picture, backward_flow), is_reliable


def compute_optical_flow(source_frame: Tensor, target_frame: Tensor) -> Tensor:
    """Dense optical flow 1×2×H×W, x then y in pixels, of frames 1×3×H×W (DIS, Kroeger 2016).

    What is at position p of `source_frame` is at p + flow in `target_frame`.
    """
    import cv2
    import numpy as np

    source, target = (
        (frame[0].mean(0) * 255).round().byte().numpy() for frame in (source_frame, target_frame)
    )
    estimator = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    initial_flow = np.zeros((*source.shape, 2), np.float32)
    flow = estimator.calc(source, target, initial_flow)
    return torch.from_numpy(flow).permute(2, 0, 1).unsqueeze(0)


def warp_by_flow(image: Tensor, displacement: Tensor) -> Tensor:
    """Samples an image 1×C×H×W at p + displacement for each position p, bilinearly.

    `displacement` is 1×2×H×W, x then y in pixels. Positions outside read the nearest border pixel.
    """
    height, width = image.shape[-2:]
    dx, dy = displacement[0]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")

    # Centres of pixels in grid_sample's coordinates, where -1 and 1 are the outer edges of the
    # image.
    grid_x = (x + dx + 0.5) * 2 / width - 1
    grid_y = (y + dy + 0.5) * 2 / height - 1
    grid = torch.stack([grid_x, grid_y], -1)[None]
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)
