"""The bytes of a picture file, of which nothing is read before its kind and size are known."""

import os
import stat
from pathlib import Path
from typing import IO

from sightline.errors import SightlineError
from sightline.images.decode.formats import SIGNATURE_LENGTH, detect_format

# No picture that may be decoded takes more in its file: 100 megapixels of 8 bytes each.
MAX_FILE_BYTES = 1_000_000_000
# A larger file is decoded from the disk, not read as a whole.
MAX_WHOLE_FILE_BYTES = 32_000_000
# What is packed in an archive can only be read as a whole, in each thread.
MAX_PACKED_BYTES = 256_000_000


def check_regular_file(path: str | Path, expected: str = "an image file") -> None:
    """Raises SightlineError for a folder, pipe, socket or device; OSError if there is nothing.

    To open a pipe would wait for its writer, and a device may never end.
    """
    mode = os.stat(path).st_mode
    if stat.S_ISREG(mode):
        return
    kind = "folder" if stat.S_ISDIR(mode) else "pipe, socket or device"
    raise SightlineError(f"a {kind}, not {expected}")


def check_file_size(byte_count: int, max_bytes: int = MAX_FILE_BYTES) -> None:
    """Raises SightlineError for a file that is larger than any picture."""
    if byte_count > max_bytes:
        raise SightlineError(
            f"{byte_count / 1e6:,.0f} MB, over the limit of {max_bytes / 1e6:,.0f} MB for a picture"
        )


def read_picture_source(path: str) -> bytes | Path:
    """The content of a picture file; of a large one its path, from which it can be decoded.

    Raises SightlineError for anything but a regular file that begins as a picture does and is not
    too large, OSError if it can't be read.
    """
    check_regular_file(path)
    with open(path, "rb") as file:
        byte_count = os.fstat(file.fileno()).st_size
        if byte_count > MAX_WHOLE_FILE_BYTES:
            detect_format(file.read(SIGNATURE_LENGTH))
            check_file_size(byte_count)
            return Path(path)
        return read_packed_picture(file, MAX_WHOLE_FILE_BYTES)


def read_packed_picture(file: IO[bytes], byte_count: int) -> bytes:
    """The next `byte_count` bytes of a file, or those up to its end.

    Raises SightlineError if they do not begin as a picture does, and if they are too many.
    """
    start = file.tell()
    detect_format(file.read(min(byte_count, SIGNATURE_LENGTH)))
    check_file_size(byte_count, MAX_PACKED_BYTES)
    file.seek(start)
    return file.read(byte_count)
