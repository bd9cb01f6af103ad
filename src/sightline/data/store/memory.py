"""A store in memory: the same interface as the store on disk, gone with the process."""

import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from sightline.data.search.nearest import Metric, find_nearest
from sightline.data.store.description import ScanDescription, require_same_scan
from sightline.data.store.interface import (
    ArrowBatch,
    ArrowTable,
    ErrorRow,
    FragmentWriter,
    ImageRow,
    ScanProgress,
    VectorIndex,
    convert_to_tensor,
    make_images_schema,
    make_images_table,
    select_units,
)
from sightline.errors import SightlineError
from sightline.process.locks import ForkSafeLock


@dataclass(frozen=True)
class MemoryReader:
    """What the last commit of a store in memory holds. Later commits do not change it."""

    path: Path
    description: ScanDescription
    images: ArrowTable  # one row per image, in order of id
    progress: ScanProgress = field(default_factory=ScanProgress)
    errors: tuple[ErrorRow, ...] = ()
    state: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    indexes: Mapping[str, VectorIndex] = field(default_factory=dict[str, VectorIndex])
    # Shared by all readers, as the files of a store on disk are.
    unit_facts: dict[str, ArrowTable] = field(default_factory=dict[str, ArrowTable])

    def read_images(self, columns: Sequence[str], ids: range | None = None) -> ArrowTable:
        """Columns of all images, or of those with `ids`."""
        table = self.images.select(list(columns))
        return table if ids is None else table.slice(ids.start, len(ids))

    def read_rows(self, ids: Sequence[int], columns: Sequence[str]) -> dict[int, dict[str, Any]]:
        """Columns of a few images, by id."""
        rows = self.images.select(["id", *columns]).take(sorted(set(ids))).to_pylist()
        return {row["id"]: row for row in rows}

    def iterate_images(self, columns: Sequence[str], batch_rows: int) -> Iterator[ArrowBatch]:
        """All images, `batch_rows` at a time."""
        yield from self.read_images(columns).to_batches(batch_rows)

    def read_errors(self) -> list[ErrorRow]:
        """The files that could not be read, in the order of the dataset."""
        return list(self.errors)

    def count_left_overs(self) -> int:
        """None: they are with the writer."""
        return 0

    def read_state(self, name: str, units: slice | None = None) -> Tensor:
        """A tensor of the last commit, or its part of some units."""
        return select_units(name, self.state[name], units).clone()

    def count_bytes(self) -> int:
        """Bytes of the images and the tensors."""
        return self.images.nbytes + sum(tensor.nbytes for tensor in self.state.values())

    def read_indexes(self) -> dict[str, VectorIndex]:
        """The indexes that were saved, by layer."""
        return dict(self.indexes)

    def has_full_index(self, column: str) -> bool:
        """True: the search compares all vectors, so it lacks none."""
        return column in self.images.column_names

    def search_index(
        self, column: str, query: Tensor, index: VectorIndex, limit: int
    ) -> tuple[Tensor, Tensor]:
        """Distances and ids of the exactly nearest vectors."""
        vectors = convert_to_tensor(self.images[column].combine_chunks(), len(query))
        k = min(limit, len(vectors))
        distances, ids = find_nearest(vectors, query[None], k, index.metric)
        return distances[0], ids[0]

    def read_unit_facts(self, layer: str) -> ArrowTable | None:
        """The facts of a layer's units that were saved."""
        return self.unit_facts.get(layer)


class MemoryStore:
    """A store in memory. `path` is only its name in messages."""

    def __init__(self, path: str | Path = "memory.scan") -> None:
        self.path = Path(path)
        self.committed: MemoryReader | None = None
        self._lock = ForkSafeLock()
        self._writer_thread: int | None = None

    def open_reader(self) -> MemoryReader:
        """The content as of the last commit."""
        if self.committed is None:
            raise SightlineError(f"{self.path} is no store yet: scan into it first")
        return self.committed

    @contextmanager
    def open_writer(self, description: ScanDescription) -> Generator["MemoryWriter", None, None]:
        """The only writer of the store. Waits for another thread that writes it."""
        this_thread = threading.get_ident()
        if self._writer_thread == this_thread:
            raise SightlineError(f"{self.path} is being written by this thread already")
        with self._lock:
            self._writer_thread = this_thread
            try:
                yield self._make_writer(description)
            finally:
                self._writer_thread = None

    def _make_writer(self, description: ScanDescription) -> "MemoryWriter":
        if self.committed is None:
            schema = make_images_schema(description)
            # Through JSON, as on a disk: its tuples become lists.
            description = ScanDescription.from_json(description.to_json())
            self.committed = MemoryReader(self.path, description, schema.empty_table())
        else:
            require_same_scan(self.path, self.committed.description, description)
        return MemoryWriter(self, self.committed)


class MemoryWriter:
    """Adds to a store in memory."""

    def __init__(self, store: MemoryStore, committed: MemoryReader) -> None:
        self._store = store
        self._committed = committed
        self._pending_tables: list[ArrowTable] = []
        self._pending_errors: list[ErrorRow] = []

    @property
    def path(self) -> Path:
        """The store's name."""
        return self._committed.path

    @property
    def description(self) -> ScanDescription:
        """What the store was made of."""
        return self._committed.description

    @property
    def progress(self) -> ScanProgress:
        """How far the last commit came."""
        return self._committed.progress

    def load_state(self) -> dict[str, Tensor]:
        """The tensors of the last commit; empty before the first."""
        return {name: tensor.clone() for name, tensor in self._committed.state.items()}

    def add_rows(
        self,
        images: Sequence[ImageRow],
        errors: Sequence[ErrorRow],
        fragments: Sequence[str] = (),
    ) -> None:
        """Adds rows, which count from the next commit on."""
        if fragments:
            raise make_cluster_error()
        if images:
            table = make_images_table(images, self.description)
            self._pending_tables.append(table)
        self._pending_errors += errors

    def commit(self, state: Mapping[str, Tensor], progress: ScanProgress) -> None:
        """Makes the added rows part of the store."""
        import pyarrow as pa

        images = pa.concat_tables([self._committed.images, *self._pending_tables])
        self._replace(
            images=images,
            errors=(*self._committed.errors, *self._pending_errors),
            # The pass goes on changing its tensors in place.
            state={name: tensor.clone() for name, tensor in state.items()},
            progress=progress,
        )
        self._pending_tables = []
        self._pending_errors = []

    def compact(self) -> None:
        """Joins the pieces of the table."""
        self._replace(images=self._committed.images.combine_chunks())

    def make_fragment_writer(self) -> FragmentWriter:
        """Raises SightlineError: other processes cannot reach this one's memory."""
        raise make_cluster_error()

    def build_index(self, column: str, metric: Metric, lists: int, codes: int) -> None:
        """Does nothing: the search compares all vectors."""

    def save_indexes(self, indexes: Mapping[str, VectorIndex]) -> None:
        """Keeps how the indexes are queried."""
        self._replace(indexes=dict(indexes))

    def save_unit_facts(self, layer: str, facts: ArrowTable) -> None:
        """Keeps facts of a layer's units."""
        self._committed.unit_facts[layer] = facts

    def _replace(self, **changes: Any) -> None:
        self._committed = replace(self._committed, **changes)
        self._store.committed = self._committed


def make_cluster_error() -> SightlineError:
    """The error for a scan by other processes into this one's memory."""
    return SightlineError("a cluster can't write into a store in memory; give the path of a store")
