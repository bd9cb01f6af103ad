"""Opens the dataset that a path, pattern, list or object names."""

import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from sightline.data.datasets.files import (
    COMPANION_SUFFIXES,
    STORE_SUFFIXES,
    Files,
    ImageDataset,
    hash_source,
)
from sightline.errors import SightlineError
from sightline.images.decode.formats import SIGNATURE_LENGTH
from sightline.images.decode.source import (
    check_regular_file,
    read_picture_source,
)
from sightline.images.decode.square import ImageSource

ARCHIVE_SUFFIXES = (".tar", ".parquet", ".lance")
# A text list of two million paths.
MAX_LIST_BYTES = 200_000_000


def open_dataset(source: Any = None) -> ImageDataset:
    """Opens the dataset that `source` names.

    - None: tiles of the sample photographs.
    - A folder: all images below it. Its folders are classes if every image lies in one.
    - A pattern such as `photos/*.jpg`.
    - A `.txt` list: one path a line, and a class after a tab.
    - `.tar` archives, `.parquet` files, a `.lance` table.
    - A list of paths, or an object with `len()` whose items are images.

    Raises SightlineError if there are no images.
    """
    if source is None:
        from sightline.data.datasets.samples import Tiles

        return Tiles()
    if isinstance(source, (str, Path)):
        return open_dataset_path(str(source))
    if isinstance(source, (list, tuple)) and all(isinstance(item, (str, Path)) for item in source):
        paths = [os.path.abspath(item) for item in source]
        return require_images(Files("a list of paths", paths, [None] * len(paths)), "the list")

    from sightline.data.datasets.torch import wrap_dataset

    return require_images(wrap_dataset(source), f"the {type(source).__name__}")


def open_dataset_path(source: str) -> ImageDataset:
    """The dataset in a folder, archive or list, or the files that a pattern matches."""
    path = os.path.abspath(source)
    if os.path.isdir(path) and not path.endswith(".lance"):
        paths = sorted(find_image_files(path))
        return require_images(open_files(path, path, paths), source)
    if path.endswith(ARCHIVE_SUFFIXES) and os.path.exists(path):
        return require_images(open_archives([path]), source)
    if os.path.exists(path):
        return require_images(open_file_list(path), source)
    if glob.has_magic(source):
        paths = sorted(
            match
            for match in glob.glob(path, recursive=True)
            if not os.path.isdir(match) or match.endswith(".lance")
        )
        if not paths:
            raise SightlineError(f"no file matches {source}")
        common_folder = os.path.commonpath([os.path.dirname(match) for match in paths])
        return require_images(open_files(path, common_folder, paths), source)
    raise SightlineError(
        f"there is no folder, list or archive {source}; a pattern such as 'photos/*.jpg' works too"
    )


def open_files(source: str, root: str, paths: Sequence[str]) -> ImageDataset:
    """The dataset in archives if all files are archives, else the files as images.

    The folders below `root` are the classes.
    """
    if paths and all(path.endswith(ARCHIVE_SUFFIXES) for path in paths):
        return open_archives(paths)
    return Files(source, paths, infer_folder_classes(root, paths))


def open_archives(paths: Sequence[str]) -> ImageDataset:
    """The dataset in archives or tables. Raises SightlineError if they are of different kinds."""
    from sightline.data.datasets.shards import ARCHIVE_OPENERS

    suffixes = {Path(path).suffix for path in paths}
    if len(suffixes) > 1:
        folder = os.path.dirname(paths[0])
        kinds = " and ".join(sorted(suffixes))
        raise SightlineError(f"{folder} mixes {kinds} files; give one kind")
    for path in paths:
        if not os.path.isdir(path) and not os.path.isfile(path):
            raise SightlineError(f"{path} is a pipe, socket or device, not an archive")
    return ARCHIVE_OPENERS[suffixes.pop()](paths)


def open_file_list(path: str) -> Files:
    """The files that a text list names; relative paths start from the list's folder."""
    text = read_list_text(path)
    folder = os.path.dirname(path)
    files: list[str] = []
    classes: list[str | None] = []
    for line in text.splitlines():
        if not line.strip():
            continue
        name, tab, class_name = line.partition("\t")
        files.append(os.path.abspath(os.path.join(folder, name.strip())))
        classes.append(class_name.strip() if tab else None)
    return Files(path, files, classes)


def read_list_text(path: str) -> str:
    """The content of a text list. Raises SightlineError for what is none, before it is read."""
    refusal = f"{path} is no folder, text list, .tar, .parquet or .lance"
    try:
        check_regular_file(path)
        with open(path, "rb") as file:
            is_binary = b"\0" in file.read(SIGNATURE_LENGTH)
            byte_count = file.seek(0, os.SEEK_END)
            file.seek(0)
            is_readable = not is_binary and byte_count <= MAX_LIST_BYTES
            text = file.read().decode("utf-8") if is_readable else "\0"
    except (OSError, ValueError) as error:  # ValueError: SightlineError, and not UTF-8
        raise SightlineError(refusal) from error
    if "\0" in text:
        raise SightlineError(refusal)
    return text


def require_images(dataset: ImageDataset, name: str) -> ImageDataset:
    """The dataset itself. Raises SightlineError if it is empty."""
    if not len(dataset):
        raise SightlineError(f"there are no images in {name}")
    return dataset


def find_image_files(folder: str) -> Iterator[str]:
    """Every file below a folder that could be an image.

    Leaves out hidden files and folders, stores, and files such as `.txt` and `.json` that often lie
    beside images. Does not follow links to folders.
    """
    for parent, folders, files in os.walk(folder):
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and not name.endswith(STORE_SUFFIXES)
        ]
        for name in files:
            is_companion = Path(name).suffix.lower() in COMPANION_SUFFIXES
            if not name.startswith(".") and not is_companion:
                yield os.path.join(parent, name)


def infer_folder_classes(root: str, paths: Sequence[str]) -> list[str | None]:
    """The first folder below `root` of each path; None for all if one lies in `root` itself."""
    folders_of_path = [os.path.relpath(path, root).split(os.sep)[:-1] for path in paths]
    if not all(folders_of_path):
        return [None] * len(paths)
    return [folders[0] for folders in folders_of_path]


# ── an image again, after the scan ──


def reread_image(
    descriptor: Mapping[str, Any], position: int, path: str
) -> tuple[ImageSource, str]:
    """Reads the image at a position of a scanned dataset again; returns it and its digest.

    `descriptor` is what the store says of the dataset: its `kind` (name of the dataset's type) and
    its `source`. Raises SightlineError if the image can't be read any more.
    """
    if descriptor["source"] is None:
        raise SightlineError(
            f"{path} came from a dataset object in code; the store has its thumbnail only"
        )
    try:
        if descriptor["kind"] == "Files":
            source = read_picture_source(path)
        else:
            source = _open_cached_dataset(descriptor["source"]).read_image(position)
    except (OSError, IndexError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SightlineError(f"{path} can't be read any more ({reason})") from error
    return source, hash_source(source)


@lru_cache(maxsize=4)
def _open_cached_dataset(source: str) -> ImageDataset:
    # The source of the sample tiles is the empty string.
    return open_dataset(source or None)
