"""Reads a store on disk, layout version 1. `docs/store.md` describes the layout in prose.

OUT.scan/scan.json            the description (written once, first)
OUT.scan/images.lance         one row per image, in the order of the dataset (LanceDB)
OUT.scan/errors.lance         one row per file that could not be read
OUT.scan/state.safetensors    what is kept of the units, and the progress: the commit
OUT.scan/index.json           which indexes of vectors there are, how they are queried, their recall
OUT.scan/lock                 held by the process that writes
"""

import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from sightline.data.store.description import STORE_FORMAT, STORE_VERSION, ScanDescription
from sightline.data.store.interface import (
    ArrowBatch,
    ArrowTable,
    ErrorRow,
    ScanProgress,
    VectorIndex,
    select_units,
)
from sightline.errors import SightlineError, get_first_error_line

DESCRIPTION_FILE = "scan.json"
STATE_FILE = "state.safetensors"
INDEX_FILE = "index.json"
LOCK_FILE = "lock"
IMAGES_TABLE = "images"
ERRORS_TABLE = "errors"

logger = logging.getLogger(__name__)


class LanceReader:
    """What the last commit of a store on disk holds.

    Raises SightlineError if there is no store, or it is damaged or made by a newer version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.description = read_description(path)
        self.progress = read_progress(path)

    def read_images(self, columns: Sequence[str], ids: range | None = None) -> ArrowTable:
        """Columns of all images, or of those with `ids`, as they lie in the table."""
        return self._query_images(columns, ids).to_arrow()

    def read_rows(self, ids: Sequence[int], columns: Sequence[str]) -> dict[int, dict[str, Any]]:
        """Columns of a few images, by id, without reading the others."""
        if not ids:
            return {}
        id_list = ", ".join(map(str, sorted(set(ids))))
        query = open_table(self.path, IMAGES_TABLE).search().where(f"id IN ({id_list})")
        rows = query.select(["id", *columns]).to_arrow().to_pylist()
        return {row["id"]: row for row in rows}

    def iterate_images(self, columns: Sequence[str], batch_rows: int) -> Iterator[ArrowBatch]:
        """All images as they lie in the table, at most `batch_rows` in memory at a time."""
        yield from self._query_images(columns).to_batches(batch_rows)

    def _query_images(self, columns: Sequence[str], ids: range | None = None) -> Any:
        condition = f"id < {self.progress.images}"
        if ids is not None:
            condition = f"id >= {ids.start} AND id < {min(ids.stop, self.progress.images)}"
        query = open_table(self.path, IMAGES_TABLE).search().where(condition)
        return query.select(list(columns))

    def read_errors(self) -> list[ErrorRow]:
        """The files that could not be read, in the order of the dataset."""
        query = open_table(self.path, ERRORS_TABLE).search()
        rows = query.where(f"position < {self.progress.done}").to_arrow().sort_by("position")
        return [ErrorRow(**row) for row in rows.to_pylist()]

    def read_state(self, name: str, units: slice | None = None) -> Tensor:
        """A tensor of the state file, or its part of some units."""
        with open_state_file(self.path) as state:
            return select_units(name, state.get_slice(name), units)

    def count_bytes(self) -> int:
        """Bytes of all files of the store."""
        files = (file for file in self.path.rglob("*") if file.is_file())
        return sum(file.stat().st_size for file in files)

    # ── indexes ──

    def read_indexes(self) -> dict[str, VectorIndex]:
        """The indexes by layer. A missing or damaged file gives none: they can be built again."""
        try:
            content = json.loads(self.path.joinpath(INDEX_FILE).read_text(encoding="utf-8"))
            return {layer: VectorIndex(**fields) for layer, fields in content.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            logger.debug("%s of %s is ignored: %s", INDEX_FILE, self.path, error)
            return {}

    def has_full_index(self, column: str) -> bool:
        """Whether a column of vectors has an index, and every row of the table is in it."""
        statistics = open_table(self.path, IMAGES_TABLE).index_stats(f"{column}_idx")
        return statistics is not None and not statistics.num_unindexed_rows

    def search_index(
        self, column: str, query: Tensor, index: VectorIndex, limit: int
    ) -> tuple[Tensor, Tensor]:
        """Distances and ids of about the `limit` nearest vectors, nearest first, ties by id."""
        images = open_table(self.path, IMAGES_TABLE)
        search = images.search(query.numpy(), vector_column_name=column)
        search = search.distance_type(index.metric).limit(limit)
        search = search.where(f"id < {self.progress.images}").select(["id", "_distance"])
        # More lists than `probes` are searched only where those hold too few vectors.
        search = search.refine_factor(index.refine).minimum_nprobes(index.probes)
        rows = search.maximum_nprobes(0).to_arrow()

        ids = torch.tensor(rows["id"].to_pylist())
        distances = torch.tensor(rows["_distance"].to_pylist())
        order = ids.argsort()
        order = order[distances[order].argsort(stable=True)]
        distances = distances[order]
        if index.metric == "l2":
            distances = distances.sqrt()  # LanceDB's L2 distance is squared
        return distances, ids[order]


def read_description(path: Path) -> ScanDescription:
    """The content of `scan.json`.

    Raises SightlineError if there is no store, or it is damaged or made by a newer version.
    """
    try:
        content = json.loads(path.joinpath(DESCRIPTION_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        reason = "" if path.exists() else ": there is nothing"
        raise SightlineError(f"{path} is no store{reason}; sightline scan makes one") from error
    except (OSError, ValueError) as error:
        raise make_damage_error(path, get_first_error_line(error)) from error

    if (
        not isinstance(content, dict)
        or content.get("format") != STORE_FORMAT
        or not isinstance(content.get("version"), int)
    ):
        raise SightlineError(f"{path} is no store: its {DESCRIPTION_FILE} is something else")
    if content["version"] > STORE_VERSION:
        raise SightlineError(
            f"the store {path} was made by a newer version "
            f"(layout {content['version']}; this one reads {STORE_VERSION})"
        )
    try:
        return ScanDescription.from_json(content)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        raise make_damage_error(path, f"{key}: {problem['msg']}") from error


def make_damage_error(path: Path, reason: str) -> SightlineError:
    """The error for a description that can't be read."""
    return SightlineError(
        f"the store {path} is damaged: {DESCRIPTION_FILE} can't be read ({reason})"
    )


def read_progress(path: Path) -> ScanProgress:
    """How far the last commit came, from the state file's metadata."""
    if not path.joinpath(STATE_FILE).exists():
        return ScanProgress()
    with open_state_file(path) as state:
        counts = {name: int(value) for name, value in state.metadata().items()}
    return ScanProgress(
        done=counts["done"],
        images=counts["images"],
        errors=counts["errors"],
        complete=bool(counts["complete"]),
    )


def format_progress(progress: ScanProgress) -> dict[str, str]:
    """The same as metadata of the state file."""
    return {name: str(int(value)) for name, value in asdict(progress).items()}


def open_state_file(path: Path) -> Any:
    """The opened state file, a context manager. Raises SightlineError for a damaged one."""
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path / STATE_FILE, framework="pt")
    except (OSError, SafetensorError) as error:
        raise SightlineError(
            f"the store {path} is damaged: {STATE_FILE} can't be read "
            f"({get_first_error_line(error)})"
        ) from error


def open_table(path: Path, name: str) -> Any:
    """A LanceDB table of a store. Raises SightlineError if it is gone or damaged."""
    import lancedb

    try:
        return lancedb.connect(path).open_table(name)
    except (OSError, ValueError, RuntimeError) as error:
        raise SightlineError(
            f"the store {path} is damaged: its table of {name} can't be opened "
            f"({get_first_error_line(error)})"
        ) from error


def explain_disk_error(error: Exception) -> str:
    """The operating system's words in another library's message: «No space left on device»."""
    system_error = re.search(r"([A-Z][\w ]+) \(os error \d+\)", str(error))
    if system_error is not None:
        return system_error[1]
    return getattr(error, "strerror", None) or get_first_error_line(error)
