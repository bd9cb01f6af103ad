"""The sound of a video, copied into another as it is."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sightline.errors import get_first_error_line
from sightline.images.io.pictures import escape_line_breaks


def copy_sound_packets(source: Any, audio_streams: dict[int, Any]) -> Iterator[Any]:
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
        warn_about_sound(source, f"broken, {get_first_error_line(error)}")


def warn_about_sound(source: Any, reason: str) -> None:
    """Says in a warning why the sound of `source` could not be kept."""
    name = escape_line_breaks(Path(source.name or "").name)
    warnings.warn(f"{name}: the sound could not be kept ({reason})", stacklevel=2)
