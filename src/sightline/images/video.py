"""Moving pictures in and out: frames to MP4, GIF and animated WebP, and a video's frames one by one."""

import stat
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sightline.errors import SightlineError, get_first_error_line
from sightline.images.files import replace_atomically
from sightline.images.io import check_image, describe_missing_file, escape_line_breaks

VIDEO_SUFFIXES = (".mp4", ".gif", ".webp")

# Containers only: ffmpeg would also draw text files, and playlists make it open other files.
_READABLE_CONTAINERS = "mov,matroska,webm,avi,gif,mpeg,mpegts,flv,ogg,asf,apng,webp_anim"

_VIDEO_ENCODERS = {"libx264": {"crf": "18", "preset": "medium"}, "mpeg4": {"qscale": "3"}}


def write_video(frames: Iterable[Tensor], path: str | Path, *, fps: int = 20) -> None:
    """Writes frames 1×3×H×W in [0, 1], all of one size, as .mp4, .gif or .webp (endless): whole or not at all.

    Frames are taken one by one, so a generator never lies in memory as a whole. In an MP4 an odd last row or column is doubled.
    Raises SightlineError for another suffix, no frame, frames that are no image or of different sizes, a folder that can't be written.
    """
    path = Path(path)
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        raise SightlineError(
            f"{path.name}: movies are written as {', '.join(VIDEO_SUFFIXES)}, not as {path.suffix!r}"
        )
    if fps < 1:
        raise SightlineError(f"fps is {fps}; it must be at least 1")
    pixels = _quantize_frames(frames)
    first = next(pixels, None)
    if first is None:
        raise SightlineError(f"{path.name}: a movie needs at least one frame")
    with replace_atomically(path) as temporary:
        encode = _encode_video if path.suffix.lower() == ".mp4" else _encode_animation
        encode(chain([first], pixels), temporary, fps)


def read_video(path: str | Path) -> Iterator[Tensor]:
    """The frames of a video, upright, each 1×3×H×W, decoded as they are asked for.

    Raises SightlineError, one line that begins with the file's name, for anything without whole frames.
    """
    import av

    path, count = Path(path), 0
    name = escape_line_breaks(path.name or str(path))
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise SightlineError("not a video file")
        with (
            path.open("rb") as file,
            av.open(file, "r", options={"format_whitelist": _READABLE_CONTAINERS}) as container,
        ):
            for frame in container.decode(video=0):
                count += 1
                yield _convert_frame(frame)
    except FileNotFoundError as error:
        raise SightlineError(f"{name}: {describe_missing_file(path)}") from error
    except IndexError as error:
        raise SightlineError(f"{name}: there is no picture in it, only sound or data") from error
    except EOFError as error:  # a container that ends before its first frame
        raise SightlineError(
            f"{name}: {f'broken after {count} frames' if count else 'a video without frames'}"
        ) from error
    except (OSError, ValueError) as error:  # also av's own errors, and SightlineError
        why = getattr(error, "strerror", None) or get_first_error_line(error)
        reason = (
            str(error)
            if isinstance(error, SightlineError)
            else f"{f'broken after {count} frames' if count else 'not a whole video'} ({why})"
        )
        raise SightlineError(f"{name}: {escape_line_breaks(reason)}") from error
    if not count:
        raise SightlineError(f"{name}: a video without frames")


def _convert_frame(frame: Any) -> Tensor:
    """A decoded frame as an image, turned as its camera was held."""
    pixels = (
        torch.from_numpy(frame.to_ndarray(format="rgb24"))
        .permute(2, 0, 1)
        .unsqueeze(0)
        .float()
        .div_(255)
    )
    return pixels.rot90(round(frame.rotation / 90), (2, 3)).contiguous()


def _quantize_frames(frames: Iterable[Tensor]) -> Iterator[Any]:
    """Frames as H×W×3 bytes; raises for the first that is none, or of another size."""
    size = None
    for number, frame in enumerate(frames):
        image = check_image(
            frame[None] if getattr(frame, "ndim", 4) == 3 else frame, f"frame {number}"
        )
        size = size or image.shape
        if image.shape != size or len(image) != 1:
            raise SightlineError(
                f"frame {number} is {tuple(image.shape)}; every frame of a movie must be one image of {tuple(size[1:])}"
            )
        yield (
            image[0]
            .detach()
            .clamp(0, 1)
            .mul(255)
            .round()
            .byte()
            .permute(1, 2, 0)
            .cpu()
            .contiguous()
            .numpy()
        )


def _encode_animation(pixels: Iterable[Any], path: Path, fps: int) -> None:
    """GIF or WebP by the suffix, shown again and again."""
    pictures = (Image.fromarray(frame) for frame in pixels)
    first = next(pictures)
    # Pillow counts in milliseconds, GIF in hundredths of a second.
    first.save(
        path,
        save_all=True,
        append_images=pictures,
        duration=round(1000 / fps),
        loop=0,
        quality=85,
        disposal=1,
    )


def _encode_video(pixels: Iterable[Any], path: Path, fps: int) -> None:
    """MP4, H.264 where PyAV was built with it, else MPEG-4 part 2."""
    import av

    known = next(name for name in _VIDEO_ENCODERS if name in av.codecs_available)
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream: Any = None
        for frame in pixels:
            # Colour is stored for blocks of 2×2 pixels.
            even = np.pad(
                frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge"
            )
            picture = av.VideoFrame.from_ndarray(even, format="rgb24")
            if stream is None:
                stream = container.add_stream(known, rate=fps, options=_VIDEO_ENCODERS[known])
                stream.width, stream.height, stream.pix_fmt = (
                    picture.width,
                    picture.height,
                    "yuv420p",
                )
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
