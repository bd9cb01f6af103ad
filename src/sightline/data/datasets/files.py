"""Collections of images: what a folder, pattern, list, archive, table or dataset object holds, in a fixed order."""

import hashlib
import os
import stat
from collections.abc import Sequence
from typing import Protocol

from PIL import Image

from sightline.errors import SightlineError
from sightline.images.decode import ImageSource

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
        return (
            self.paths[position].encode(errors="surrogateescape").decode(errors="backslashreplace")
        )

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


def hash_source(source: ImageSource) -> str:
    """Digest of a file's bytes or a picture's pixels; empty for a tensor."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    return hashlib.sha256(source.tobytes()).hexdigest() if isinstance(source, Image.Image) else ""
