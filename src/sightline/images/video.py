"""Reading videos frame by frame, and writing frames as MP4, GIF or animated WebP."""

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
from sightline.images.decode import quantize_image
from sightline.images.files import replace_atomically
from sightline.images.io import describe_missing_file, escape_line_breaks
from sightline.images.validation import add_batch_axis, check_image

VIDEO_SUFFIXES = (".mp4", ".gif", ".webp")

# Containers only: ffmpeg would also render text files, and playlists make it open other files.
READABLE_CONTAINERS = "mov,matroska,webm,avi,gif,mpeg,mpegts,flv,ogg,asf,apng,webp_anim"

# The first that PyAV was built with is used.
VIDEO_ENCODERS = {"libx264": {"crf": "18", "preset": "medium"}, "mpeg4": {"qscale": "3"}}


def write_video(frames: Iterable[Tensor], path: str | Path, *, fps: int = 20) -> None:
    """Writes frames 1×3×H×W in [0, 1], all of one size, as .mp4, .gif or .webp.

    GIF and WebP repeat for ever. In an MP4 an odd last row or column is doubled. Frames are taken
    one by one, so that a generator never lies in memory as a whole. The file appears whole or not
    at all.

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
    if fps < 1:
        raise SightlineError(f"fps is {fps}; it must be at least 1")
    pixels = _quantize_frames(frames)
    first = next(pixels, None)
    if first is None:
        raise SightlineError(f"{path.name}: a movie needs at least one frame")
    encode = _encode_mp4 if suffix == ".mp4" else _encode_animation
    with replace_atomically(path) as temporary:
        encode(chain([first], pixels), temporary, fps)


def read_video(path: str | Path) -> Iterator[Tensor]:
    """Yields the frames of a video, upright, each 1×3×H×W in [0, 1], decoded on demand.

    Raises SightlineError, one line that begins with the file's name, for anything without whole
    frames.
    """
    import av

    path = Path(path)
    name = escape_line_breaks(path.name or str(path))
    count = 0
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise SightlineError("not a video file")
        with (
            path.open("rb") as file,
            av.open(file, "r", options={"format_whitelist": READABLE_CONTAINERS}) as container,
        ):
            for frame in container.decode(video=0):
                count += 1
                yield _convert_frame(frame)
    except FileNotFoundError as error:
        raise SightlineError(f"{name}: {describe_missing_file(path)}") from error
    except IndexError as error:  # there is no video stream 0
        raise SightlineError(f"{name}: there is no picture in it, only sound or data") from error
    except EOFError as error:
        # The container ends before its first frame, or within one.
        reason = f"broken after {count} frames" if count else "a video without frames"
        raise SightlineError(f"{name}: {reason}") from error
    except (OSError, ValueError) as error:  # av's own errors are among these, and SightlineError
        reason = _describe_decoding_error(error, count)
        raise SightlineError(f"{name}: {escape_line_breaks(reason)}") from error
    if not count:
        raise SightlineError(f"{name}: a video without frames")


def _describe_decoding_error(error: OSError | ValueError, frames_read: int) -> str:
    if isinstance(error, SightlineError):
        return str(error)
    detail = getattr(error, "strerror", None) or get_first_error_line(error)
    state = f"broken after {frames_read} frames" if frames_read else "not a whole video"
    return f"{state} ({detail})"


def _convert_frame(frame: Any) -> Tensor:
    """A decoded frame as 1×3×H×W in [0, 1], turned by the rotation that the file asks for."""
    pixels = torch.from_numpy(frame.to_ndarray(format="rgb24"))
    image = pixels.permute(2, 0, 1).unsqueeze(0).float().div_(255)
    quarter_turns = round(frame.rotation / 90)
    return image.rot90(quarter_turns, (2, 3)).contiguous()


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


def _encode_animation(pixels: Iterable[Any], path: Path, fps: int) -> None:
    """Writes a GIF or WebP, by the suffix, that repeats for ever."""
    pictures = (Image.fromarray(frame) for frame in pixels)
    first = next(pictures)
    # Pillow takes milliseconds; GIF stores hundredths of a second.
    first.save(
        path,
        save_all=True,
        append_images=pictures,
        duration=round(1000 / fps),
        loop=0,
        quality=85,
        disposal=1,
    )


def _encode_mp4(pixels: Iterable[Any], path: Path, fps: int) -> None:
    """Writes an MP4: H.264 where PyAV was built with it, else MPEG-4 part 2."""
    import av

    encoder = next(name for name in VIDEO_ENCODERS if name in av.codecs_available)
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream: Any = None
        for frame in pixels:
            picture = av.VideoFrame.from_ndarray(_pad_to_even_sides(frame), format="rgb24")
            if stream is None:
                stream = container.add_stream(encoder, rate=fps, options=VIDEO_ENCODERS[encoder])
                stream.width = picture.width
                stream.height = picture.height
                stream.pix_fmt = "yuv420p"
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def _pad_to_even_sides(pixels: Any) -> Any:
    """H×W×3 with an odd last row or column doubled: color is stored for blocks of 2×2 pixels."""
    height, width = pixels.shape[:2]
    return np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
