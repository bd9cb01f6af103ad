"""Opening a video file and its container."""

import stat
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from sightline.errors import SightlineError

# Containers only: ffmpeg would also render text files, and playlists make it open other files.
READABLE_CONTAINERS = "mov,matroska,webm,avi,gif,mpeg,mpegts,flv,ogg,asf,apng,webp_anim"


@contextmanager
def open_video_file(path: Path) -> Generator[IO[bytes], None, None]:
    """The file, open. Raises SightlineError for a folder or device; a pipe is not waited for."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise SightlineError("not a video file")
    with path.open("rb") as file:
        yield file


def open_container(file: IO[bytes]) -> Any:
    """PyAV's container of a file. Raises av's errors for what is no container it may read."""
    import av

    return av.open(file, "r", options={"format_whitelist": READABLE_CONTAINERS})


def is_animation(file: IO[bytes]) -> bool:
    """Whether the first bytes are those of a GIF or WebP."""
    first_bytes = file.read(12)
    file.seek(0)
    return first_bytes[:4] == b"GIF8" or first_bytes[:4] + first_bytes[8:] == b"RIFFWEBP"
