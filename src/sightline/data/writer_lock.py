"""Only one writer at a time in a folder: others say for whom they wait, and wait.

Readers need no lock. The system frees the lock when the process that holds it ends.
"""

import logging
import os
import platform
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from sightline.data.table_errors import explain_disk_error
from sightline.errors import SightlineError, escape_for_display

LOCK_FILE = "lock"
WRITER_FILE = "writer"  # names the process that holds the lock

POLL_SECONDS = 0.1  # between two attempts to get the lock

MAX_WRITER_LENGTH = 100  # characters of that name

logger = logging.getLogger(__name__)

# Process and thread that write a folder. A fork inherits the entries of another process.
_writer_threads: dict[Path, tuple[int, int]] = {}


@contextmanager
def lock_folder(path: Path) -> Generator[None, None, None]:
    """Holds the lock of a folder, which is made if it does not exist.

    Waits for another writer, and says so in one line of the log. Raises SightlineError if the
    folder can't be written, or if this very thread writes it already and would wait for itself.
    """
    folder = path.absolute()
    this_thread = (os.getpid(), threading.get_ident())
    if _writer_threads.get(folder) == this_thread:
        raise SightlineError(f"{path} is being written by this thread already")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK_FILE)
        _acquire_lock(lock, path)
    except OSError as error:
        raise SightlineError(f"can't write {path}: {explain_disk_error(error)}") from error
    try:
        _writer_threads[folder] = this_thread
        _name_writer(folder)
        yield
    finally:
        del _writer_threads[folder]
        lock.release()


def _acquire_lock(lock: FileLock, path: Path) -> None:
    try:
        lock.acquire(blocking=False)
    except Timeout:
        writer = _read_writer_name(path)
        logger.warning("waiting for %s, which writes %s", writer, escape_for_display(str(path)))
        lock.acquire(poll_interval=POLL_SECONDS)


def _name_writer(folder: Path) -> None:
    with suppress(OSError):  # on a full disk nobody is told the name
        name = f"process {os.getpid()} on {platform.node()}"
        folder.joinpath(WRITER_FILE).write_text(name, encoding="utf-8")


def _read_writer_name(path: Path) -> str:
    try:
        with path.joinpath(WRITER_FILE).open(encoding="utf-8", errors="replace") as file:
            name = file.read(MAX_WRITER_LENGTH)
    except OSError:
        name = ""
    return escape_for_display(name) or "another process"
