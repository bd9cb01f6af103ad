"""A store, written: one writer at a time, in commits; what is committed stays whole whatever happens afterwards."""

import json
import shutil
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch import Tensor

from sightline.data.store.reader import open_state_file
from sightline.data.store.schema import (
    ERRORS_TABLE,
    FACTS_FILE,
    IMAGES_TABLE,
    LOCK_FILE,
    STATE_FILE,
    explain_disk_error,
    is_store_or_empty,
    make_errors_schema,
    make_images_schema,
    make_zero_counters,
    read_store_facts,
    require_same_facts,
)
from sightline.errors import SightlineError
from sightline.images.files import check_writable, replace_atomically

RowDicts = list[dict[str, Any]]

ScanCounters = dict[str, int]

METADATA_CACHE_BYTES = 1_000_000  # bytes that LanceDB may keep of a table's metadata; by default gigabytes, which fill as pieces are added

MIN_LARGE_FRAGMENT_ROWS = 4096  # rows of a piece from which on merging it gains nothing

MERGE_BATCH_ROWS = 500  # rows in memory while pieces are merged


class StoreWriter:
    """Appends to a store. The state file is the commit: rows beyond what it tells are left-overs and are removed first."""

    def __init__(self, path: Path, facts: Mapping[str, Any]) -> None:
        import lancedb

        self.path, self.facts = path, facts
        self.schema = make_images_schema(facts["vectors"])
        database = lancedb.connect(
            path, session=lancedb.Session(METADATA_CACHE_BYTES, METADATA_CACHE_BYTES)
        )
        tables = {IMAGES_TABLE: self.schema, ERRORS_TABLE: make_errors_schema()}
        self.images_table, self.errors_table = (
            database.create_table(name, schema=kind, exist_ok=True) for name, kind in tables.items()
        )
        self.state, self.counters = self._restore_state()
        self.row_count, self.has_fragments = self.counters["images"], False
        for table, key, bound in (
            (self.images_table, "id", "images"),
            (self.errors_table, "position", "done"),
        ):
            if table.count_rows(f"{key} >= {self.counters[bound]}"):
                table.delete(f"{key} >= {self.counters[bound]}")
        self.committed_files = self._list_data_files()

    def _restore_state(self) -> tuple[dict[str, Tensor], ScanCounters]:
        if not self.path.joinpath(STATE_FILE).exists():
            return {}, make_zero_counters()
        with open_state_file(self.path) as state:
            tallies = {name: int(value) for name, value in state.metadata().items()}
            return {name: state.get_tensor(name) for name in state.keys()}, tallies  # noqa: SIM118 - not a mapping

    def add_rows(self, images: RowDicts, errors: RowDicts, fragments: Sequence[str] = ()) -> None:
        """Adds rows, which count from the next commit on. Raises SightlineError if the disk does not take them.

        `fragments` are images that the workers of a cluster have written already, in order, without numbers.
        """
        import pyarrow as pa

        with self._guard_writes():
            if images:
                self.images_table.add(make_arrow_table(images, self.schema))
                self.row_count += len(images)
            if fragments:
                from sightline.data.store.fragments import append_fragments

                self.row_count = append_fragments(self.path, fragments, self.row_count)
                self.images_table.checkout_latest()
                self.has_fragments = True
            if errors:
                self.errors_table.add(pa.Table.from_pylist(errors, make_errors_schema()))

    def commit_state(self, state: Mapping[str, Tensor], counters: ScanCounters) -> None:
        """Moves the state on to the rows that were added. Raises SightlineError if the disk does not take it."""
        from safetensors.torch import save_file

        with self._guard_writes(), replace_atomically(self.path / STATE_FILE) as temporary:
            save_file(
                dict(state), temporary, {name: str(value) for name, value in counters.items()}
            )
            shutil.copymode(
                self.path / FACTS_FILE, temporary
            )  # safetensors makes it its owner's alone
        self.counters, self.committed_files = counters, self._list_data_files()

    def _list_data_files(self) -> set[Path]:
        """The files that the table of images has."""
        return set(self.path.joinpath(f"{IMAGES_TABLE}.lance", "data").glob("*"))

    def _discard_uncommitted(self) -> None:
        """Removes what was added since the last commit, or every further attempt on a full disk would fill it more."""
        with suppress(OSError, RuntimeError):
            self.images_table.delete(f"id >= {self.counters['images']}")
            for file in self._list_data_files() - self.committed_files:
                file.unlink()

    @contextmanager
    def _guard_writes(self) -> Generator[None, None, None]:
        """Turns what a disk refuses into one line that tells what stays."""
        from safetensors import SafetensorError

        try:
            yield
        except (OSError, RuntimeError, SafetensorError, SightlineError) as error:
            self._discard_uncommitted()
            kept = self.counters["images"]
            raise SightlineError(
                f"can't write {self.path}: {explain_disk_error(error)}; {kept} images are kept, the same scan goes on there"
            ) from error

    def compact_tables(self) -> None:
        """Merges the pieces that the commits left and removes what no commit needs. Raises SightlineError if the disk does not take it.

        Row by row through this process: LanceDB's own merging reads ahead as much as there is. The large pieces of a cluster stay.
        """
        import pyarrow as pa

        with self._guard_writes():
            large = (
                self.has_fragments
                and self.row_count >= MIN_LARGE_FRAGMENT_ROWS * count_fragments(self.images_table)
            )
            if large:
                from sightline.data.store.fragments import remove_stale_fragments

                remove_stale_fragments(self.path)
            for table in (self.errors_table,) if large else (self.images_table, self.errors_table):
                if count_fragments(table) > 1:
                    table.add(
                        pa.RecordBatchReader.from_batches(table.schema, iterate_row_batches(table)),
                        mode="overwrite",
                    )
                    self.committed_files = self._list_data_files()
                table.optimize(cleanup_older_than=timedelta(milliseconds=1), delete_unverified=True)


def make_arrow_table(rows: RowDicts, schema: Any) -> Any:
    """Rows as an Arrow table."""
    import numpy as np
    import pyarrow as pa

    made: list[Any] = []
    for field in schema:
        values = [row[field.name] for row in rows]
        if pa.types.is_fixed_size_list(field.type):
            flat = pa.array(np.concatenate(values))
            made.append(pa.FixedSizeListArray.from_arrays(flat, field.type.list_size))
        else:
            made.append(pa.array(values, field.type))
    return pa.table(made, schema=schema)


def count_fragments(table: Any) -> int:
    """In how many pieces a table lies."""
    return table.stats()["fragment_stats"]["num_fragments"]


def iterate_row_batches(table: Any) -> Iterator[Any]:
    """All rows of a table, a few at a time."""
    for first in range(0, table.count_rows(), MERGE_BATCH_ROWS):
        yield from table.search().offset(first).limit(MERGE_BATCH_ROWS).to_arrow().to_batches()


@contextmanager
def open_store_writer(path: Path, facts: Mapping[str, Any]) -> Generator[StoreWriter, None, None]:
    """The writer of a store, made if need be. Raises SightlineError if it is of something else, being written, or can't be."""
    check_writable(path.parent)
    if path.exists() and not is_store_or_empty(path):
        raise SightlineError(f"{path} exists and is no store; give another --store")
    with lock_store(path):
        if path.joinpath(FACTS_FILE).exists():
            require_same_facts(path, read_store_facts(path), facts)
        else:
            with replace_atomically(path / FACTS_FILE) as temporary:
                temporary.write_text(json.dumps(facts, indent=1), encoding="utf-8")
        yield StoreWriter(path, facts)


@contextmanager
def lock_store(path: Path) -> Generator[None, None, None]:
    """Only one process writes a store; the system gives the lock back when that process ends, however it ends."""
    import fcntl

    try:
        path.mkdir(parents=True, exist_ok=True)
        with path.joinpath(LOCK_FILE).open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise SightlineError(
                    f"another scan is writing {path}; wait for it or give another --store"
                ) from error
            yield
    except OSError as error:
        raise SightlineError(f"can't write {path}: {explain_disk_error(error)}") from error
