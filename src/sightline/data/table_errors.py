"""What pyarrow and LanceDB raise for a damaged table or a full disk, as one line."""

import re
from collections.abc import Generator
from contextlib import contextmanager

from sightline.errors import (
    SightlineError,
    get_first_error_line,
    is_out_of_memory,
    make_memory_error,
)

TABLE_ERRORS = (
    OSError,
    ValueError,  # among them pyarrow's ArrowInvalid
    RuntimeError,
    LookupError,
    TypeError,
    OverflowError,
    MemoryError,
)

# What Rust libraries raise, past `Exception`, where they meet what they thought impossible.
PANIC_NAMES = ("PanicException", "RustPanic")

MAX_REASON_LENGTH = 300  # characters of the library's own words


@contextmanager
def convert_panics() -> Generator[None, None, None]:
    """Raises RuntimeError in place of what a Rust library raises past `Exception`."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ not in PANIC_NAMES:
            raise
        raise RuntimeError(get_first_error_line(error)) from error


@contextmanager
def convert_table_errors(problem: str) -> Generator[None, None, None]:
    """Raises SightlineError «PROBLEM (reason)» in place of what pyarrow or LanceDB raises.

    Only calls of those libraries belong into the block.
    """
    try:
        with convert_panics():
            yield
    except SightlineError:
        raise
    except TABLE_ERRORS as error:
        raise make_table_error(problem, error) from error


def make_table_error(problem: str, error: Exception) -> SightlineError:
    """The error, with the first line of the library's words.

    Raises SightlineError where there is no memory left.
    """
    reason = explain_disk_error(error) or type(error).__name__
    return SightlineError(f"{problem} ({reason:.{MAX_REASON_LENGTH}})")


def explain_disk_error(error: Exception) -> str:
    """The operating system's words in another library's message: «No space left on device».

    Raises SightlineError where there is no memory left: then nothing is wrong with the file.
    """
    if is_out_of_memory(error):
        raise make_memory_error("for this store or table", "batch", "k") from error
    system_error = re.search(r"([A-Z][\w ]+) \(os error \d+\)", str(error))
    if system_error is not None:
        return system_error[1]
    return getattr(error, "strerror", None) or get_first_error_line(error)
