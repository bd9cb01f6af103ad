"""Images packed into few files: tar archives, Parquet files and Lance tables."""

import hashlib
import os
import tarfile
import threading
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from sightline.data.datasets.files import (
    COMPANION_SUFFIXES,
    ImageDataset,
    number_classes,
    read_file_stamp,
)
from sightline.errors import SightlineError, get_first_error_line
from sightline.images.decode.source import read_packed_picture

LANCE_BLOCK_ROWS = 512  # rows of a Lance table that are read at once

NOT_IMAGE_SUFFIXES = COMPANION_SUFFIXES | {".cls"}  # members of a tar archive beside the images

CACHED_BLOCKS = 2  # blocks of rows that stay in memory


def hash_file_stamps(files: Sequence[str]) -> str:
    """Digest of the sizes and modification times of files."""
    lines = [f"{file} {read_file_stamp(file)}" for file in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def name_archives(files: Sequence[str], suffix: str) -> str:
    """The text that opens these files again: the only one, or a pattern for all in their folder."""
    if len(files) == 1:
        return files[0]
    return os.path.join(os.path.dirname(files[0]), f"*{suffix}")


# ── tar archives ──


class TarMember(NamedTuple):
    """An image in an archive: the archive, its name there, and where its bytes are."""

    file: str
    name: str
    offset: int
    size: int


class Tar:
    """Images in uncompressed tar archives, read at their offsets.

    The class of an image is the text of `NAME.cls` beside it, or its first folder in the archive.
    """

    def __init__(self, files: Sequence[str]) -> None:
        self.source = name_archives(files, ".tar")
        self.digest = hash_file_stamps(files)
        self.members: list[TarMember] = []
        classes: list[str | None] = []
        for file in files:
            for member, class_name in list_tar_images(file):
                self.members.append(member)
                classes.append(class_name)
        self.class_names, self.labels = number_classes(classes)

    def __len__(self) -> int:
        return len(self.members)

    def get_path(self, position: int) -> str:
        member = self.members[position]
        return f"{member.file}/{member.name}"

    def get_label(self, position: int) -> int:
        return self.labels[position]

    def read_image(self, position: int) -> bytes:
        member = self.members[position]
        with open(member.file, "rb") as file:
            file.seek(member.offset)
            return read_packed_picture(file, member.size)


def list_tar_images(file: str) -> list[tuple[TarMember, str | None]]:
    """The images of a tar archive with their classes. Raises SightlineError if it can't be read."""
    infos, cls_texts = read_tar_index(file)
    images: list[tuple[TarMember, str | None]] = []
    for info in infos:
        path = Path(info.name)
        if path.suffix.lower() in NOT_IMAGE_SUFFIXES:
            continue
        class_name = cls_texts.get(path.with_suffix(""))
        if not class_name:
            folders = [folder for folder in path.parts[:-1] if folder != "."]
            class_name = folders[0] if folders else None
        member = TarMember(file, info.name, info.offset_data, info.size)
        images.append((member, class_name))
    return images


def read_tar_index(file: str) -> tuple[list[tarfile.TarInfo], dict[Path, str]]:
    """The files in a tar archive except hidden ones, and the text of `.cls` files by their stem."""
    infos: list[tarfile.TarInfo] = []
    cls_texts: dict[Path, str] = {}
    try:
        with tarfile.open(file, "r:") as archive:
            for info in archive:
                if info.isreg() and not os.path.basename(info.name).startswith("."):
                    infos.append(info)
            for info in infos:
                content = archive.extractfile(info) if info.name.endswith(".cls") else None
                if content is not None:
                    cls_texts[Path(info.name).with_suffix("")] = content.read().decode().strip()
    except (OSError, tarfile.TarError, UnicodeDecodeError) as error:
        reason = get_first_error_line(error)
        raise SightlineError(
            f"{file} can't be read as an uncompressed tar archive ({reason})"
        ) from error
    return infos, cls_texts


# ── tables ──


@dataclass(frozen=True)
class TableFile:
    """A table in blocks of rows; `read_block(number, columns)` returns one as an Arrow table."""

    schema: Any
    row_counts: Sequence[int]
    read_block: Callable[[int, list[str]], Any]


@dataclass(frozen=True)
class RowBlock:
    """A block of rows of a file, whose first is number `first_row` of the file."""

    file: str
    table: TableFile
    number: int
    image_column: str
    first_row: int


class Rows:
    """Rows of tables with a column of images and perhaps a `label` or `class` column.

    An image is the bytes of a file, or a struct with a field `bytes`. Files are read one block of
    rows at a time, and by one thread.
    """

    def __init__(
        self, files: Sequence[str], suffix: str, open_table: Callable[[str], TableFile]
    ) -> None:
        self.source = name_archives(files, suffix)
        self.digest = hash_file_stamps(files)
        self.lock = threading.Lock()
        self.blocks: list[RowBlock] = []
        self.block_ends: list[int] = []  # positions, exclusive
        classes: list[str | None] = []
        for file in files:
            table = open_table(file)
            image_column = find_image_column(table.schema, file)
            first_row = 0
            for number, row_count in enumerate(table.row_counts):
                classes += read_classes(table, number)
                self.blocks.append(RowBlock(file, table, number, image_column, first_row))
                self.block_ends.append(len(classes))
                first_row += row_count

        padded_names, self.labels = number_classes(classes)
        self.class_names = tuple(strip_zeros(name) for name in padded_names)
        self._read_cached_block = lru_cache(CACHED_BLOCKS)(self._read_block)

    def __len__(self) -> int:
        return len(self.labels)

    def get_path(self, position: int) -> str:
        index, row = self._find_row(position)
        block = self.blocks[index]
        return f"{block.file}[{block.first_row + row}]"

    def get_label(self, position: int) -> int:
        return self.labels[position]

    def read_image(self, position: int) -> bytes:
        index, row = self._find_row(position)
        with self.lock:
            value = self._read_cached_block(index)[row].as_py()
        if isinstance(value, dict):
            value = value.get("bytes")
        if not isinstance(value, bytes):
            raise SightlineError("this row has no image bytes")
        return value

    def _find_row(self, position: int) -> tuple[int, int]:
        """The index of the block that holds a position, and the row within the block."""
        if not 0 <= position < len(self):
            raise IndexError(f"there is no row {position}")
        index = bisect_right(self.block_ends, position)
        start = self.block_ends[index - 1] if index else 0
        return index, position - start

    def _read_block(self, index: int) -> Any:
        block = self.blocks[index]
        return block.table.read_block(block.number, [block.image_column])[block.image_column]


def find_image_column(schema: Any, file: str) -> str:
    """The column `image` if it holds bytes, else the first that does.

    Raises SightlineError if no column holds bytes.
    """
    import pyarrow as pa

    candidates: list[str] = []
    for field in schema:
        is_bytes = pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type)
        is_struct = pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0
        if is_bytes or is_struct:
            candidates.append(field.name)
    if not candidates:
        columns = ", ".join(schema.names)
        raise SightlineError(f"{file} has no column of image bytes; its columns are {columns}")
    return "image" if "image" in candidates else candidates[0]


def read_classes(table: TableFile, number: int) -> list[str | None]:
    """The class of each row of a block, from a column `label` or `class`; None if not known.

    Integers are padded with zeros, so that their order as text is that of the numbers.
    """
    columns = [name for name in ("label", "class") if name in table.schema.names]
    if not columns:
        return [None] * table.row_counts[number]
    column = columns[0]
    classes: list[str | None] = []
    for label in table.read_block(number, [column])[column].to_pylist():
        if label is None:
            classes.append(None)
        elif isinstance(label, int):
            classes.append(f"{label:05}")
        else:
            classes.append(str(label))
    return classes


def strip_zeros(class_name: str) -> str:
    """A class number without the zeros that `read_classes` put before it."""
    if not class_name.isdecimal():
        return class_name
    return class_name.lstrip("0") or "0"


def open_parquet_table(file: str) -> TableFile:
    """A Parquet file in blocks of its row groups. Raises SightlineError if it can't be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as opened:
            metadata = opened.metadata
            schema = opened.schema_arrow
    except (OSError, pa.ArrowInvalid) as error:
        reason = get_first_error_line(error)
        raise SightlineError(f"{file} can't be read as Parquet ({reason})") from error

    def read_row_group(number: int, columns: list[str]) -> Any:
        # Opened for each row group: a process may have fewer file handles than there are shards.
        with pq.ParquetFile(file, metadata=metadata) as opened:
            return opened.read_row_group(number, columns).combine_chunks()

    row_counts = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    return TableFile(schema, row_counts, read_row_group)


def open_lance_table(file: str) -> TableFile:
    """A Lance table in blocks of 512 rows. Raises SightlineError if it can't be read."""
    import lancedb

    try:
        table: Any = lancedb.connect(os.path.dirname(file)).open_table(Path(file).stem)
        total = table.count_rows()
    except (OSError, ValueError, RuntimeError) as error:
        reason = get_first_error_line(error)
        raise SightlineError(f"{file} can't be read as a Lance table ({reason})") from error

    def read_rows(number: int, columns: list[str]) -> Any:
        start = number * LANCE_BLOCK_ROWS
        query = table.search().select(columns).offset(start).limit(LANCE_BLOCK_ROWS)
        return query.to_arrow().combine_chunks()

    starts = range(0, total, LANCE_BLOCK_ROWS)
    row_counts = [min(LANCE_BLOCK_ROWS, total - start) for start in starts]
    return TableFile(table.schema, row_counts, read_rows)


ARCHIVE_OPENERS: dict[str, Callable[[Sequence[str]], ImageDataset]] = {
    ".tar": Tar,
    ".parquet": lambda files: Rows(files, ".parquet", open_parquet_table),
    ".lance": lambda files: Rows(files, ".lance", open_lance_table),
}
