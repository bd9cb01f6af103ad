"""Writing frames as MP4, GIF or animated WebP."""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sightline.errors import SightlineError
from sightline.images.decode.pixels import quantize_image
from sightline.images.files import replace_atomically
from sightline.images.validation import add_batch_axis, check_image
from sightline.images.video.animation import encode_gif, encode_webp
from sightline.images.video.mp4 import encode_mp4
from sightline.images.video.properties import VIDEO_SUFFIXES, VideoProperties


def write_video(
    frames: Iterable[Tensor],
    path: str | Path,
    *,
    fps: float | Fraction = 20,
    properties: VideoProperties | None = None,
    sound_from: str | Path | None = None,
) -> None:
    """Writes frames 1×3×H×W in [0, 1], all of one size, as .mp4, .gif or .webp.

    With `properties`, as `read_video_properties` returns them, the video is shown as the one they
    were read from, and `fps` is not used. Otherwise GIF and WebP repeat for ever. `sound_from` is
    a video whose audio streams are copied into an MP4 as they are; those that can't be are named
    in a warning.

    In an MP4 an odd last row or column is doubled. Frames are taken one by one, so that a generator
    never lies in memory as a whole. The file appears whole or not at all.

    Raises SightlineError for another suffix, no frame, frames that are no image or of different
    sizes, and a folder that can't be written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in VIDEO_SUFFIXES:
        raise SightlineError(
            f"{path.name}: movies are written as {', '.join(VIDEO_SUFFIXES)}, "
            f"not as {path.suffix!r}"
        )
    if properties is None:
        if not 0 < fps < float("inf"):
            raise SightlineError(f"fps is {fps}; it must be above 0")
        properties = VideoProperties(Fraction(fps))
    pixels = _quantize_frames(frames)
    first = next(pixels, None)
    if first is None:
        raise SightlineError(f"{path.name}: a movie needs at least one frame")
    all_pixels = chain([first], pixels)
    with replace_atomically(path) as temporary:
        if suffix == ".mp4":
            encode_mp4(all_pixels, temporary, properties.frame_rate, sound_from)
        elif suffix == ".gif":
            encode_gif(all_pixels, temporary, properties)
        else:
            encode_webp(all_pixels, temporary, properties)


def _quantize_frames(frames: Iterable[Tensor]) -> Iterator[Any]:
    """Frames as H×W×3 bytes; raises for the first that is no image, or of another size."""
    size: torch.Size | None = None
    for number, frame in enumerate(frames):
        image = check_image(add_batch_axis(frame), f"frame {number}")
        size = size or image.shape
        if image.shape != size or len(image) != 1:
            raise SightlineError(
                f"frame {number} is {tuple(image.shape)}; "
                f"every frame of a movie must be one image of {tuple(size[1:])}"
            )
        yield quantize_image(image[0])
