"""Collections of images: what a folder, pattern, list, archive, table or dataset object holds, in a fixed order."""

import glob
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from ..errors import SightlineError
from ..fitted import ImageSource

COMPANION_SUFFIXES = {
    ".txt",
    ".json",
    ".csv",
    ".md",
    ".xml",
    ".yaml",
    ".yml",
    ".log",
    ".py",
    ".npz",
    ".npy",
    ".mat",
    ".safetensors",
    ".pt",
    ".pth",
}
STORE_SUFFIXES = (".scan", ".lance")


class ImageDataset(Protocol):
    """Images by position."""

    @property
    def source(self) -> str | None:
        """What makes it again; None for a dataset object."""
        ...

    @property
    def digest(self) -> str:
        """Changes when a file does."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the known classes; empty if none are known."""
        ...

    def __len__(self) -> int: ...

    def get_path(self, position: int) -> str:
        """A name that people recognise; of a file its path."""
        ...

    def get_label(self, position: int) -> int:
        """Index into `class_names`, −1 if it is not known."""
        ...

    def read_image(self, position: int) -> ImageSource:
        """The file's bytes or the picture; raises OSError or SightlineError if there is none. Called from several threads."""
        ...


class Files:
    """Image files in a fixed order, with their classes if these are known."""

    def __init__(self, source: str, paths: Sequence[str], classes: Sequence[str | None]) -> None:
        self.source, self.paths = source, paths
        names = sorted({name for name in classes if name is not None})
        self.class_names = tuple(names) if len(names) > 1 else ()
        number = {name: index for index, name in enumerate(self.class_names)}
        self.labels = [number.get(name, -1) if name is not None else -1 for name in classes]
        found = hashlib.sha256()
        for path in paths:
            found.update(f"{path}\0{read_file_stamp(path)}\n".encode(errors="surrogateescape"))
        self.digest = found.hexdigest()

    def __len__(self) -> int:
        return len(self.paths)

    def get_path(self, position: int) -> str:
        return self.paths[position].encode(errors="surrogateescape").decode(errors="backslashreplace")

    def get_label(self, position: int) -> int:
        return self.labels[position]

    def read_image(self, position: int) -> bytes:
        return read_file_bytes(self.paths[position])


def read_file_bytes(path: str) -> bytes:
    """A regular file's content; a pipe is refused, since opening it would wait for its writer."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise SightlineError("a folder, pipe, socket or device, not an image file")
    with open(path, "rb") as file:
        return file.read()


def read_file_stamp(path: str) -> str:
    """Size and time of change of a file, or nothing."""
    try:
        told = os.stat(path)
    except OSError:
        return ""
    return f"{told.st_size} {told.st_mtime_ns}"


def open_dataset(source: Any = None) -> ImageDataset:
    """The collection that `source` names.

    None: tiles of the sample photographs. A folder: its tree, where folders are classes if every image lies in one. A
    pattern such as `photos/*.jpg`. A `.txt` list: a path a line, a class after a tab. `.tar` shards, `.parquet` files,
    a `.lance` table. From the library also a list of paths or a dataset object with `len()` that gives pictures.
    Raises SightlineError if there is nothing there.
    """
    if source is None:
        from .tiles import Tiles

        return Tiles()
    if isinstance(source, (str, Path)):
        return open_dataset_path(str(source))
    if isinstance(source, (list, tuple)) and all(isinstance(item, (str, Path)) for item in source):
        paths = [os.path.abspath(item) for item in source]
        return require_images(Files("a list of paths", paths, [None] * len(paths)), "the list")
    from .datasets import wrap_dataset

    return require_images(wrap_dataset(source), f"the {type(source).__name__}")


def open_dataset_path(source: str) -> ImageDataset:
    path = os.path.abspath(source)
    if os.path.isdir(path) and not path.endswith(".lance"):
        files = sorted(find_image_files(path))
        if shards := open_archives(files):
            return shards
        return require_images(Files(path, files, infer_folder_classes(path, files)), source)
    if os.path.exists(path):
        return require_images(open_archives([path]) or open_file_list(path), source)
    if glob.has_magic(source):
        files = sorted(found for found in glob.glob(path, recursive=True) if not os.path.isdir(found) or found.endswith(".lance"))
        if not files:
            raise SightlineError(f"no file matches {source}")
        return open_archives(files) or Files(
            path, files, infer_folder_classes(os.path.commonpath([os.path.dirname(file) for file in files]), files)
        )
    raise SightlineError(f"there is no folder, list or archive {source}; a pattern such as 'photos/*.jpg' works too")


def require_images(dataset: ImageDataset, name: str) -> ImageDataset:
    """The collection; raises SightlineError if it holds nothing."""
    if not len(dataset):
        raise SightlineError(f"there are no images in {name}")
    return dataset


def find_image_files(folder: str) -> Iterator[str]:
    """Every file of a tree that could be an image; hidden ones, stores and the usual companions are left out, links to folders too."""
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and not name.endswith(STORE_SUFFIXES)]
        yield from (
            os.path.join(parent, name) for name in files if not name.startswith(".") and Path(name).suffix.lower() not in COMPANION_SUFFIXES
        )


def infer_folder_classes(root: str, files: Iterable[str]) -> list[str | None]:
    """The first folder below `root` of each file, or None for all if some lie in none."""
    parts = [os.path.relpath(file, root).split(os.sep) for file in files]
    return [part[0] if len(part) > 1 else None for part in parts] if all(len(part) > 1 for part in parts) else [None] * len(parts)


def open_archives(files: Sequence[str]) -> ImageDataset | None:
    """The collection in archives or tables, if these files are such; raises SightlineError for a mixture of kinds."""
    if not files or not all(file.endswith((".tar", ".parquet", ".lance")) for file in files):
        return None
    kinds = {Path(file).suffix for file in files}
    if len(kinds) > 1:
        raise SightlineError(f"{os.path.dirname(files[0])} mixes {' and '.join(sorted(kinds))} files; give one kind")
    from .shards import ARCHIVE_OPENERS

    return ARCHIVE_OPENERS[kinds.pop()](files)


def open_file_list(path: str) -> Files:
    """The files that a text list names, relative to it."""
    try:
        lines = [line for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise SightlineError(f"{path} is no folder, text list, .tar, .parquet or .lance") from error
    rows = [line.split("\t", maxsplit=1) for line in lines]
    files = [os.path.abspath(os.path.join(os.path.dirname(path), row[0].strip())) for row in rows]
    return Files(path, files, [row[1].strip() if len(row) > 1 else None for row in rows])


def hash_source(source: ImageSource) -> str:
    """Digest of a file's bytes or a picture's pixels; empty for a tensor."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    return hashlib.sha256(source.tobytes()).hexdigest() if isinstance(source, Image.Image) else ""


@lru_cache(maxsize=4)
def _open_cached_dataset(kind: str, source: str) -> ImageDataset:
    return open_dataset(source or None) if kind != "Tiles" else open_dataset()


def reread_image(descriptor: Mapping[str, Any], position: int, path: str) -> tuple[ImageSource, str]:
    """What a collection's descriptor gave at a position, read again, and its digest. Raises SightlineError if it is gone."""
    if descriptor["source"] is None:
        raise SightlineError(f"{path} came from a dataset object in code; the store has its thumbnail only")
    try:
        source = (
            read_file_bytes(path)
            if descriptor["kind"] == "Files"
            else _open_cached_dataset(descriptor["kind"], descriptor["source"]).read_image(position)
        )
    except (OSError, IndexError) as error:
        raise SightlineError(f"{path} can't be read any more ({getattr(error, 'strerror', None) or error})") from error
    return source, hash_source(source)
