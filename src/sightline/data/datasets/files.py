"""What a dataset is, and image files as one: paths in a fixed order with their classes."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from PIL import Image

from sightline.data.datasets.names import encode_name, make_storable_name
from sightline.errors import SightlineError
from sightline.images.decode.center_crop import ImageSource
from sightline.images.decode.source import read_picture_source
from sightline.models.weights.checkpoint import hash_file


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

    def __getitem__(self, position: int) -> ImageSource:
        """The same as `read_image`, for torch's DataLoader."""
        ...


class Files:
    """Image files in the order of `paths`. `classes` has the class name of each, or None.

    A path that ends in a separator is a folder that could not be listed. It counts as an image
    that can't be read.
    """

    def __init__(self, source: str, paths: Sequence[str], classes: Sequence[str | None]) -> None:
        self.source = source
        self.paths = paths
        self.class_names, self.labels = number_classes(classes)

        digest = hashlib.sha256()
        for path in paths:
            digest.update(encode_name(f"{path}\0{read_file_stamp(path)}\n"))
        self.digest = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int) -> ImageSource:
        return self.read_image(position)

    def get_path(self, position: int) -> str:
        # `paths` keeps the name that opens the file.
        return make_storable_name(self.paths[position])

    def get_label(self, position: int) -> int:
        return self.labels[position]

    def read_image(self, position: int) -> bytes | Path:
        return read_image_file(self.paths[position])


def number_classes(classes: Sequence[str | None]) -> tuple[tuple[str, ...], list[int]]:
    """The sorted class names, and the index of each image's class; −1 for None.

    A single class tells images apart no better than none, so it counts as none.
    """
    class_names = sorted({name for name in classes if name is not None})
    if len(class_names) < 2:
        return (), [-1] * len(classes)

    index_of: dict[str | None, int] = {name: index for index, name in enumerate(class_names)}
    storable_names = tuple(map(make_storable_name, class_names))
    return storable_names, [index_of.get(name, -1) for name in classes]


def read_image_file(path: str) -> bytes | Path:
    """The content of a picture file; of a large one its path, from which it can be decoded.

    Raises OSError or SightlineError if it can't be read.
    """
    if path.endswith(os.sep):
        with os.scandir(path):  # raises the reason why the folder could not be listed
            raise SightlineError("a folder that could not be listed when the scan began")
    return read_picture_source(path)


def read_file_stamp(path: str) -> str:
    """Size and modification time of a file; empty if it can't be looked up."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a null byte in the path
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


# ── archives ──


def hash_file_stamps(files: Sequence[str]) -> str:
    """Digest of the sizes and modification times of files."""
    lines = [f"{file} {read_file_stamp(file)}" for file in files]
    return hashlib.sha256(encode_name("\n".join(lines))).hexdigest()


def name_archives(files: Sequence[str], suffix: str) -> str:
    """The text that opens these files again: the only one, or a pattern for all in their folder."""
    if len(files) == 1:
        return files[0]
    return os.path.join(os.path.dirname(files[0]), f"*{suffix}")
