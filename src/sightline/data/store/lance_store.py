"""A store on disk, written: by one process at a time, in commits.

What is committed stays whole whatever happens afterwards. The state file is the commit: rows beyond
what it counts are left-overs of a process that died, and the next writer removes them.
"""

import json
import os
import re
import shutil
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from logging import getLogger
from pathlib import Path
from typing import Any

from torch import Tensor

from sightline.data.lance import build_lance_index, open_or_make_lance_tables
from sightline.data.search.nearest import Metric
from sightline.data.store.description import ScanDescription, require_same_scan
from sightline.data.store.fragments import (
    LanceFragmentWriter,
    append_fragments,
    remove_stale_fragments,
)
from sightline.data.store.interface import (
    ArrowBatch,
    ArrowTable,
    ErrorRow,
    ImageRow,
    ScanProgress,
    ScanStore,
    VectorIndex,
    make_errors_schema,
    make_images_schema,
    make_images_table,
)
from sightline.data.store.lance_reader import (
    DESCRIPTION_FILE,
    ERRORS_TABLE,
    IMAGES_TABLE,
    INDEX_FILE,
    STATE_FILE,
    LanceReader,
    find_facts_file,
    format_progress,
    open_table,
    read_description,
    read_progress,
    read_state_tensors,
)
from sightline.data.table_errors import (
    convert_panics,
    convert_table_errors,
    explain_disk_error,
)
from sightline.data.writer_lock import LOCK_FILE, WRITER_FILE, lock_folder
from sightline.errors import SightlineError
from sightline.images.files import check_writable, remove_abandoned_files, replace_atomically

# LanceDB opens no path with one of these: control characters, and bytes that are not UTF-8.
UNUSABLE_CHARACTER = re.compile("[\\0-\x1f\x7f\ud800-\udfff]")

MIN_LARGE_FRAGMENT_ROWS = 4096  # rows a piece on average, from which on merging gains nothing

MERGE_BATCH_ROWS = 500  # rows in memory while pieces are merged

logger = getLogger(__name__)


@dataclass(frozen=True)
class LanceStore:
    """The store in the folder `path`."""

    path: Path

    def open_reader(self) -> LanceReader:
        """The content as of the last commit."""
        return LanceReader(self.path)

    @contextmanager
    def open_writer(self, description: ScanDescription) -> Generator["LanceWriter", None, None]:
        """The only writer of the store; makes the store if there is none.

        Waits for another writer.
        """
        require_usable_path(self.path)
        if not self.path.exists():
            check_writable(self.path.parent)
        elif not is_store_or_empty(self.path):
            raise SightlineError(f"{self.path} exists and is no store; give another --store")

        with lock_folder(self.path):
            if self.path.joinpath(DESCRIPTION_FILE).exists():
                stored = read_description(self.path)
                require_same_scan(self.path, stored, description)
                description = stored
            else:
                with replace_atomically(self.path / DESCRIPTION_FILE) as temporary:
                    content = json.dumps(description.to_json(), indent=1)
                    temporary.write_text(content, encoding="utf-8")
            yield LanceWriter(self.path, description)


class LanceWriter:
    """Appends to the store in the folder `path`, whose lock the caller holds."""

    def __init__(self, path: Path, description: ScanDescription) -> None:
        self.path = path
        self.description = description
        self.progress = read_progress(path, description)
        self._has_fragments = False  # that a cluster's workers wrote since this writer was opened
        self._row_count = self.progress.images
        with convert_table_errors(f"can't write {path}"):
            self._open_tables()
            self._remove_left_overs()
        self._committed_files = self._list_data_files()

    def _open_tables(self) -> None:
        schemas = {
            IMAGES_TABLE: make_images_schema(self.description),
            ERRORS_TABLE: make_errors_schema(),
        }
        tables = open_or_make_lance_tables(self.path, schemas)
        self._images = tables[IMAGES_TABLE]
        self._errors = tables[ERRORS_TABLE]

    def _remove_left_overs(self) -> None:
        """Removes the rows that no commit counts."""
        uncommitted_images = f"id >= {self.progress.images}"
        if self._images.count_rows(uncommitted_images):
            self._images.delete(uncommitted_images)
        uncommitted_errors = f"position >= {self.progress.done}"
        if self._errors.count_rows(uncommitted_errors):
            self._errors.delete(uncommitted_errors)

    def load_state(self) -> dict[str, Tensor]:
        """The tensors of the last commit; empty before the first."""
        return read_state_tensors(self.path, self.description)

    def add_rows(
        self,
        images: Sequence[ImageRow],
        errors: Sequence[ErrorRow],
        fragments: Sequence[str] = (),
    ) -> None:
        """Adds rows, which count from the next commit on."""
        import pyarrow as pa

        with self._guard_writes():
            if images:
                self._images.add(make_images_table(images, self.description))
                self._row_count += len(images)
            if fragments:
                self._row_count = append_fragments(self.path, fragments, self._row_count)
                self._images.checkout_latest()
                self._has_fragments = True
            if errors:
                rows = [asdict(error) for error in errors]
                self._errors.add(pa.Table.from_pylist(rows, make_errors_schema()))

    def commit(self, state: Mapping[str, Tensor], progress: ScanProgress) -> None:
        """Replaces the state file, by which the added rows become part of the store."""
        from safetensors.torch import save_file

        with self._guard_writes(), replace_atomically(self.path / STATE_FILE) as temporary:
            save_file(dict(state), temporary, format_progress(progress))
            # safetensors makes the file readable by its owner only.
            shutil.copymode(self.path / DESCRIPTION_FILE, temporary)
        self.progress = progress
        self._committed_files = self._list_data_files()

    def make_fragment_writer(self) -> LanceFragmentWriter:
        """The writer for the processes of a cluster."""
        path = Path(os.path.abspath(self.path))
        return LanceFragmentWriter(path, self.description)

    # ── a full disk ──

    @contextmanager
    def _guard_writes(self) -> Generator[None, None, None]:
        """Turns a failed write into one line that says what is kept."""
        from safetensors import SafetensorError

        try:
            with convert_panics():
                yield
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            self._discard_uncommitted()
            raise SightlineError(
                f"can't write {self.path}: {explain_disk_error(error)}; "
                f"{self.progress.images} images are kept, the same scan goes on there"
            ) from error

    def _discard_uncommitted(self) -> None:
        """Removes what was added since the last commit, so that attempts do not fill the disk."""
        try:
            with convert_panics():
                self._images.delete(f"id >= {self.progress.images}")
            for file in self._list_data_files() - self._committed_files:
                file.unlink()
        except (OSError, RuntimeError) as error:
            logger.debug("uncommitted rows stay in %s: %s", self.path, error)

    def _list_data_files(self) -> set[Path]:
        """The files of the table of images."""
        return set(self.path.joinpath(f"{IMAGES_TABLE}.lance", "data").glob("*"))

    # ── merging ──

    def compact(self) -> None:
        """Merges the pieces that commits left, and removes what no commit needs.

        The rows pass through this process a few at a time, since LanceDB's own merging reads as far
        ahead as memory allows. The large pieces that a cluster's workers wrote stay as they are.
        """
        with self._guard_writes():
            min_rows = MIN_LARGE_FRAGMENT_ROWS * count_fragments(self._images)
            if self._has_fragments and self._row_count >= min_rows:
                remove_stale_fragments(self.path)
            else:
                self._merge_fragments(self._images)
            self._merge_fragments(self._errors)

    def _merge_fragments(self, table: Any) -> None:
        import pyarrow as pa

        if count_fragments(table) > 1:
            rows = pa.RecordBatchReader.from_batches(table.schema, iterate_row_batches(table))
            table.add(rows, mode="overwrite")
            self._committed_files = self._list_data_files()
        table.optimize(cleanup_older_than=timedelta(milliseconds=1), delete_unverified=True)

    # ── indexes ──

    def build_index(self, column: str, metric: Metric, lists: int, codes: int) -> None:
        """Builds an IVF-PQ index over a column of vectors, in place of an earlier one."""
        # Not this writer's own table: its caches are too small for building an index.
        table = open_table(self.path, IMAGES_TABLE)
        with convert_table_errors(f"the index of {self.path} can't be built"):
            build_lance_index(table, column, metric, lists, codes)

    def save_indexes(self, indexes: Mapping[str, VectorIndex]) -> None:
        """Replaces `index.json`."""
        content = {layer: asdict(index) for layer, index in indexes.items()}
        with replace_atomically(self.path / INDEX_FILE) as temporary:
            temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")

    # ── facts of units ──

    def save_unit_facts(self, layer: str, facts: ArrowTable) -> None:
        """Replaces the file of the layer's facts."""
        import pyarrow.parquet

        file = find_facts_file(self.path, self.description, layer)
        remove_abandoned_files(file.parent)
        with (
            convert_table_errors(f"can't write {file}"),
            replace_atomically(file) as temporary,
        ):
            pyarrow.parquet.write_table(facts, temporary)


def resolve_store(store: str | Path | ScanStore) -> ScanStore:
    """The store at a path. A store is returned as it is."""
    return LanceStore(Path(store)) if isinstance(store, (str, Path)) else store


def require_usable_path(path: Path) -> None:
    """Raises SightlineError for a path that the system or LanceDB can't open."""
    if UNUSABLE_CHARACTER.search(str(path.absolute())):
        raise SightlineError(
            f"{str(path)!r:.300} is not UTF-8, or has control characters, which a store's path "
            "can't have; give another --store"
        )
    try:
        os.stat(path)
    except FileNotFoundError:
        pass  # it is made
    except (OSError, ValueError) as error:  # ValueError: a null byte
        reason = explain_disk_error(error)
        raise SightlineError(f"can't write {path!s:.300}: {reason}") from error


def is_store_or_empty(path: Path) -> bool:
    """Whether an existing path is a store, or an empty folder that may become one."""
    if not path.is_dir():
        return False
    if path.joinpath(DESCRIPTION_FILE).exists():
        return True
    return {entry.name for entry in path.iterdir()} <= {LOCK_FILE, WRITER_FILE}


def count_fragments(table: Any) -> int:
    """In how many pieces a table lies."""
    return table.stats()["fragment_stats"]["num_fragments"]


def iterate_row_batches(table: Any) -> Iterator[ArrowBatch]:
    """All rows of a table, a few at a time."""
    for start in range(0, table.count_rows(), MERGE_BATCH_ROWS):
        rows = table.search().offset(start).limit(MERGE_BATCH_ROWS).to_arrow()
        yield from rows.to_batches()
