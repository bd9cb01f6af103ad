"""Opens the dataset that a path, pattern, list or object names."""

import codecs
import glob
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

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
# A text list of two million paths. Shorter ones take more memory than their bytes.
MAX_LIST_BYTES = 200_000_000
MAX_LIST_LINES = 10_000_000
MAX_LINE_BYTES = 10_000  # more than any system allows for a path, and a class

# How the path of an image in a table ends.
TABLE_ROW = re.compile(r"(?P<file>.+\.(parquet|lance))\[(?P<row>\d{1,12})\]", re.DOTALL)


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
    if not source or "\0" in source:
        raise SightlineError(f"there is no folder, list or archive {source!r}; give its path")
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
        paths = list_matching_files(path)
        if not paths:
            raise SightlineError(f"no file matches {source}")
        common_folder = os.path.commonpath([os.path.dirname(match) for match in paths])
        return require_images(open_files(path, common_folder, paths), source)
    raise SightlineError(
        f"there is no folder, list or archive {source}; a pattern such as 'photos/*.jpg' works too"
    )


def list_matching_files(pattern: str) -> list[str]:
    """The files and tables that a pattern matches, sorted."""
    matches = glob.iglob(escape_folders_that_exist(pattern), recursive=True)
    return sorted(match for match in matches if not os.path.isdir(match) or is_lance_table(match))


def escape_folders_that_exist(pattern: str) -> str:
    """A pattern in which a folder that exists is meant by its name: `a[1]` in `a[1]/*.jpg`."""
    folder = os.path.dirname(pattern)
    while not os.path.isdir(folder):
        parent = os.path.dirname(folder)
        if parent == folder:  # a drive that is not there
            return pattern
        folder = parent
    return glob.escape(folder) + pattern[len(folder) :]


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


def read_list_lines(path: str) -> Iterator[str]:
    """The lines of a text list, of UTF-8 but for the names of files that are not, or of UTF-16.

    Raises SightlineError for what is no list, before it is read.
    """
    refusal = f"{path} is no folder, text list, .tar, .parquet or .lance"
    try:
        check_regular_file(path)
        with open(path, "rb") as file:
            first_bytes = file.read(SIGNATURE_LENGTH)
            byte_count = file.seek(0, os.SEEK_END)
            file.seek(0)
            is_wide = first_bytes.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
            if begins_as_picture(first_bytes) or byte_count > MAX_LIST_BYTES:
                raise SightlineError(refusal)
            if b"\0" in first_bytes and not is_wide:
                raise SightlineError(refusal)
            content = file.read()
        if is_wide:  # as some programs of Windows write text
            content = content.decode("utf-16").encode(errors="surrogatepass")
        content = content.removeprefix(codecs.BOM_UTF8)
    except (OSError, ValueError) as error:  # ValueError: SightlineError
        raise SightlineError(refusal) from error
    if b"\0" in content:
        raise SightlineError(refusal)
    line_count = content.count(b"\n")
    if line_count > MAX_LIST_LINES:
        raise SightlineError(
            f"{path} has {line_count:,} lines; at most {MAX_LIST_LINES:,} are read"
        )
    return split_list_lines(path, io.BytesIO(content))


def split_list_lines(path: str, content: IO[bytes]) -> Iterator[str]:
    """The lines one by one. Raises SightlineError for one that is too long."""
    # Not at the rarer line ends that `str.splitlines` knows: they may be part of a name.
    for number, ended_line in enumerate(content, 1):
        line = ended_line.removesuffix(b"\n").removesuffix(b"\r")
        if len(line) > MAX_LINE_BYTES:
            raise SightlineError(
                f"line {number} of {path} has {len(line):,} bytes; "
                f"a path and a class have at most {MAX_LINE_BYTES:,}"
            )
        yield line.decode(errors="surrogateescape")


def begins_as_picture(first_bytes: bytes) -> bool:
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
    descriptor: Mapping[str, Any], position: int, path: str, digest: str = ""
) -> tuple[ImageSource, str]:
    """Reads an image of a scanned dataset again, by its path; returns it and its digest.

    `descriptor` is what the store says of the dataset: its `kind` (name of the dataset's type) and
    its `source`. Of an archive only the one that holds the image is opened. `digest` chooses among
    images of one name in it. Raises SightlineError if the image can't be read any more.
    """
    if descriptor["source"] is None:
        raise SightlineError(
            f"{path} came from a dataset object in code; the store has its thumbnail only"
        )
    try:
        if descriptor["kind"] == "Files":
            source = read_image_file(find_stored_file(path))
        elif descriptor["kind"] in ("Tar", "Rows"):
            source = _read_archived_image(path, digest)
        else:
            source = _open_cached_archive(None).read_image(position)
        return source, hash_source(source)
    except (OSError, IndexError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SightlineError(f"{path} can't be read any more ({reason})") from error


def _read_archived_image(path: str, digest: str) -> ImageSource:
    """The image at `ARCHIVE.tar/NAME` or `TABLE[ROW]`; of several, the one with this digest."""
    table_row = TABLE_ROW.fullmatch(path)
    if table_row:
        table = find_stored_file(table_row["file"])
        return _open_cached_archive(table).read_image(int(table_row["row"]))
    archive, name = split_member_path(path)
    dataset = _open_cached_archive(archive)
    ending = f"/{name}"
    image: ImageSource | None = None
    for position in range(len(dataset)):
        stored_path = dataset.get_path(position)
        if stored_path.endswith(ending) and stored_path[: -len(ending)].endswith(".tar"):
            image = dataset.read_image(position)
            if hash_source(image) == digest:
                return image
    if image is None:
        raise SightlineError("the archive has no such member")
    return image


def split_member_path(path: str) -> tuple[str, str]:
    """The archive and the member of `ARCHIVE.tar/NAME`. Raises SightlineError for another path."""
    for match in re.finditer(r"\.tar/", path):
        archive = find_stored_file(path[: match.end() - 1])
        if os.path.isfile(archive):
            return archive, path[match.end() :]
    raise SightlineError("no such file")


@lru_cache(maxsize=4)
def _open_cached_archive(file: str | None) -> ImageDataset:
    """An archive or table; without a file the parts of the sample pictures."""
    return open_dataset(None) if file is None else open_archives([file])
