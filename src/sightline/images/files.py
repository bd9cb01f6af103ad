"""Files appear whole or not at all: written under a temporary name beside the final one, then renamed."""

import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from sightline.errors import SightlineError


@contextmanager
def replace_atomically(path: Path) -> Generator[Path, None, None]:
    """Gives a temporary path in the folder of `path`, made if need be; renamed to `path` if the block succeeds.

    Raises SightlineError when the folder can't be made or written.
    """
    temporary = path.with_name(f".{uuid4().hex[:12]}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except (OSError, ValueError) as error:
        if isinstance(error, SightlineError):
            raise
        raise make_write_error(path, error) from error
    finally:
        with suppress(OSError, ValueError):
            temporary.unlink()


def check_writable(folder: Path) -> None:
    """Raises SightlineError before the work is done if `folder` could not be made or written afterwards. Makes nothing."""
    try:
        existing = next(
            parent for parent in (folder, *folder.absolute().parents) if parent.exists()
        )
        if not existing.is_dir():
            raise NotADirectoryError(20, f"{str(existing)!r} is not a folder")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise PermissionError(13, "permission denied")
    except (OSError, ValueError) as error:
        raise make_write_error(folder, error) from error


def make_write_error(path: Path, error: Exception) -> SightlineError:
    """The one line for a place that can't be written; an odd name is escaped."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return SightlineError(f"can't write {str(path)!r}: {reason}")


def get_cache_path(kind: str, name: str) -> Path:
    """A place for something of a kind in the user's cache."""
    return (
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sightline" / kind / name
    )
