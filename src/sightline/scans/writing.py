"""A store, written: one writer at a time, in commits; what is committed stays whole whatever happens afterwards."""

import json
import shutil
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch import Tensor

from ..atomic import check_writable, replacing
from ..errors import SightlineError
from . import layout
from .store import state_of

Rows = list[dict[str, Any]]
Tallies = dict[str, int]


CACHE = 1_000_000  # bytes that LanceDB may keep of a table's metadata; by default gigabytes, which fill as pieces are added
LARGE = 4096  # rows of a piece from which on merging it gains nothing
PIECE = 500  # rows in memory while pieces are merged


class Writer:
    """Appends to a store. The state file is the commit: rows beyond what it tells are left-overs and are removed first."""

    def __init__(self, path: Path, facts: Mapping[str, Any]) -> None:
        import lancedb

        self.path, self.facts = path, facts
        self.schema = layout.schema(facts["vectors"])
        database = lancedb.connect(path, session=lancedb.Session(CACHE, CACHE))
        tables = {layout.IMAGES: self.schema, layout.ERRORS: layout.error_schema()}
        self.images, self.errors = (database.create_table(name, schema=kind, exist_ok=True) for name, kind in tables.items())
        self.state, self.tallies = self._restored()
        self.rows, self.scattered = self.tallies["images"], False
        for table, key, bound in ((self.images, "id", "images"), (self.errors, "position", "done")):
            if table.count_rows(f"{key} >= {self.tallies[bound]}"):
                table.delete(f"{key} >= {self.tallies[bound]}")
        self.files = self._files()

    def _restored(self) -> tuple[dict[str, Tensor], Tallies]:
        if not self.path.joinpath(layout.STATE).exists():
            return {}, layout.nothing()
        with state_of(self.path) as state:
            tallies = {name: int(value) for name, value in state.metadata().items()}
            return {name: state.get_tensor(name) for name in state.keys()}, tallies  # noqa: SIM118 - not a mapping

    def add(self, images: Rows, errors: Rows, fragments: Sequence[str] = ()) -> None:
        """Adds rows, which count from the next commit on. Raises SightlineError if the disk does not take them.

        `fragments` are images that the workers of a cluster have written already, in order, without numbers.
        """
        import pyarrow as pa

        with self._kept():
            if images:
                self.images.add(columns(images, self.schema))
                self.rows += len(images)
            if fragments:
                from .fragments import appended

                self.rows = appended(self.path, fragments, self.rows)
                self.images.checkout_latest()
                self.scattered = True
            if errors:
                self.errors.add(pa.Table.from_pylist(errors, layout.error_schema()))

    def commit(self, state: Mapping[str, Tensor], tallies: Tallies) -> None:
        """Moves the state on to the rows that were added. Raises SightlineError if the disk does not take it."""
        from safetensors.torch import save_file

        with self._kept(), replacing(self.path / layout.STATE) as temporary:
            save_file(dict(state), temporary, {name: str(value) for name, value in tallies.items()})
            shutil.copymode(self.path / layout.FACTS, temporary)  # safetensors makes it its owner's alone
        self.tallies, self.files = tallies, self._files()

    def _files(self) -> set[Path]:
        """The files that the table of images has."""
        return set(self.path.joinpath(f"{layout.IMAGES}.lance", "data").glob("*"))

    def _take_back(self) -> None:
        """Removes what was added since the last commit, or every further attempt on a full disk would fill it more."""
        with suppress(OSError, RuntimeError):
            self.images.delete(f"id >= {self.tallies['images']}")
            for file in self._files() - self.files:
                file.unlink()

    @contextmanager
    def _kept(self) -> Generator[None, None, None]:
        """Turns what a disk refuses into one line that tells what stays."""
        from safetensors import SafetensorError

        try:
            yield
        except (OSError, RuntimeError, SafetensorError, SightlineError) as error:
            self._take_back()
            kept = self.tallies["images"]
            raise SightlineError(
                f"can't write {self.path}: {layout.reason(error)}; {kept} images are kept, the same scan goes on there"
            ) from error

    def compact(self) -> None:
        """Merges the pieces that the commits left and removes what no commit needs. Raises SightlineError if the disk does not take it.

        Row by row through this process: LanceDB's own merging reads ahead as much as there is. The large pieces of a cluster stay.
        """
        import pyarrow as pa

        with self._kept():
            large = self.scattered and self.rows >= LARGE * count_of(self.images)
            if large:
                from .fragments import cleaned

                cleaned(self.path)
            for table in (self.errors,) if large else (self.images, self.errors):
                if count_of(table) > 1:
                    table.add(pa.RecordBatchReader.from_batches(table.schema, pieces(table)), mode="overwrite")
                    self.files = self._files()
                table.optimize(cleanup_older_than=timedelta(milliseconds=1), delete_unverified=True)


def columns(images: Rows, schema: Any) -> Any:
    """Rows as an Arrow table."""
    import numpy as np
    import pyarrow as pa

    made: list[Any] = []
    for field in schema:
        values = [row[field.name] for row in images]
        if pa.types.is_fixed_size_list(field.type):
            flat = pa.array(np.concatenate(values))
            made.append(pa.FixedSizeListArray.from_arrays(flat, field.type.list_size))
        else:
            made.append(pa.array(values, field.type))
    return pa.table(made, schema=schema)


def count_of(table: Any) -> int:
    """In how many pieces a table lies."""
    return table.stats()["fragment_stats"]["num_fragments"]


def pieces(table: Any) -> Iterator[Any]:
    """All rows of a table, a few at a time."""
    for first in range(0, table.count_rows(), PIECE):
        yield from table.search().offset(first).limit(PIECE).to_arrow().to_batches()


@contextmanager
def writing(path: Path, facts: Mapping[str, Any]) -> Generator[Writer, None, None]:
    """The writer of a store, made if need be. Raises SightlineError if it is of something else, being written, or can't be."""
    check_writable(path.parent)
    if path.exists() and not layout.may_become_store(path):
        raise SightlineError(f"{path} exists and is no store; give another --store")
    with locked(path):
        if path.joinpath(layout.FACTS).exists():
            layout.require_same(path, layout.read_facts(path), facts)
        else:
            with replacing(path / layout.FACTS) as temporary:
                temporary.write_text(json.dumps(facts, indent=1), encoding="utf-8")
        yield Writer(path, facts)


@contextmanager
def locked(path: Path) -> Generator[None, None, None]:
    """Only one process writes a store; the system gives the lock back when that process ends, however it ends."""
    import fcntl

    try:
        path.mkdir(parents=True, exist_ok=True)
        with path.joinpath(layout.LOCK).open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise SightlineError(f"another scan is writing {path}; wait for it or give another --store") from error
            yield
    except OSError as error:
        raise SightlineError(f"can't write {path}: {layout.reason(error)}") from error
