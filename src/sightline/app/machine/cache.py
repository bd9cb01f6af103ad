"""What the user's cache holds, and its removal.

Scans of folders without a store of their own are kept there, and lists of files. A folder whose
images changed gets a new scan, so that the old one stays until it is removed here.
"""

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from sightline.data.writer_lock import LOCK_FILE
from sightline.errors import SightlineError
from sightline.images.files import get_cache_folder

SECONDS_PER_DAY = 86_400


@dataclass(frozen=True)
class CacheEntry:
    """A file or folder of the cache.

    Attributes:
        kind: The folder of the cache that it lies in, such as "scans".
        size: Its bytes, without what symbolic links in it point to.
        days: Since it was last written to.
    """

    path: Path
    kind: str
    size: int
    days: float


def list_cache_entries() -> list[CacheEntry]:
    """Everything in the cache, the largest first.

    Raises SightlineError for a cache that can't be read.
    """
    folder = get_cache_folder()
    try:
        entries = [_describe_entry(path) for path in _list_entry_paths(folder)]
    except OSError as error:
        raise SightlineError(f"can't read the cache {folder} ({error.strerror})") from error
    return sorted(entries, key=lambda entry: (-entry.size, entry.path))


def remove_cache_entries(entries: Sequence[CacheEntry]) -> tuple[list[CacheEntry], dict[Path, str]]:
    """Removes entries of the cache.

    A symbolic link is removed, and what it points to stays. What another process writes at the
    moment stays.

    Returns those that were removed, and the reasons why others were not.
    Raises SightlineError for a path outside the cache, before anything is removed.
    """
    root = get_cache_folder()
    for entry in entries:
        if entry.path.parent.parent != root:
            raise SightlineError(f"{entry.path} is not in the cache {root}; nothing is removed")
    removed: list[CacheEntry] = []
    failures: dict[Path, str] = {}
    for entry in entries:
        try:
            _remove_entry(entry.path)
        except SightlineError as error:
            failures[entry.path] = str(error)
        except OSError as error:
            failures[entry.path] = error.strerror or str(error)
        else:
            removed.append(entry)
    return removed, failures


def _list_entry_paths(folder: Path) -> Iterator[Path]:
    """What lies in the folders of each kind. A link in place of such a folder is not followed."""
    if not folder.is_dir():
        return
    for kind in sorted(folder.iterdir()):
        if kind.is_dir() and not kind.is_symlink():
            yield from sorted(kind.iterdir())


def _describe_entry(path: Path) -> CacheEntry:
    size, newest = 0, 0.0
    for file in _walk_without_links(path):
        with suppress(FileNotFoundError):  # another process removed it
            status = file.lstat()
            size += 0 if file.is_dir() and not file.is_symlink() else status.st_size
            newest = max(newest, status.st_mtime)
    days = max(0.0, time.time() - newest) / SECONDS_PER_DAY
    return CacheEntry(path, path.parent.name, size, days)


def _walk_without_links(path: Path) -> Iterator[Path]:
    """A file or folder and everything in it; symbolic links are not followed."""
    yield path
    if path.is_symlink() or not path.is_dir():
        return
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            yield Path(folder, name)


def _remove_entry(path: Path) -> None:
    """Removes a link, a file, or a folder; raises SightlineError for a scan that is being written.

    The files of a scan's lock go last, when it is free: some systems remove no open file.
    """
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    lock = FileLock(path / LOCK_FILE)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise SightlineError("another process writes it") from error
    try:
        _remove_content(path)
    finally:
        lock.release()
    shutil.rmtree(path)


def _remove_content(folder: Path) -> None:
    """Removes everything but the lock, which is held."""
    for path in folder.iterdir():
        if path.name == LOCK_FILE:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
