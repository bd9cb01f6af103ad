"""Opens the dataset that a path, pattern, list or object names."""

import codecs
import glob
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from sightline.data.datasets.files import Files, ImageDataset, hash_source, read_image_file
from sightline.data.datasets.folders import (
    find_image_files,
    has_store_description,
    infer_folder_classes,
    is_lance_table,
)
from sightline.data.datasets.names import find_stored_file
from sightline.errors import SightlineError
from sightline.images.decode.center_crop import ImageSource
from sightline.images.decode.formats import SIGNATURE_LENGTH, detect_format
from sightline.images.decode.source import check_regular_file

ARCHIVE_SUFFIXES = (".tar", ".parquet", ".lance")
# A text list of two million paths.
MAX_LIST_BYTES = 200_000_000
MAX_LINE_BYTES = 10_000  # more than any system allows for a path, and a class


def open_dataset(source: Any = None) -> ImageDataset:
    """Opens the dataset that `source` names.

    - None: parts of the sample pictures.
    - A folder: all images below it. Its folders are classes if every image lies in one.
    - A pattern such as `photos/*.jpg`.
    - A `.txt` list: one path a line, and a class after a tab.
    - `.tar` archives, `.parquet` files, a `.lance` table.
    - A list of paths, or an object with `len()` whose items are images.

    Raises SightlineError if there are no images.
    """
    if source is None:
        from sightline.data.datasets.samples import SampleParts

        return SampleParts()
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
    if has_store_description(path):
        raise SightlineError(f"{source} is the store of a scan, not a dataset; give it as --store")
    if os.path.isdir(path) and not is_lance_table(path):
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
            if not os.path.isdir(match) or is_lance_table(match)
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
    unlisted_folders = [path for path in paths if path.endswith(os.sep)]
    file_count = len(paths) - len(unlisted_folders)
    archives = [path for path in paths if path.endswith(ARCHIVE_SUFFIXES)]
    if archives and len(archives) == file_count:
        if unlisted_folders:
            raise SightlineError(f"{unlisted_folders[0]} can't be listed, beside archives")
        return open_archives(archives)
    return Files(source, paths, infer_folder_classes(root, paths))


def open_archives(paths: Sequence[str]) -> ImageDataset:
    """The dataset in archives or tables. Raises SightlineError if they are of different kinds."""
    suffixes = {Path(path).suffix for path in paths}
    if len(suffixes) > 1:
        folder = os.path.dirname(paths[0])
        kinds = " and ".join(sorted(suffixes))
        raise SightlineError(f"{folder} mixes {kinds} files; give one kind")
    for path in paths:
        if not os.path.isdir(path) and not os.path.isfile(path):
            raise SightlineError(f"{path} is a pipe, socket or device, not an archive")
    if suffixes == {".tar"}:
        from sightline.data.datasets.tar import Tar

        return Tar(paths)
    from sightline.data.datasets.tables import TABLE_KINDS, Rows

    suffix = suffixes.pop()
    return Rows(paths, suffix, TABLE_KINDS[suffix])


def open_file_list(path: str) -> Files:
    """The files that a text list names; relative paths start from the list's folder."""
    folder = os.path.dirname(path)
    files: list[str] = []
    classes: list[str | None] = []
    for line in read_list_lines(path):
        if not line.strip():
            continue
        name, tab, class_name = line.partition("\t")
        files.append(os.path.abspath(os.path.join(folder, name.strip())))
        classes.append(class_name.strip() if tab else None)
    return Files(path, files, classes)


def read_list_lines(path: str) -> list[str]:
    """The lines of a text list, of UTF-8 but for the names of files that are not.

    Raises SightlineError for what is no list, before it is read.
    """
    refusal = f"{path} is no folder, text list, .tar, .parquet or .lance"
    try:
        check_regular_file(path)
        with open(path, "rb") as file:
            first_bytes = file.read(SIGNATURE_LENGTH)
            byte_count = file.seek(0, os.SEEK_END)
            file.seek(0)
            if b"\0" in first_bytes or is_picture(first_bytes) or byte_count > MAX_LIST_BYTES:
                raise SightlineError(refusal)
            content = file.read().removeprefix(codecs.BOM_UTF8)
    except (OSError, ValueError) as error:  # ValueError: SightlineError
        raise SightlineError(refusal) from error
    if b"\0" in content:
        raise SightlineError(refusal)

    # Not at the rarer line ends that `str.splitlines` knows: they may be part of a name.
    lines = content.replace(b"\r\n", b"\n").split(b"\n")
    for number, line in enumerate(lines, 1):
        if len(line) > MAX_LINE_BYTES:
            raise SightlineError(
                f"line {number} of {path} has {len(line):,} bytes; "
                f"a path and a class have at most {MAX_LINE_BYTES:,}"
            )
    return [line.decode(errors="surrogateescape") for line in lines]


def is_picture(first_bytes: bytes) -> bool:
    """Whether a file begins as a picture does."""
    try:
        detect_format(first_bytes)
    except SightlineError:
        return False
    return True


def require_images(dataset: ImageDataset, name: str) -> ImageDataset:
    """The dataset itself. Raises SightlineError if it is empty."""
    if not len(dataset):
        raise SightlineError(f"there are no images in {name}")
    return dataset


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
            source = read_image_file(find_stored_file(path))
        else:
            source = _open_cached_dataset(descriptor["source"]).read_image(position)
        return source, hash_source(source)
    except (OSError, IndexError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SightlineError(f"{path} can't be read any more ({reason})") from error


@lru_cache(maxsize=4)
def _open_cached_dataset(source: str) -> ImageDataset:
    # The source of the sample tiles is the empty string.
    return open_dataset(source or None)
