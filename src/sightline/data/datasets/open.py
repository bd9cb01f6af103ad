"""The dataset that a path, pattern, list or object names."""

import glob
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from sightline.data.datasets.files import (
    COMPANION_SUFFIXES,
    STORE_SUFFIXES,
    Files,
    ImageDataset,
    hash_source,
    read_file_bytes,
)
from sightline.errors import SightlineError
from sightline.images.decode import ImageSource


def open_dataset(source: Any = None) -> ImageDataset:
    """The collection that `source` names.

    None: tiles of the sample photographs. A folder: its tree, where folders are classes if every image lies in one. A
    pattern such as `photos/*.jpg`. A `.txt` list: a path a line, a class after a tab. `.tar` shards, `.parquet` files,
    a `.lance` table. From the library also a list of paths or a dataset object with `len()` that gives pictures.
    Raises SightlineError if there is nothing there.
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
    path = os.path.abspath(source)
    if os.path.isdir(path) and not path.endswith(".lance"):
        files = sorted(find_image_files(path))
        if shards := open_archives(files):
            return shards
        return require_images(Files(path, files, infer_folder_classes(path, files)), source)
    if os.path.exists(path):
        return require_images(open_archives([path]) or open_file_list(path), source)
    if glob.has_magic(source):
        files = sorted(
            found
            for found in glob.glob(path, recursive=True)
            if not os.path.isdir(found) or found.endswith(".lance")
        )
        if not files:
            raise SightlineError(f"no file matches {source}")
        return open_archives(files) or Files(
            path,
            files,
            infer_folder_classes(
                os.path.commonpath([os.path.dirname(file) for file in files]), files
            ),
        )
    raise SightlineError(
        f"there is no folder, list or archive {source}; a pattern such as 'photos/*.jpg' works too"
    )


def open_archives(files: Sequence[str]) -> ImageDataset | None:
    """The collection in archives or tables, if these files are such; raises SightlineError for a mixture of kinds."""
    if not files or not all(file.endswith((".tar", ".parquet", ".lance")) for file in files):
        return None
    kinds = {Path(file).suffix for file in files}
    if len(kinds) > 1:
        raise SightlineError(
            f"{os.path.dirname(files[0])} mixes {' and '.join(sorted(kinds))} files; give one kind"
        )
    from sightline.data.datasets.shards import ARCHIVE_OPENERS

    return ARCHIVE_OPENERS[kinds.pop()](files)


def reread_image(
    descriptor: Mapping[str, Any], position: int, path: str
) -> tuple[ImageSource, str]:
    """What a collection's descriptor gave at a position, read again, and its digest. Raises SightlineError if it is gone."""
    if descriptor["source"] is None:
        raise SightlineError(
            f"{path} came from a dataset object in code; the store has its thumbnail only"
        )
    try:
        source = (
            read_file_bytes(path)
            if descriptor["kind"] == "Files"
            else _open_cached_dataset(descriptor["kind"], descriptor["source"]).read_image(position)
        )
    except (OSError, IndexError) as error:
        raise SightlineError(
            f"{path} can't be read any more ({getattr(error, 'strerror', None) or error})"
        ) from error
    return source, hash_source(source)


@lru_cache(maxsize=4)
def _open_cached_dataset(kind: str, source: str) -> ImageDataset:
    return open_dataset(source or None) if kind != "Tiles" else open_dataset()


def open_file_list(path: str) -> Files:
    """The files that a text list names, relative to it."""
    try:
        lines = [
            line for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()
        ]
    except (OSError, UnicodeDecodeError) as error:
        raise SightlineError(f"{path} is no folder, text list, .tar, .parquet or .lance") from error
    rows = [line.split("\t", maxsplit=1) for line in lines]
    files = [os.path.abspath(os.path.join(os.path.dirname(path), row[0].strip())) for row in rows]
    return Files(path, files, [row[1].strip() if len(row) > 1 else None for row in rows])


def require_images(dataset: ImageDataset, name: str) -> ImageDataset:
    """The collection; raises SightlineError if it holds nothing."""
    if not len(dataset):
        raise SightlineError(f"there are no images in {name}")
    return dataset


def find_image_files(folder: str) -> Iterator[str]:
    """Every file of a tree that could be an image; hidden ones, stores and the usual companions are left out, links to folders too."""
    for parent, folders, files in os.walk(folder):
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and not name.endswith(STORE_SUFFIXES)
        ]
        yield from (
            os.path.join(parent, name)
            for name in files
            if not name.startswith(".") and Path(name).suffix.lower() not in COMPANION_SUFFIXES
        )


def infer_folder_classes(root: str, files: Iterable[str]) -> list[str | None]:
    """The first folder below `root` of each file, or None for all if some lie in none."""
    parts = [os.path.relpath(file, root).split(os.sep) for file in files]
    return (
        [part[0] if len(part) > 1 else None for part in parts]
        if all(len(part) > 1 for part in parts)
        else [None] * len(parts)
    )
