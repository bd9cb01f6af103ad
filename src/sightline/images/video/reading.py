"""Reading videos frame by frame, and how they are shown."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import torch
from PIL import Image
from torch import Tensor

from sightline.errors import SightlineError, get_first_error_line, is_out_of_memory
from sightline.images.decode.picture import MAX_PIXELS, open_picture
from sightline.images.decode.pixels import convert_pillow_to_tensor
from sightline.images.io.pictures import describe_missing_file, escape_line_breaks
from sightline.images.video.animation import has_gif_trailer
from sightline.images.video.container import is_animation, open_container, open_video_file
from sightline.images.video.properties import VideoProperties

# Where neither the file nor its frames tell a rate.
DEFAULT_FRAME_RATE = Fraction(20)
# Browsers show a frame without a duration for so long, in milliseconds.
DEFAULT_DURATION = 100


@dataclass
class _FrameCount:
    """How many frames of a file were decoded so far."""

    frames: int = 0


def read_video(path: str | Path) -> Iterator[Tensor]:
    """Yields the frames of a video, upright, each 1×3×H×W in [0, 1], decoded on demand.

    Raises SightlineError, one line that begins with the file's name, for anything without whole
    frames.
    """
    decoded = _FrameCount()
    with _open_readable_video(Path(path), decoded) as file:
        frames = _decode_animation(file) if is_animation(file) else _decode_frames(file)
        for frame in frames:
            decoded.frames += 1
            yield frame
        if not decoded.frames:
            raise EOFError


def read_video_properties(path: str | Path) -> VideoProperties:
    """Reads how a video is shown.

    A GIF or WebP is decoded for it. Other files are read through, not decoded, unless their header
    counts the frames. Raises SightlineError as `read_video` does.
    """
    with _open_readable_video(Path(path), _FrameCount()) as file:
        if is_animation(file):
            return _read_animation_properties(file)
        with open_container(file) as container:
            _check_stream_size(container)
            return VideoProperties(
                frame_rate=_measure_frame_rate(container),
                has_sound=bool(container.streams.audio),
            )


@contextmanager
def _open_readable_video(path: Path, decoded: _FrameCount) -> Generator[IO[bytes]]:
    """The open file. Errors of the block that are the file's are raised as SightlineError.

    What is raised in the block by the consumer of a generator is not among them: a generator that
    yields inside the block gets only GeneratorExit from there.
    """
    name = escape_line_breaks(path.name or str(path))
    try:
        with open_video_file(path) as file:
            yield file
    except FileNotFoundError as error:
        raise SightlineError(f"{name}: {describe_missing_file(path)}") from error
    except IndexError as error:  # there is no video stream 0
        raise SightlineError(f"{name}: there is no picture in it, only sound or data") from error
    except EOFError as error:
        # The container ends before its first frame, or within one.
        count = decoded.frames
        reason = f"broken after {count} frames" if count else "a video without frames"
        raise SightlineError(f"{name}: {reason}") from error
    except (OSError, ValueError) as error:  # av's own errors are among these, and SightlineError
        reason = _describe_decoding_error(error, decoded.frames)
        raise SightlineError(f"{name}: {escape_line_breaks(reason)}") from error
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise SightlineError(f"{name}: not enough memory to decode its frames") from error


def is_animation_file(path: str | Path) -> bool:
    """Whether a file is a GIF or WebP of more than one frame. False for what can't be read."""
    try:
        with open_video_file(Path(path)) as file:
            if not is_animation(file):
                return False
            with open_picture(file, count_frames=True) as decoded:
                return decoded.frame_count > 1
    except (OSError, ValueError, EOFError):  # SightlineError, and a null byte in a path
        return False


def _decode_frames(file: IO[bytes]) -> Iterator[Tensor]:
    with open_container(file) as container:
        _check_stream_size(container)
        for frame in container.decode(video=0):
            _check_frame_size(frame)  # it may change
            yield _convert_frame(frame)


def _check_stream_size(container: Any) -> None:
    """Raises SightlineError for a video that claims frames that are too large."""
    context = container.streams.video[0].codec_context
    if context is not None:  # None where its codec is not known
        _check_frame_size(context)


def _check_frame_size(sized: Any) -> None:
    """Raises SightlineError for frames of more pixels than a picture may have."""
    pixel_count = sized.width * sized.height
    if pixel_count > MAX_PIXELS:
        raise SightlineError(
            f"its frames are {sized.width}×{sized.height} = {pixel_count:,} pixels, over the limit "
            f"of {MAX_PIXELS:,}"
        )


def _seek_frames(file: IO[bytes]) -> Iterator[Image.Image]:
    """The picture of a GIF or WebP, at each of its frames in turn."""
    with open_picture(file, count_frames=True) as decoded:
        for number in range(decoded.frame_count):
            decoded.picture.seek(number)
            decoded.picture.load()
            yield decoded.picture


def _decode_animation(file: IO[bytes]) -> Iterator[Tensor]:
    is_whole = file.read(3) != b"GIF" or has_gif_trailer(file)
    file.seek(0)
    for picture in _seek_frames(file):
        yield convert_pillow_to_tensor(picture)
    if not is_whole:
        raise EOFError


def _read_animation_properties(file: IO[bytes]) -> VideoProperties:
    durations: list[int] = []
    loop_count: int | None = None
    for picture in _seek_frames(file):
        durations.append(round(picture.info.get("duration", 0)))
        loop_count = picture.info.get("loop")
    milliseconds = sum(duration or DEFAULT_DURATION for duration in durations)
    frame_rate = Fraction(1000 * len(durations), milliseconds)
    return VideoProperties(frame_rate, tuple(durations), loop_count)


def _measure_frame_rate(container: Any) -> Fraction:
    """The average number of frames a second of the first video stream."""
    stream = container.streams.video[0]
    nominal_rate: Fraction | None = stream.average_rate or stream.guessed_rate
    if stream.frames and nominal_rate:
        return nominal_rate  # the container counts its frames, so that it is their average

    timestamps = [packet.pts for packet in container.demux(stream) if packet.pts is not None]
    span = (max(timestamps) - min(timestamps)) * stream.time_base if timestamps else 0
    if not span:
        return nominal_rate or DEFAULT_FRAME_RATE
    measured_rate = Fraction(len(timestamps) - 1) / span
    # Timestamps may be rounded to milliseconds. Only a variable rate is further from the nominal.
    if nominal_rate and abs(measured_rate / nominal_rate - 1) < 0.01:
        return nominal_rate
    return measured_rate


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
