"""Files that appear whole or not at all, those below a folder, and the user's cache.

A file is written under a temporary name in its final folder, then renamed.
"""

import errno
import os
import re
import shutil
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from platformdirs import user_cache_path

from sightline.errors import SightlineError

# What is being written at the moment. A process that is about to end removes it.
_temporary_paths: set[Path] = set()

# Folders made for what is being written. They are empty until it is whole.
_new_folders: set[Path] = set()

# How the temporary files of `replace_atomically` are named.
TEMPORARY_FILE_NAME = re.compile(r"\.[0-9a-f]{12}(\.\w+)?")


@contextmanager
def replace_atomically(path: Path) -> Generator[Path, None, None]:
    """Yields a temporary path that becomes `path` if the `with` block succeeds.

    The folder is made if it does not exist. If the block fails, a file that was at `path` stays as
    it was. Raises SightlineError when the folder or the file can't be written.
    """
    temporary = path.with_name(f".{uuid4().hex[:12]}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _temporary_paths.add(temporary)
        yield temporary
        os.replace(temporary, path)
    except SightlineError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise _make_write_error(path, error) from error
    finally:
        _remove_temporary_path(temporary)


@contextmanager
def replace_files_together(folder: Path, first_name: str) -> Generator[Path, None, None]:
    """Yields a temporary folder whose files move to `folder` if the `with` block succeeds.

    The file `first_name` moves first, so that no other is there without it. If the block fails,
    files in `folder` stay as they were, and a folder that was not there is not made. Raises
    SightlineError when the folder or a file can't be written.
    """
    is_new = not folder.is_dir()
    temporary = folder / f".{uuid4().hex[:12]}"
    try:
        if is_new:
            _new_folders.add(folder)
        folder.mkdir(parents=True, exist_ok=True)
        _temporary_paths.add(temporary)
        temporary.mkdir()
        yield temporary
        paths = sorted(temporary.iterdir(), key=lambda path: path.name != first_name)
        for path in paths:
            os.replace(path, folder / path.name)
    except SightlineError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise _make_write_error(folder, error) from error
    finally:
        _remove_temporary_path(temporary)
        if is_new:
            _remove_empty_folder(folder)


def remove_temporary_files() -> None:
    """Removes what is being written, for a process that ends without leaving its `with` blocks."""
    for temporary in list(_temporary_paths):
        _remove_temporary_path(temporary)
    for folder in list(_new_folders):
        _remove_empty_folder(folder)


def remove_abandoned_files(folder: Path) -> None:
    """Removes the half-written files of killed processes from a folder that no other one writes."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if TEMPORARY_FILE_NAME.fullmatch(path.name) and path.is_file():
            _remove_temporary_path(path)


def _remove_empty_folder(folder: Path) -> None:
    with suppress(OSError, ValueError):
        folder.rmdir()  # fails where something is in it
    _new_folders.discard(folder)


def _remove_temporary_path(temporary: Path) -> None:
    """Removes a temporary file or folder, if it is there."""
    with suppress(OSError, ValueError):
        temporary.unlink()
    shutil.rmtree(temporary, ignore_errors=True)
    _temporary_paths.discard(temporary)


def write_text(content: str, path: Path) -> None:
    """Writes UTF-8 text atomically, with line ends as they are in `content`."""
    with replace_atomically(path) as temporary:
        temporary.write_text(content, encoding="utf-8", newline="")


def check_writable(folder: Path) -> None:
    """Raises SightlineError if `folder` can't be made or written. Makes nothing.

    To be called before long work whose result is saved there.
    """
    try:
        candidates = (folder, *folder.absolute().parents)
        existing = next(candidate for candidate in candidates if candidate.exists())
        if not existing.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{str(existing)!r} is not a folder")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "permission denied")
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise _make_write_error(folder, error) from error


def walk_files(
    folder: str,
    *,
    enters: Callable[[str], bool] = lambda _folder: True,
    note_unlisted: Callable[[str], None] = lambda _folder: None,
) -> Iterator[str]:
    """The paths of all files below a folder, however deep, in no order.

    Links to folders are left out, and not followed. `enters` says of each folder below whether it
    is looked into; `note_unlisted` is called with those that can't be listed.
    """
    folders = [folder]  # os.walk of Python 3.11 calls itself, and fails some hundred folders deep
    while folders:
        parent = folders.pop()
        try:
            with os.scandir(parent) as entries:
                found = list(entries)
        except OSError:
            note_unlisted(parent)
            continue
        for entry in found:
            if not _is_folder(entry):
                yield entry.path
            elif not entry.is_symlink() and enters(entry.path):
                folders.append(entry.path)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    """Whether an entry is a folder, or a link to one; not if that can't be told."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def get_cache_folder() -> Path:
    """The user's cache: in XDG_CACHE_HOME where that is set, else in the system's usual folder.

    Makes nothing.
    """
    xdg_cache = os.environ.get("XDG_CACHE_HOME")
    if xdg_cache:  # platformdirs looks at it on Linux and macOS only
        return Path(xdg_cache) / "sightline"
    return user_cache_path("sightline", appauthor=False)


def get_cache_path(kind: str, name: str) -> Path:
    """The path of a file or folder in the user's cache, where things of its `kind` are kept.

    Makes nothing.
    """
    return get_cache_folder() / kind / name


def _make_write_error(path: Path, error: Exception) -> SightlineError:
    """The one line for a path that can't be written; `repr` escapes odd characters."""
    system_message = error.strerror if isinstance(error, OSError) else None
    return SightlineError(f"can't write {str(path)!r}: {system_message or error}")
