"""Keeps libtiff, by which Pillow decodes compressed TIFF files, from writing to the terminal.

It writes its errors and warnings to the error stream by itself, and calls every file
«tempfile.tif». What matters of them reaches Pillow, and our message then names the file.
"""

import ctypes
import logging
from functools import cache
from pathlib import Path

import PIL

logger = logging.getLogger(__name__)

# Where the wheels of Pillow keep the libraries that they bring, on Linux and on macOS.
LIBRARY_FOLDERS = ("../pillow.libs", ".dylibs")


def find_libtiff() -> Path | None:
    """The file of libtiff that a wheel of Pillow brings; None if it is elsewhere or compiled in."""
    package = Path(PIL.__file__).parent
    paths = [path for folder in LIBRARY_FOLDERS for path in (package / folder).glob("libtiff*")]
    return paths[0].resolve() if paths else None


@cache
def silence_libtiff() -> None:
    """Takes away libtiff's own messages for the whole process, where its file is found."""
    path = find_libtiff()
    if path is None:
        return
    try:
        library = ctypes.CDLL(str(path))
        for set_handler in (library.TIFFSetErrorHandler, library.TIFFSetWarningHandler):
            set_handler.argtypes = [ctypes.c_void_p]
            set_handler.restype = ctypes.c_void_p
            set_handler(None)
    except (OSError, AttributeError) as error:
        logger.debug("%s can't be silenced: %s", path.name, error)
