"""Images packed into few files: tar shards, Parquet files, Lance tables."""

import hashlib
import os
import tarfile
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from sightline.data.datasets.files import COMPANION_SUFFIXES, Files, ImageDataset, read_file_stamp
from sightline.errors import SightlineError, get_first_error_line


def hash_file_stamps(files: Sequence[str]) -> str:
    """Changes when one of the files does."""
    return hashlib.sha256(
        "\n".join(f"{file} {read_file_stamp(file)}" for file in files).encode()
    ).hexdigest()


class Tar:
    """Members of uncompressed tar files, read at their offsets. A class is a member's first folder, or the text of `NAME.cls` beside it."""

    def __init__(self, files: Sequence[str]) -> None:
        self.files, self.digest = files, hash_file_stamps(files)
        self.source = (
            files[0] if len(files) == 1 else os.path.join(os.path.dirname(files[0]), "*.tar")
        )
        self.members: list[tuple[int, str, int, int]] = []
        classes: list[str | None] = []
        for number, file in enumerate(files):
            self._read_members(number, file, classes)
        named = Files("", [], classes)
        self.class_names, self.labels = named.class_names, named.labels

    def _read_members(self, file_number: int, file: str, classes: list[str | None]) -> None:
        try:
            with tarfile.open(file, "r:") as archive:
                members = [
                    member
                    for member in archive
                    if member.isreg() and not os.path.basename(member.name).startswith(".")
                ]
                beside = {
                    Path(member.name).with_suffix(""): archive.extractfile(member)
                    for member in members
                    if member.name.endswith(".cls")
                }
                told = {
                    stem: content.read().decode().strip()
                    for stem, content in beside.items()
                    if content
                }
        except (OSError, tarfile.TarError, UnicodeDecodeError) as error:
            raise SightlineError(
                f"{file} can't be read as an uncompressed tar archive ({get_first_error_line(error)})"
            ) from error
        for member in members:
            path = Path(member.name)
            if path.suffix.lower() not in {*COMPANION_SUFFIXES, ".cls"}:
                self.members.append((file_number, member.name, member.offset_data, member.size))
                parts = [part for part in path.parts[:-1] if part != "."]
                classes.append(told.get(path.with_suffix("")) or (parts[0] if parts else None))

    def __len__(self) -> int:
        return len(self.members)

    def get_path(self, position: int) -> str:
        number, name, _, _ = self.members[position]
        return f"{self.files[number]}/{name}"

    def get_label(self, position: int) -> int:
        return self.labels[position]

    def read_image(self, position: int) -> bytes:
        number, _, offset, size = self.members[position]
        with open(self.files[number], "rb") as file:
            file.seek(offset)
            return file.read(size)


class Rows:
    """Rows of tables with an image column (bytes, or a struct with bytes) and perhaps a `label` or `class` column."""

    def __init__(
        self,
        files: Sequence[str],
        open_blocks: Callable[[str], tuple[list[int], Callable[[int, list[str]], Any], Any]],
        suffix: str,
    ) -> None:
        self.files, self.digest = files, hash_file_stamps(files)
        self.source = (
            files[0] if len(files) == 1 else os.path.join(os.path.dirname(files[0]), f"*{suffix}")
        )
        self.lock, self.blocks, classes = threading.Lock(), [], []
        for file in files:
            counts, fetch, schema = open_blocks(file)
            column = find_image_column(schema, file)
            named = next((name for name in ("label", "class") if name in schema.names), None)
            for number, count in enumerate(counts):
                self.blocks.append((file, number, fetch, column, count))
                labels = fetch(number, [named])[named].to_pylist() if named else [None] * count
                classes += [
                    None
                    if label is None
                    else f"{label:05}"
                    if isinstance(label, int)
                    else str(label)
                    for label in labels
                ]
        self.ends = list(accumulate(block[4] for block in self.blocks))
        named_classes = Files("", [], classes)
        self.class_names = tuple(
            name.lstrip("0") or "0" if name.isdecimal() else name
            for name in named_classes.class_names
        )
        self.labels = named_classes.labels
        self._read_cached_block = lru_cache(maxsize=2)(self._read_block)

    def _read_block(self, number: int) -> Any:
        _, inner, fetch, column, _ = self.blocks[number]
        return fetch(inner, [column])[column]

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def _find_block(self, position: int) -> tuple[int, int]:
        number = next(index for index, end in enumerate(self.ends) if position < end)
        return number, position - (self.ends[number - 1] if number else 0)

    def get_path(self, position: int) -> str:
        number, row = self._find_block(position)
        return f"{self.blocks[number][0]}[{row + sum(block[4] for block in self.blocks[:number] if block[0] == self.blocks[number][0])}]"

    def get_label(self, position: int) -> int:
        return self.labels[position]

    def read_image(self, position: int) -> bytes:
        number, row = self._find_block(position)
        with self.lock:
            value = self._read_cached_block(number)[row].as_py()
        found = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(found, bytes):
            raise SightlineError("this row has no image bytes")
        return found


def find_image_column(schema: Any, file: str) -> str:
    """The column that holds pictures: `image`, else the first of bytes; raises SightlineError if there is none."""
    import pyarrow as pa

    kinds = {field.name: field.type for field in schema}
    bytes_like = [
        name
        for name, kind in kinds.items()
        if pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)
    ]
    if not bytes_like:
        raise SightlineError(
            f"{file} has no column of image bytes; its columns are {', '.join(kinds)}"
        )
    return "image" if "image" in bytes_like else bytes_like[0]


def open_parquet_blocks(file: str) -> tuple[list[int], Callable[[int, list[str]], Any], Any]:
    """Rows of each group, how to fetch a group's columns, schema."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        opened = pq.ParquetFile(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise SightlineError(
            f"{file} can't be read as Parquet ({get_first_error_line(error)})"
        ) from error
    counts = [opened.metadata.row_group(number).num_rows for number in range(opened.num_row_groups)]
    return (
        counts,
        lambda number, columns: opened.read_row_group(number, columns).combine_chunks(),
        opened.schema_arrow,
    )


def open_lance_blocks(
    file: str, block_rows: int = 512
) -> tuple[list[int], Callable[[int, list[str]], Any], Any]:
    """The same for a Lance table, in blocks of rows."""
    import lancedb

    try:
        table: Any = lancedb.connect(os.path.dirname(file)).open_table(Path(file).stem)
        total = table.count_rows()
    except (OSError, ValueError, RuntimeError) as error:
        raise SightlineError(
            f"{file} can't be read as a Lance table ({get_first_error_line(error)})"
        ) from error

    def fetch(number: int, columns: list[str]) -> Any:
        return (
            table.search()
            .select(columns)
            .offset(number * block_rows)
            .limit(block_rows)
            .to_arrow()
            .combine_chunks()
        )

    return (
        [min(block_rows, total - start) for start in range(0, total, block_rows)],
        fetch,
        table.schema,
    )


ARCHIVE_OPENERS: dict[str, Callable[[Sequence[str]], ImageDataset]] = {
    ".tar": Tar,
    ".parquet": lambda files: Rows(files, open_parquet_blocks, ".parquet"),
    ".lance": lambda files: Rows(files, open_lance_blocks, ".lance"),
}
