"""Frames as an MP4, with the sound of another video."""

from collections.abc import Iterable
from contextlib import ExitStack
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from sightline.errors import get_first_error_line
from sightline.images.video.container import open_container
from sightline.images.video.sound import copy_sound_packets, warn_about_sound

# The first that PyAV was built with is used.
VIDEO_ENCODERS = {"libx264": {"crf": "18", "preset": "medium"}, "mpeg4": {"qscale": "3"}}
# The larger number of an encoder's frame rate, as a fraction (MPEG-4 part 2 has 16 bits for it).
MAX_RATE_NUMERATOR = 65535


def encode_mp4(
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
            source = stack.enter_context(open_container(file))
        container, stream, audio_streams = _start_mp4(path, first, rate, source)
        stack.enter_context(container)
        sound = copy_sound_packets(source, audio_streams)
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
                context = sound.codec_context  # None where its codec is not known
                codec = "an unknown codec" if context is None else context.codec.canonical_name
                if codec in container.supported_codecs:
                    audio_streams[sound.index] = container.add_stream_from_template(sound)
                else:
                    warn_about_sound(source, f"an MP4 can't hold {codec}")
            container.start_encoding()
            return container, stream, audio_streams
        except (OSError, ValueError) as error:  # av's own errors are among these
            container.close()
            if not sounds:
                raise
            # A header may be refused for a stream whose codec is allowed.
            warn_about_sound(source, get_first_error_line(error))
            sounds = []


def _pad_to_even_sides(pixels: Any) -> Any:
    """H×W×3 with an odd last row or column doubled: color is stored for blocks of 2×2 pixels."""
    height, width = pixels.shape[:2]
    return np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
