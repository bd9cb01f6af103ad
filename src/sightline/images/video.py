"""Reading videos frame by frame, and writing frames as MP4, GIF or animated WebP.

`read_video_properties` says how fast a video is shown. Given to `write_video`, the new video is
shown in the same way.
"""

import io
import stat
import struct
import warnings
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image
from PIL.GifImagePlugin import getdata
from torch import Tensor

from sightline.errors import SightlineError, get_first_error_line
from sightline.images.decode.picture import open_picture
from sightline.images.decode.pixels import convert_pillow_to_tensor, quantize_image
from sightline.images.files import replace_atomically
from sightline.images.io import describe_missing_file, escape_line_breaks
from sightline.images.validation import add_batch_axis, check_image

# Files that Pillow reads and writes: they have a duration for each frame, and no sound.
ANIMATION_SUFFIXES = (".gif", ".webp")
VIDEO_SUFFIXES = (".mp4", *ANIMATION_SUFFIXES)

# Containers only: ffmpeg would also render text files, and playlists make it open other files.
READABLE_CONTAINERS = "mov,matroska,webm,avi,gif,mpeg,mpegts,flv,ogg,asf,apng,webp_anim"

# The first that PyAV was built with is used.
VIDEO_ENCODERS = {"libx264": {"crf": "18", "preset": "medium"}, "mpeg4": {"qscale": "3"}}

# The larger number of an encoder's frame rate, as a fraction (MPEG-4 part 2 has 16 bits for it).
MAX_RATE_NUMERATOR = 65535
# Where neither the file nor its frames tell a rate.
DEFAULT_FRAME_RATE = Fraction(20)
# Browsers show a frame without a duration for so long, in milliseconds.
DEFAULT_DURATION = 100
REPEAT_FOREVER = 0
# Bits of the headers of an animated WebP and of its frames.
ANIMATION_FLAG = 0x02
NO_BLENDING_FLAG = 0x02
# A second an hour. Frame rates that differ by less than this are the same to a viewer.
SAME_RATE_TOLERANCE = 1 / 3600


@dataclass(frozen=True)
class VideoProperties:
    """How a video is shown.

    Attributes:
        frame_rate: Frames a second, their average where it varies.
        durations: Of a GIF or WebP, the milliseconds that each frame is shown; otherwise empty.
        loop_count: Of a GIF or WebP, how often it repeats, as the file holds it: 0 is for ever,
            None is a GIF that says nothing and is shown once.
        has_sound: Whether there is an audio stream.
    """

    frame_rate: Fraction
    durations: tuple[int, ...] = ()
    loop_count: int | None = REPEAT_FOREVER
    has_sound: bool = False


# ── reading ──


def read_video(path: str | Path) -> Iterator[Tensor]:
    """Yields the frames of a video, upright, each 1×3×H×W in [0, 1], decoded on demand.

    Raises SightlineError, one line that begins with the file's name, for anything without whole
    frames.
    """
    path = Path(path)
    name = escape_line_breaks(path.name or str(path))
    count = 0
    try:
        with _open_video_file(path) as file:
            frames = _decode_animation(file) if _is_animation(file) else _decode_frames(file)
            for frame in frames:
                count += 1
                yield frame
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


def read_video_properties(path: str | Path) -> VideoProperties:
    """Reads how a video is shown.

    A GIF or WebP is decoded for it. Other files are read through, not decoded, unless their header
    counts the frames. Raises SightlineError as `read_video` does.
    """
    path = Path(path)
    name = escape_line_breaks(path.name or str(path))
    try:
        with _open_video_file(path) as file:
            if _is_animation(file):
                return _read_animation_properties(file)
            with _open_container(file) as container:
                return VideoProperties(
                    frame_rate=_measure_frame_rate(container),
                    has_sound=bool(container.streams.audio),
                )
    except FileNotFoundError as error:
        raise SightlineError(f"{name}: {describe_missing_file(path)}") from error
    except IndexError as error:  # there is no video stream 0
        raise SightlineError(f"{name}: there is no picture in it, only sound or data") from error
    except (OSError, ValueError) as error:  # av's own errors are among these, and SightlineError
        reason = _describe_decoding_error(error, 0)
        raise SightlineError(f"{name}: {escape_line_breaks(reason)}") from error


def set_frame_rate(properties: VideoProperties, fps: float, name: str) -> VideoProperties:
    """The properties with another frame rate; `name` stands for the video in warnings.

    The sound no longer fits, because the video lasts longer or shorter. It is left out, with a
    warning. A rate that differs too little to be noticed changes nothing.
    """
    frame_rate = Fraction(fps).limit_denominator(1001)
    if abs(frame_rate / properties.frame_rate - 1) < SAME_RATE_TOLERANCE:
        return properties
    if properties.has_sound:
        rate = float(properties.frame_rate)
        warnings.warn(
            f"{name}: the sound could not be kept (at {fps:g} frames a second instead of {rate:g} "
            "it does not fit)",
            stacklevel=2,
        )
    return replace(properties, frame_rate=frame_rate, durations=(), has_sound=False)


def is_animation_file(path: str | Path) -> bool:
    """Whether a file is a GIF or WebP of more than one frame. False for what can't be read."""
    try:
        with _open_video_file(Path(path)) as file:
            if not _is_animation(file):
                return False
            with open_picture(file, count_frames=True) as decoded:
                return decoded.frame_count > 1
    except (OSError, ValueError):  # SightlineError, and a null byte in a path
        return False


@contextmanager
def _open_video_file(path: Path) -> Generator[IO[bytes], None, None]:
    """The file, open. Raises SightlineError for a folder or device; a pipe is not waited for."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise SightlineError("not a video file")
    with path.open("rb") as file:
        yield file


def _open_container(file: IO[bytes]) -> Any:
    import av

    return av.open(file, "r", options={"format_whitelist": READABLE_CONTAINERS})


def _is_animation(file: IO[bytes]) -> bool:
    """Whether the first bytes are those of a GIF or WebP."""
    first_bytes = file.read(12)
    file.seek(0)
    return first_bytes[:4] == b"GIF8" or first_bytes[:4] + first_bytes[8:] == b"RIFFWEBP"


def _decode_frames(file: IO[bytes]) -> Iterator[Tensor]:
    with _open_container(file) as container:
        for frame in container.decode(video=0):
            yield _convert_frame(frame)


def _seek_frames(file: IO[bytes]) -> Iterator[Image.Image]:
    """The picture of a GIF or WebP, at each of its frames in turn."""
    with open_picture(file, count_frames=True) as decoded:
        for number in range(decoded.frame_count):
            decoded.picture.seek(number)
            decoded.picture.load()
            yield decoded.picture


def _decode_animation(file: IO[bytes]) -> Iterator[Tensor]:
    for picture in _seek_frames(file):
        yield convert_pillow_to_tensor(picture)


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


# ── writing ──


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
            _encode_mp4(all_pixels, temporary, properties.frame_rate, sound_from)
        elif suffix == ".gif":
            _encode_gif(all_pixels, temporary, properties)
        else:
            _encode_webp(all_pixels, temporary, properties)


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


def _encode_gif(pixels: Iterable[Any], path: Path, properties: VideoProperties) -> None:
    """Writes a GIF frame by frame (GIF89a specification, sections 17 to 27).

    Pillow's own writer holds all frames in memory, and merges equal ones.
    """
    with path.open("wb") as file:
        for number, frame in enumerate(pixels):
            picture = Image.fromarray(frame).quantize(256)
            if number == 0:
                # Each frame has its own palette: there is no global one.
                file.write(b"GIF89a" + struct.pack("<HHBBB", *picture.size, 0x70, 0, 0))
                if properties.loop_count is not None:
                    loop_block = struct.pack("<BBHB", 3, 1, properties.loop_count, 0)
                    file.write(b"!\xff\x0bNETSCAPE2.0" + loop_block)
            duration = _choose_duration(number, properties)
            blocks = getdata(picture, duration=duration, disposal=1, include_color_table=True)
            file.write(b"".join(blocks))
        file.write(b";")


def _encode_webp(pixels: Iterable[Any], path: Path, properties: VideoProperties) -> None:
    """Writes an animated WebP frame by frame (RFC 9649, 2.7.1), for the reasons of a GIF."""
    # In a WebP, 1 is once.
    loop_count = 1 if properties.loop_count is None else properties.loop_count
    with path.open("wb") as file:
        file.write(b"RIFF" + bytes(4) + b"WEBP")
        for number, frame in enumerate(pixels):
            height, width = frame.shape[:2]
            size = _pack_24_bits(width - 1) + _pack_24_bits(height - 1)
            if number == 0:
                file.write(_pack_chunk(b"VP8X", bytes([ANIMATION_FLAG, 0, 0, 0]) + size))
                file.write(_pack_chunk(b"ANIM", struct.pack("<IH", 0, loop_count)))
            still = io.BytesIO()
            Image.fromarray(frame).save(still, "WEBP", quality=85)
            position = bytes(6)
            duration = _pack_24_bits(_choose_duration(number, properties))
            header = position + size + duration + bytes([NO_BLENDING_FLAG])
            # A still picture is its file header of 12 bytes, and a chunk with the pixels.
            file.write(_pack_chunk(b"ANMF", header + still.getvalue()[12:]))
        content_size = file.tell() - 8
        file.seek(4)
        file.write(struct.pack("<I", content_size))


def _pack_chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def _pack_24_bits(number: int) -> bytes:
    return number.to_bytes(3, "little")


def _choose_duration(number: int, properties: VideoProperties) -> int:
    """The milliseconds that a frame is shown.

    By a frame rate they are in whole hundredths of a second, as GIF stores them, rounded in such a
    way that the sum stays within half of one.
    """
    if number < len(properties.durations):
        return properties.durations[number]
    start = round(100 * number / properties.frame_rate)
    end = round(100 * (number + 1) / properties.frame_rate)
    return 10 * (end - start)


def _encode_mp4(
    pixels: Iterable[Any], path: Path, frame_rate: Fraction, sound_from: str | Path | None
) -> None:
    """Writes an MP4: H.264 where PyAV was built with it, else MPEG-4 part 2."""
    import av

    max_denominator = max(1, min(1001, int(MAX_RATE_NUMERATOR / frame_rate)))
    rate = frame_rate.limit_denominator(max_denominator)
    if not rate:  # less than one frame in 2000 seconds
        rate = Fraction(1, max_denominator)
    pictures = (
        av.VideoFrame.from_ndarray(_pad_to_even_sides(frame), format="rgb24") for frame in pixels
    )
    first = next(pictures)
    with ExitStack() as stack:
        source: Any = None
        if sound_from is not None:
            file = stack.enter_context(Path(sound_from).open("rb"))
            source = stack.enter_context(_open_container(file))
        container, stream, audio_streams = _start_mp4(path, first, rate, source)
        stack.enter_context(container)
        sound = _yield_sound(source, audio_streams)
        packet = next(sound, None)
        for number, picture in enumerate(chain([first], pictures)):
            container.mux(stream.encode(picture))
            # Sound is written beside its pictures, or the container would hold them in memory.
            while packet is not None and packet.dts * packet.time_base <= (number + 1) / rate:
                container.mux(packet)
                packet = next(sound, None)
        container.mux(stream.encode())
        while packet is not None:
            container.mux(packet)
            packet = next(sound, None)


def _start_mp4(
    path: Path, picture: Any, rate: Fraction, source: Any
) -> tuple[Any, Any, dict[int, Any]]:
    """Opens an MP4 with the streams that it takes, and writes its header.

    Returns the container, its video stream, and its audio streams by the index of the stream of
    `source` whose packets they take.
    """
    import av

    sounds = list(source.streams.audio) if source is not None else []
    while True:
        container: Any = av.open(str(path), "w", format="mp4", options={"movflags": "faststart"})
        encoder = next(name for name in VIDEO_ENCODERS if name in av.codecs_available)
        stream = container.add_stream(encoder, rate=rate, options=VIDEO_ENCODERS[encoder])
        stream.width = picture.width
        stream.height = picture.height
        stream.pix_fmt = "yuv420p"
        audio_streams: dict[int, Any] = {}
        try:
            for sound in sounds:
                codec = sound.codec_context.codec.canonical_name
                if codec in container.supported_codecs:
                    audio_streams[sound.index] = container.add_stream_from_template(sound)
                else:
                    _warn_about_sound(source, f"an MP4 can't hold {codec}")
            container.start_encoding()
            return container, stream, audio_streams
        except (OSError, ValueError) as error:  # av's own errors are among these
            container.close()
            if not sounds:
                raise
            # A header may be refused for a stream whose codec is allowed.
            _warn_about_sound(source, get_first_error_line(error))
            sounds = []


def _yield_sound(source: Any, audio_streams: dict[int, Any]) -> Iterator[Any]:
    """The packets of the copied audio streams, their time counted from the first picture."""
    if not audio_streams:
        return
    video = source.streams.video[0]
    video_start = (video.start_time or 0) * video.time_base
    try:
        for packet in source.demux([source.streams[index] for index in audio_streams]):
            if packet.dts is None:  # the empty packet at the end of a stream
                continue
            offset = round(video_start / packet.time_base)
            packet.dts -= offset
            if packet.pts is not None:
                packet.pts -= offset
            packet.stream = audio_streams[packet.stream.index]
            yield packet
    except (OSError, ValueError) as error:  # av's own errors are among these
        _warn_about_sound(source, f"broken, {get_first_error_line(error)}")


def _warn_about_sound(source: Any, reason: str) -> None:
    name = escape_line_breaks(Path(source.name or "").name)
    warnings.warn(f"{name}: the sound could not be kept ({reason})", stacklevel=2)


def _pad_to_even_sides(pixels: Any) -> Any:
    """H×W×3 with an odd last row or column doubled: color is stored for blocks of 2×2 pixels."""
    height, width = pixels.shape[:2]
    return np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
