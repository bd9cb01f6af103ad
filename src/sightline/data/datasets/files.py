"""What a dataset is, and image files as one: paths in a fixed order with their classes."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from PIL import Image

from sightline.images.decode.source import read_picture_source
from sightline.images.decode.square import ImageSource
from sightline.models.weights.checkpoint import hash_file

TEXT_SUFFIXES = frozenset({".txt", ".json", ".csv", ".md", ".xml", ".yaml", ".yml", ".log", ".py"})
ARRAY_SUFFIXES = frozenset({".npz", ".npy", ".mat", ".safetensors", ".pt", ".pth"})

COMPANION_SUFFIXES = TEXT_SUFFIXES | ARRAY_SUFFIXES  # files that often lie beside images

STORE_SUFFIXES = (".scan", ".lance")


class ImageDataset(Protocol):
    """Images by position, in an order that does not change."""

    @property
    def source(self) -> str | None:
        """The text that `open_dataset` opens it again from; None for a dataset object."""
        ...

    @property
    def digest(self) -> str:
        """Hex digest that changes when a file changes."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; empty if none are known."""
        ...

    def __len__(self) -> int: ...

    def get_path(self, position: int) -> str:
        """The path of an image file, or a name by which people recognise the image."""
        ...

    def get_label(self, position: int) -> int:
        """Index into `class_names`; −1 if the class is not known."""
        ...

    def read_image(self, position: int) -> ImageSource:
        """The bytes of the file, the path of a large one, or the decoded image.

        Called from several threads at once.

        Raises OSError or SightlineError if the image can't be read.
        """
        ...


class Files:
    """Image files in the order of `paths`. `classes` has the class name of each, or None."""

    def __init__(self, source: str, paths: Sequence[str], classes: Sequence[str | None]) -> None:
        self.source = source
        self.paths = paths
        self.class_names, self.labels = number_classes(classes)

        digest = hashlib.sha256()
        for path in paths:
            line = f"{path}\0{read_file_stamp(path)}\n"
            digest.update(line.encode(errors="surrogateescape"))
        self.digest = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.paths)

    def get_path(self, position: int) -> str:
        # A name that is not UTF-8 becomes printable; `paths` keeps the one that opens the file.
        raw_path = self.paths[position].encode(errors="surrogateescape")
        return raw_path.decode(errors="backslashreplace")

    def get_label(self, position: int) -> int:
        return self.labels[position]

    def read_image(self, position: int) -> bytes | Path:
        return read_picture_source(self.paths[position])


def number_classes(classes: Sequence[str | None]) -> tuple[tuple[str, ...], list[int]]:
    """The sorted class names, and the index of each image's class; −1 for None.

    A single class tells images apart no better than none, so it counts as none.
    """
    class_names = sorted({name for name in classes if name is not None})
    if len(class_names) < 2:
        return (), [-1] * len(classes)

    index_of: dict[str | None, int] = {name: index for index, name in enumerate(class_names)}
    return tuple(class_names), [index_of.get(name, -1) for name in classes]


def read_file_stamp(path: str) -> str:
    """Size and modification time of a file; empty if it can't be looked up."""
    try:
        status = os.stat(path)
    except OSError:
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"


def hash_source(source: ImageSource) -> str:
    """Digest of a file's bytes or of a Pillow image's pixels; empty for a tensor."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    if isinstance(source, Path):
        return hash_file(source)
    if isinstance(source, Image.Image):
        return hashlib.sha256(source.tobytes()).hexdigest()
    return ""
