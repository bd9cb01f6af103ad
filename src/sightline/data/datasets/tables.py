"""Images in the rows of Parquet files and Lance tables."""

import os
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sightline.data.datasets.files import hash_file_stamps, name_archives, number_classes
from sightline.data.datasets.names import make_storable_name
from sightline.data.lance import iterate_row_slice, open_lance_table
from sightline.data.table_errors import convert_table_errors
from sightline.errors import SightlineError
from sightline.images.decode.center_crop import ImageSource
from sightline.images.decode.source import MAX_PACKED_BYTES, check_file_size
from sightline.process.locks import ForkSafeLock

LANCE_BLOCK_ROWS = 512  # rows of a Lance table that are read at once
LANCE_BATCH_ROWS = 16  # rows of them in memory before their size is looked at

CACHED_BLOCKS = 2  # blocks of rows that stay in memory

MAX_CLASS_LENGTH = 1_000  # characters

MAX_TABLE_ROWS = 50_000_000

# A larger block is refused if it takes little room in its file. Pictures are compressed already.
MAX_BLOCK_BYTES = 2_000_000_000
MAX_COMPRESSION = 20


class TableFile(Protocol):
    """A table in blocks of rows. It can be sent to another process."""

    @property
    def schema(self) -> Any:
        """Its Arrow schema."""
        ...

    @property
    def row_counts(self) -> Sequence[int]:
        """Rows of each block."""
        ...

    def read_block(self, number: int, column: str) -> Any:
        """A column of a block, as a chunked Arrow array. Raises SightlineError if it is damaged."""
        ...


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
        self.lock = ForkSafeLock()
        self.blocks: list[RowBlock] = []
        self.block_ends: list[int] = []  # positions, exclusive
        self._cached_columns: dict[int, Any] = {}  # of the last blocks
        classes: list[str | None] = []
        for file in files:
            table = open_table(file)
            require_few_rows(table, file)
            image_column = find_image_column(table.schema, file)
            first_row = 0
            for number, row_count in enumerate(table.row_counts):
                classes += read_classes(table, number)
                self.blocks.append(RowBlock(file, table, number, image_column, first_row))
                self.block_ends.append(len(classes))
                first_row += row_count

        padded_names, self.labels = number_classes(classes)
        self.class_names = tuple(strip_zeros(name) for name in padded_names)

    def __getstate__(self) -> dict[str, Any]:
        # The rows in memory stay behind.
        return {**vars(self), "_cached_columns": {}}

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: int) -> ImageSource:
        return self.read_image(position)

    def get_path(self, position: int) -> str:
        index, row = self._find_row(position)
        block = self.blocks[index]
        return make_storable_name(f"{block.file}[{block.first_row + row}]")

    def get_label(self, position: int) -> int:
        return self.labels[position]

    def read_image(self, position: int) -> bytes:
        index, row = self._find_row(position)
        with self.lock:
            column = self._read_column(index)
        with convert_table_errors("this row can't be read"):
            value = column[row].as_py()
        if isinstance(value, dict):
            value = value.get("bytes")
        if not isinstance(value, bytes):
            raise SightlineError("this row has no image bytes")
        check_file_size(len(value), MAX_PACKED_BYTES)
        return value

    def _find_row(self, position: int) -> tuple[int, int]:
        """The index of the block that holds a position, and the row within the block."""
        if not 0 <= position < len(self):
            raise IndexError(f"there is no row {position}")
        index = bisect_right(self.block_ends, position)
        start = self.block_ends[index - 1] if index else 0
        return index, position - start

    def _read_column(self, index: int) -> Any:
        """The images of a block, from memory if it was among the last that were read."""
        if index in self._cached_columns:
            column = self._cached_columns.pop(index)
        else:
            block = self.blocks[index]
            column = block.table.read_block(block.number, block.image_column)
        self._cached_columns[index] = column
        if len(self._cached_columns) > CACHED_BLOCKS:
            oldest_index = next(iter(self._cached_columns))
            del self._cached_columns[oldest_index]
        return column


def require_few_rows(table: TableFile, file: str) -> None:
    """Raises SightlineError for a table that claims more rows than anybody has images."""
    row_count = sum(table.row_counts)
    if row_count > MAX_TABLE_ROWS:
        raise SightlineError(
            f"{file} has {row_count:,} rows; at most {MAX_TABLE_ROWS:,} can be read from a file"
        )


def find_image_column(schema: Any, file: str) -> str:
    """The column `image` if it holds bytes, else the first that does.

    Raises SightlineError if no column holds bytes, or several have this name.
    """
    import pyarrow as pa

    candidates: list[str] = []
    for field in schema:
        is_struct = pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0
        if is_struct or is_bytes_type(field.type):
            candidates.append(field.name)
    if not candidates:
        columns = ", ".join(schema.names)
        raise SightlineError(f"{file} has no column of image bytes; its columns are {columns:.200}")
    name = "image" if "image" in candidates else candidates[0]
    count = schema.names.count(name)
    if count > 1:
        raise SightlineError(f"{file} has {count} columns named {name!r:.80}; it must have one")
    return name


def is_bytes_type(arrow_type: Any) -> bool:
    """Whether an Arrow type is one of bytes, each value in its place or in a dictionary."""
    import pyarrow as pa

    if pa.types.is_dictionary(arrow_type):
        arrow_type = arrow_type.value_type
    return (
        pa.types.is_binary(arrow_type)
        or pa.types.is_large_binary(arrow_type)
        or pa.types.is_binary_view(arrow_type)
    )


def read_classes(table: TableFile, number: int) -> list[str | None]:
    """The class of each row of a block, from a column `label` or `class`; None if not known.

    Integers are padded with zeros, so that their order as text is that of the numbers. Columns of
    other types are no classes.
    """
    column = find_class_column(table.schema)
    if column is None:
        return [None] * table.row_counts[number]
    classes: list[str | None] = []
    for label in list_labels(table.read_block(number, column)):
        if label is None:
            classes.append(None)
        elif isinstance(label, int):
            classes.append(f"{label:05}")
        else:
            classes.append(str(label)[:MAX_CLASS_LENGTH])
    if len(classes) != table.row_counts[number]:
        raise SightlineError(
            f"{len(classes)} rows of {column!r} in a block of {table.row_counts[number]}"
        )
    return classes


def list_labels(column: Any) -> list[Any]:
    """The values of a chunked column; rows of the same value in a dictionary share it."""
    import pyarrow as pa

    labels: list[Any] = []
    for chunk in column.chunks:
        if not pa.types.is_dictionary(chunk.type):
            labels += chunk.to_pylist()
            continue
        values = chunk.dictionary.to_pylist()
        indices = chunk.indices.to_pylist()
        labels += [None if index is None else values[index] for index in indices]
    return labels


def find_class_column(schema: Any) -> str | None:
    """The column `label`, else `class`, if it is there once and holds integers or texts."""
    import pyarrow as pa

    for name in ("label", "class"):
        if schema.names.count(name) != 1:
            continue
        arrow_type = schema.field(name).type
        if pa.types.is_dictionary(arrow_type):
            arrow_type = arrow_type.value_type
        is_text = pa.types.is_string(arrow_type) or pa.types.is_large_string(arrow_type)
        if is_text or pa.types.is_integer(arrow_type) or pa.types.is_boolean(arrow_type):
            return name
    return None


def strip_zeros(class_name: str) -> str:
    """A class number without the zeros that `read_classes` put before it."""
    if not class_name.isdecimal():
        return class_name
    return class_name.lstrip("0") or "0"


# ── Parquet ──


@dataclass(frozen=True)
class ParquetTable:
    """A Parquet file in blocks of its row groups."""

    file: str
    schema: Any
    metadata: Any

    @property
    def row_counts(self) -> list[int]:
        """Rows of each row group."""
        return [
            self.metadata.row_group(number).num_rows
            for number in range(self.metadata.num_row_groups)
        ]

    def read_block(self, number: int, column: str) -> Any:
        """A column of a row group.

        Raises SightlineError if it is damaged, or unpacks to too much.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._check_unpacked_size(number, column)
        # As a dictionary, in which a value that a small file holds often is in memory once.
        is_struct = pa.types.is_struct(self.schema.field(column).type)
        value_column = f"{column}.bytes" if is_struct else column
        # Opened for each row group: a process may have fewer file handles than there are shards.
        with (
            convert_table_errors(f"{self.file} can't be read as Parquet"),
            open(self.file, "rb") as file,
            pq.ParquetFile(file, metadata=self.metadata, read_dictionary=[value_column]) as opened,
        ):
            return opened.read_row_group(number, [column])[column]

    def _check_unpacked_size(self, number: int, column: str) -> None:
        """Raises SightlineError for a row group that a small file unpacks to gigabytes."""
        group = self.metadata.row_group(number)
        compressed = 1
        unpacked = 0
        for index in range(group.num_columns):
            chunk = group.column(index)
            if chunk.path_in_schema.split(".")[0] == column:
                compressed += max(0, chunk.total_compressed_size)
                unpacked += max(0, chunk.total_uncompressed_size)
        if unpacked > MAX_BLOCK_BYTES and unpacked > MAX_COMPRESSION * compressed:
            raise SightlineError(
                f"its row group unpacks from {compressed / 1e6:,.1f} MB to {unpacked / 1e6:,.0f} MB"
            )


def open_parquet_table(file: str) -> ParquetTable:
    """A Parquet file in blocks of its row groups. Raises SightlineError if it can't be read."""
    import pyarrow.parquet as pq

    with (
        convert_table_errors(f"{file} can't be read as Parquet"),
        open(file, "rb") as opened_file,  # not by its name, which may not be UTF-8
        pq.ParquetFile(opened_file) as opened,
    ):
        return ParquetTable(file, opened.schema_arrow, opened.metadata)


# ── Lance ──


@dataclass(frozen=True)
class LanceTable:
    """A Lance table in blocks of 512 rows."""

    file: str
    schema: Any
    row_counts: list[int]

    def read_block(self, number: int, column: str) -> Any:
        """A column of a block. Raises SightlineError if it is damaged or unpacks to too much."""
        import pyarrow as pa

        start = number * LANCE_BLOCK_ROWS
        chunks: list[Any] = []
        byte_count = 0
        with convert_table_errors(f"{self.file} can't be read as a Lance table"):
            table = open_lance_file(self.file)
            for batch in iterate_row_slice(
                table, [column], start, LANCE_BLOCK_ROWS, LANCE_BATCH_ROWS
            ):
                chunks.append(batch[column])
                byte_count += batch.nbytes
                if byte_count > MAX_BLOCK_BYTES:
                    raise SightlineError(f"its rows unpack to more than {byte_count / 1e6:,.0f} MB")
            return pa.chunked_array(chunks, self.schema.field(column).type)


def describe_lance_table(file: str) -> LanceTable:
    """A Lance table in blocks of 512 rows. Raises SightlineError if it can't be read."""
    with convert_table_errors(f"{file} can't be read as a Lance table"):
        table = open_lance_file(file)
        total = table.count_rows()
        schema = table.schema
    starts = range(0, total, LANCE_BLOCK_ROWS)
    return LanceTable(file, schema, [min(LANCE_BLOCK_ROWS, total - start) for start in starts])


def open_lance_file(file: str) -> Any:
    """The opened table. Raises what LanceDB raises."""
    return open_lance_table(os.path.dirname(file), Path(file).stem)


TABLE_KINDS: dict[str, Callable[[str], TableFile]] = {
    ".parquet": open_parquet_table,
    ".lance": describe_lance_table,
}
