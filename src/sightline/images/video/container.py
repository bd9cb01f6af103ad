"""Opening a video file and its container."""

import stat
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from sightline.errors import SightlineError, get_first_error_line

# Containers only: ffmpeg would also render text files, and playlists make it open other files.
READABLE_CONTAINERS = "mov,matroska,webm,avi,gif,mpeg,mpegts,flv,ogg,asf,apng,webp_anim"


@contextmanager
def open_video_file(path: Path) -> Generator[IO[bytes], None, None]:
    """The file, open. Raises SightlineError for a folder or device; a pipe is not waited for."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise SightlineError("not a video file")
    with path.open("rb") as file:
        yield file


@contextmanager
def open_container(file: IO[bytes]) -> Generator[Any, None, None]:
    """PyAV's container of a file, which is closed at the end of the block.

    Raises OSError, ValueError (SightlineError too) or EOFError for what can't be decoded, also
    inside the block. IndexError where a stream is asked for that is not there.
    """
    import av
    from av.error import DecoderNotFoundError, FFmpegError

    try:
        with av.open(file, "r", options={"format_whitelist": READABLE_CONTAINERS}) as container:
            yield container
    except (OSError, ValueError, EOFError, MemoryError):
        raise
    except DecoderNotFoundError as error:
        raise SightlineError("in a format that can't be decoded here") from error
    except FFmpegError as error:
        # Not all of av's errors are among Python's own.
        raise SightlineError(f"it can't be decoded ({get_first_error_line(error)})") from error


def is_animation(file: IO[bytes]) -> bool:
    """Whether the first bytes are those of a GIF or WebP."""
    first_bytes = file.read(12)
    file.seek(0)
    return first_bytes[:4] == b"GIF8" or first_bytes[:4] + first_bytes[8:] == b"RIFFWEBP"
