"""Reads a store on disk, layout version 1. `docs/store.md` describes the layout in prose.

OUT.scan/scan.json            the description (written once, first)
OUT.scan/images.lance         one row per image, in the order of the dataset (LanceDB)
OUT.scan/errors.lance         one row per file that could not be read
OUT.scan/state.safetensors    what is kept of the units, and the progress: the commit
OUT.scan/units/0.parquet      facts of the units of the first layer, once they are asked for
OUT.scan/index.json           which indexes of vectors there are, how they are queried, their recall
OUT.scan/lock                 held by the process that writes
OUT.scan/writer               names that process to those that wait for it
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from sightline.data.lance import open_lance_table
from sightline.data.store.description import ScanDescription
from sightline.data.store.interface import (
    ArrowBatch,
    ArrowSchema,
    ArrowTable,
    ErrorRow,
    ScanProgress,
    VectorIndex,
    make_errors_schema,
    make_images_schema,
)
from sightline.data.store.validation import (
    check_state_layout,
    find_column_problems,
    find_schema_problem,
    list_state_tensors,
    make_damage_error,
    parse_description,
    parse_indexes,
    parse_progress,
    read_json_file,
    select_checked_units,
)
from sightline.data.table_errors import convert_table_errors, explain_disk_error
from sightline.errors import SightlineError

DESCRIPTION_FILE = "scan.json"
STATE_FILE = "state.safetensors"
INDEX_FILE = "index.json"
UNITS_FOLDER = "units"
IMAGES_TABLE = "images"
ERRORS_TABLE = "errors"

MAX_READ_ATTEMPTS = 5  # of a table that other processes compact meanwhile

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class OpenTable:
    """A table at the version at which it was opened, and the process that opened it."""

    table: Any
    version: int
    process_id: int


class LanceReader:
    """What the last commit of a store on disk holds.

    The table of images stays open after the first read: to open it takes longer than to read a few
    rows. A process forked from this one, and a pickled copy, open it again.

    Raises SightlineError if there is no store, or it is damaged or made by a newer version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.description = read_description(path)
        self.progress = read_progress(path, self.description)
        self._images: OpenTable | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_images": None}

    def read_images(self, columns: Sequence[str], ids: range | None = None) -> ArrowTable:
        """Columns of all images, or of those with `ids`, as they lie in the table."""
        return self._read_checked(lambda images: self._query(images, columns, ids).to_arrow())

    def read_rows(self, ids: Sequence[int], columns: Sequence[str]) -> dict[int, dict[str, Any]]:
        """Columns of a few images, by id, without reading the others."""
        if not ids:
            return {}
        id_list = ", ".join(map(str, sorted(set(ids))))

        def read(images: Any) -> ArrowTable:
            query = images.search().where(f"id IN ({id_list})")
            return query.select(["id", *columns]).to_arrow()

        rows = {row["id"]: row for row in self._read_checked(read).to_pylist()}
        missing_ids = set(ids) - rows.keys()
        if missing_ids:
            raise make_damage_error(self.path, f"it has no image {min(missing_ids)}")
        return rows

    def iterate_images(self, columns: Sequence[str], batch_rows: int) -> Iterator[ArrowBatch]:
        """All images as they lie in the table, at most `batch_rows` in memory at a time.

        The values are not checked.
        """
        images = self._open_images().table
        with convert_table_errors(self._describe_damage(IMAGES_TABLE)):
            yield from self._query(images, columns).to_batches(batch_rows)

    def _query(self, images: Any, columns: Sequence[str], ids: range | None = None) -> Any:
        condition = f"id < {self.progress.images}"
        if ids is not None:
            condition = f"id >= {ids.start} AND id < {min(ids.stop, self.progress.images)}"
        return images.search().where(condition).select(list(columns))

    def _read_checked(self, read: Callable[[Any], ArrowTable]) -> ArrowTable:
        """What `read` gives of the table of images. Raises SightlineError for odd values."""
        rows = self._read_images_table(read)
        problems = find_column_problems(rows, self.description, self.progress)
        if problems:
            raise make_damage_error(self.path, problems[0])
        return rows

    def _read_images_table(self, read: Callable[[Any], T]) -> T:
        """Reads the table of images, again if another process compacted it meanwhile."""
        failed_version = None
        for _ in range(MAX_READ_ATTEMPTS):
            images = self._open_images()
            try:
                with convert_table_errors(self._describe_damage(IMAGES_TABLE)):
                    return read(images.table)
            except SightlineError as error:
                self._images = None
                if images.version == failed_version:
                    raise
                failed_version = images.version
                logger.debug("%s is read again: %s", self.path, error)
        raise SightlineError(f"the store {self.path} keeps changing while it is read; try again")

    def _open_images(self) -> OpenTable:
        """The table of images, opened by the first read of this process."""
        images = self._images
        # LanceDB's threads don't survive a fork.
        if images is None or images.process_id != os.getpid():
            schema = make_images_schema(self.description)
            table = open_checked_table(self.path, IMAGES_TABLE, schema)
            with convert_table_errors(self._describe_damage(IMAGES_TABLE)):
                images = OpenTable(table, table.version, os.getpid())
            self._images = images
        return images

    def _describe_damage(self, table_name: str) -> str:
        return f"the store {self.path} is damaged: its table of {table_name} can't be read"

    def read_errors(self) -> list[ErrorRow]:
        """The files that could not be read, in the order of the dataset."""
        schema = make_errors_schema()
        errors = open_checked_table(self.path, ERRORS_TABLE, schema)
        with convert_table_errors(self._describe_damage(ERRORS_TABLE)):
            query = errors.search().where(f"position < {self.progress.done}")
            rows = query.select(schema.names).to_arrow().sort_by("position")
        if any(rows[name].null_count for name in schema.names):
            raise make_damage_error(self.path, "its table of errors has empty rows")
        return [ErrorRow(**row) for row in rows.to_pylist()]

    def count_left_overs(self) -> int:
        """Images that were added and are in no commit; none before both tables are made."""
        self._images = None  # rows may have been added since it was opened
        try:
            open_table(self.path, ERRORS_TABLE)
            images = self._open_images().table
        except SightlineError as error:
            logger.debug("%s has no tables yet: %s", self.path, error)
            return 0
        with convert_table_errors(self._describe_damage(IMAGES_TABLE)):
            return images.count_rows(f"id >= {self.progress.images}")

    def read_state(self, name: str, units: slice | None = None) -> Tensor:
        """A tensor of the state file, or its part of some units."""
        if name not in list_state_tensors(self.description):
            raise KeyError(name)
        with open_state_file(self.path) as state:
            check_state_layout(self.path, state, self.description)
            # Another process may have gone on with the pass since.
            progress = parse_progress(self.path, state.metadata())
            return select_checked_units(
                self.path,
                name,
                state,
                description=self.description,
                progress=progress,
                units=units,
            )

    def count_bytes(self) -> int:
        """Bytes of all files of the store."""
        try:
            files = (file for file in self.path.rglob("*") if file.is_file())
            return sum(file.stat().st_size for file in files)
        except OSError as error:
            raise SightlineError(f"can't read {self.path}: {explain_disk_error(error)}") from error

    # ── indexes ──

    def read_indexes(self) -> dict[str, VectorIndex]:
        """The indexes by layer. A missing or damaged file gives none: they can be built again."""
        try:
            return parse_indexes(read_json_file(self.path / INDEX_FILE))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:  # ValueError: pydantic's, too
            logger.debug("%s of %s is ignored: %s", INDEX_FILE, self.path, error)
            return {}

    def has_full_index(self, column: str) -> bool:
        """Whether a column of vectors has an index, and every row of the table is in it."""
        self._images = None  # an index may have been built since it was opened
        statistics = self._read_images_table(lambda images: images.index_stats(f"{column}_idx"))
        return statistics is not None and not statistics.num_unindexed_rows

    def search_index(
        self, column: str, query: Tensor, index: VectorIndex, limit: int
    ) -> tuple[Tensor, Tensor]:
        """Distances and ids of about the `limit` nearest vectors, nearest first, ties by id."""

        def search_table(images: Any) -> ArrowTable:
            search = images.search(query.numpy(), vector_column_name=column)
            search = search.distance_type(index.metric).limit(limit)
            search = search.where(f"id < {self.progress.images}").select(["id", "_distance"])
            # More lists than `probes` are searched only where those hold too few vectors.
            search = search.refine_factor(index.refine).minimum_nprobes(index.probes)
            return search.maximum_nprobes(0).to_arrow()

        rows = self._read_checked(search_table)
        ids = torch.tensor(rows["id"].to_pylist(), dtype=torch.long)
        distances = torch.tensor(rows["_distance"].to_pylist(), dtype=torch.float32)
        order = ids.argsort()
        order = order[distances[order].argsort(stable=True)]
        distances = distances[order]
        if index.metric == "l2":
            distances = distances.sqrt()  # LanceDB's L2 distance is squared
        return distances, ids[order]

    # ── facts of units ──

    def read_unit_facts(self, layer: str) -> ArrowTable | None:
        """The facts of a layer's units. A missing or damaged file gives none: they are derived."""
        import pyarrow.parquet

        file = find_facts_file(self.path, self.description, layer)
        try:
            with convert_table_errors(f"can't read {file}"):
                return pyarrow.parquet.read_table(file)
        except SightlineError as error:
            logger.debug("%s", error)
            return None


def find_facts_file(path: Path, description: ScanDescription, layer: str) -> Path:
    """The file with the facts of a layer's units. Its name is the number of the layer."""
    number = list(description.layers).index(layer)
    return path / UNITS_FOLDER / f"{number}.parquet"


def read_description(path: Path) -> ScanDescription:
    """The content of `scan.json`.

    Raises SightlineError if there is no store, or it is damaged or made by a newer version.
    """
    try:
        content = read_json_file(path / DESCRIPTION_FILE)
    except (FileNotFoundError, NotADirectoryError) as error:
        reason = "" if os.path.exists(path) else ": there is nothing"
        raise SightlineError(f"{path} is no store{reason}; sightline scan makes one") from error
    except (OSError, ValueError) as error:
        reason = explain_disk_error(error)
        raise make_damage_error(path, f"{DESCRIPTION_FILE} can't be read ({reason})") from error
    return parse_description(path, content)


def read_progress(path: Path, description: ScanDescription) -> ScanProgress:
    """How far the last commit came, from the state file's metadata.

    Raises SightlineError if the file does not belong to the description.
    """
    if not path.joinpath(STATE_FILE).exists():
        return ScanProgress()
    with open_state_file(path) as state:
        check_state_layout(path, state, description)
        return parse_progress(path, state.metadata())


def read_state_tensors(path: Path, description: ScanDescription) -> dict[str, Tensor]:
    """All tensors of the last commit, checked; empty before the first."""
    if not path.joinpath(STATE_FILE).exists():
        return {}
    with open_state_file(path) as state:
        check_state_layout(path, state, description)
        progress = parse_progress(path, state.metadata())
        return {
            name: select_checked_units(
                path, name, state, description=description, progress=progress
            )
            for name in list_state_tensors(description)
        }


def format_progress(progress: ScanProgress) -> dict[str, str]:
    """The same as metadata of the state file."""
    return {name: str(int(value)) for name, value in asdict(progress).items()}


def open_state_file(path: Path) -> Any:
    """The opened state file, a context manager. Raises SightlineError for a damaged one."""
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path / STATE_FILE, framework="pt")
    except (OSError, SafetensorError, ValueError) as error:
        reason = explain_disk_error(error)
        raise make_damage_error(path, f"{STATE_FILE} can't be read ({reason})") from error


def open_table(path: Path, name: str) -> Any:
    """A LanceDB table of a store. Raises SightlineError if it is gone or damaged."""
    with convert_table_errors(f"the store {path} is damaged: its table of {name} can't be opened"):
        return open_lance_table(path, name)


def open_checked_table(path: Path, name: str, expected_schema: ArrowSchema) -> Any:
    """A table of these columns. Raises SightlineError if it is gone, damaged or has others."""
    table = open_table(path, name)
    with convert_table_errors(f"the store {path} is damaged: its table of {name} can't be read"):
        schema = table.schema
    problem = find_schema_problem(schema, expected_schema)
    if problem is not None:
        raise make_damage_error(path, f"its table of {name}: {problem}")
    return table
