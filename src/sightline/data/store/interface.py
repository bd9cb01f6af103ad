"""The interface of a store: what a pass writes, what readers get, and the protocols between them.

A store holds one scan. `ScanStore` opens it for reading or writing; `StoreReader` gives what the
last commit holds; `StoreWriter` adds to it. Tables cross the interface as Arrow. `lance_store` is
the store on disk, `memory` one in memory.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from sightline.data.search.nearest import Metric
from sightline.data.store.description import ScanDescription

# pyarrow has no types, and is imported where it is used: it takes long.
ArrowArray = Any
ArrowTable = Any
ArrowBatch = Any
ArrowSchema = Any

THUMBNAIL_SIZE = 96  # pixels, at most

MAX_RESPONSE = 65504.0  # the largest float16; a response beyond it counts as this

RECALL_NEIGHBORS = 10  # nearest vectors of which an index's recall is measured


# The numbers of an index that a file may hold.
IndexCount = Annotated[int, Field(strict=True, ge=0, le=2**31 - 1)]
IndexNumber = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class ScanProgress:
    """How far the pass had come at a commit.

    `done` is the number of positions of the dataset that are behind it; `images` of them could be
    read and `errors` could not.
    """

    done: int = 0
    images: int = 0
    errors: int = 0
    complete: bool = False


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One image: where it came from, the network's best classes, its thumbnail and its vectors."""

    id: int
    position: int  # in the dataset, unreadable files counted
    path: str
    sha256: str
    label: int  # index into the class names, -1 if unknown
    height: int  # of the original, upright
    width: int
    best_labels: np.ndarray  # most probable classes, best first
    best_probabilities: np.ndarray
    thumbnail: bytes  # JPEG
    vectors: tuple[np.ndarray, ...]  # in the order of the description
    # Float16, one for all units together, for each kind of the description.
    responses: tuple[np.ndarray, ...] = ()


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """One file that could not be read."""

    position: int
    path: str
    reason: str


@dataclass(frozen=True)
class VectorIndex:
    """An index over the vectors of one layer, how it is queried, and its measured recall.

    `recall` is the share of the exact 10 nearest that it finds for `sample` stored vectors.
    """

    images: IndexCount
    metric: Metric
    lists: IndexCount
    codes: IndexCount
    probes: IndexCount  # lists searched for a query
    refine: IndexCount  # candidates compared in full, as a multiple of k
    recall: IndexNumber
    sample: IndexCount
    seconds: IndexNumber  # that building it took

    def __str__(self) -> str:
        return (
            f"IVF-PQ with {self.lists} lists and {self.codes} codes, {self.probes} lists probed, "
            f"recall@{RECALL_NEIGHBORS} {self.recall:.1%} of {self.sample} stored vectors"
        )


# ── the protocols ──


class StoreReader(Protocol):
    """The content of a store as of its last commit. Rows that no commit holds are not visible."""

    @property
    def path(self) -> Path:
        """Where the store is, for messages."""
        ...

    @property
    def description(self) -> ScanDescription: ...

    @property
    def progress(self) -> ScanProgress: ...

    def read_images(self, columns: Sequence[str], ids: range | None = None) -> ArrowTable:
        """Columns of all images, or of those with `ids`, as they lie in the store.

        The columns are those of `make_images_schema`.
        """
        ...

    def read_rows(self, ids: Sequence[int], columns: Sequence[str]) -> dict[int, dict[str, Any]]:
        """Columns of a few images, by id, without reading the others."""
        ...

    def iterate_images(self, columns: Sequence[str], batch_rows: int) -> Iterator[ArrowBatch]:
        """All images as they lie in the store, at most `batch_rows` in memory at a time."""
        ...

    def read_errors(self) -> list[ErrorRow]:
        """The files that could not be read, in the order of the dataset."""
        ...

    def count_left_overs(self) -> int:
        """Images that were added and are in no commit."""
        ...

    def read_state(self, name: str, units: slice | None = None) -> Tensor:
        """A tensor of `UnitStatistics.name_tensors`, or its part of some units."""
        ...

    def count_bytes(self) -> int:
        """The size of the store."""
        ...

    def read_indexes(self) -> dict[str, VectorIndex]:
        """The indexes over vectors by layer, up to date or not."""
        ...

    def has_full_index(self, column: str) -> bool:
        """Whether a column of vectors has an index, and every image is in it."""
        ...

    def search_index(
        self, column: str, query: Tensor, index: VectorIndex, limit: int
    ) -> tuple[Tensor, Tensor]:
        """Distances and ids of about the `limit` nearest vectors, nearest first, ties by id."""
        ...

    def read_unit_facts(self, layer: str) -> ArrowTable | None:
        """What `StoreWriter.save_unit_facts` kept last; None if there is nothing to be read."""
        ...


class FragmentWriter(Protocol):
    """Writes images beside a store from another process, to which it can be sent by pickle."""

    def write_rows(self, rows: Sequence[ImageRow]) -> list[str]:
        """Writes rows without their ids; returns what `StoreWriter.add_rows` needs to find them."""
        ...


class StoreWriter(Protocol):
    """Adds to a store. What is added counts from the next commit on."""

    @property
    def path(self) -> Path: ...

    @property
    def description(self) -> ScanDescription:
        """What the store was made of, which an unfinished pass continues with."""
        ...

    @property
    def progress(self) -> ScanProgress:
        """How far the last commit came."""
        ...

    def load_state(self) -> dict[str, Tensor]:
        """The tensors of the last commit; empty before the first."""
        ...

    def add_rows(
        self,
        images: Sequence[ImageRow],
        errors: Sequence[ErrorRow],
        fragments: Sequence[str] = (),
    ) -> None:
        """Adds rows. Raises SightlineError if they can't be written.

        `fragments` are images that `FragmentWriter`s have written already, in order.
        """
        ...

    def commit(self, state: Mapping[str, Tensor], progress: ScanProgress) -> None:
        """Makes the added rows part of the store. Raises SightlineError if it can't be written."""
        ...

    def compact(self) -> None:
        """Merges what many commits left in pieces. Raises SightlineError without room for it."""
        ...

    def make_fragment_writer(self) -> FragmentWriter:
        """The writer for the processes of a cluster."""
        ...

    def build_index(self, column: str, metric: Metric, lists: int, codes: int) -> None:
        """Builds an index over a column of vectors, in place of an earlier one."""
        ...

    def save_indexes(self, indexes: Mapping[str, VectorIndex]) -> None:
        """Keeps how the indexes are queried, for `StoreReader.read_indexes`."""
        ...

    def save_unit_facts(self, layer: str, facts: ArrowTable) -> None:
        """Keeps facts of a layer's units, a row each, in place of earlier ones.

        Raises SightlineError if they can't be written.
        """
        ...


class ScanStore(Protocol):
    """A place for one scan."""

    @property
    def path(self) -> Path: ...

    def open_reader(self) -> StoreReader:
        """Raises SightlineError if there is no store, or it is damaged or of a newer version."""
        ...

    def open_writer(self, description: ScanDescription) -> AbstractContextManager[StoreWriter]:
        """The only writer of the store until the context ends; makes the store if there is none.

        Waits while another process or thread writes, so what was missing before may be there then.
        Raises SightlineError if the store holds another scan or can't be written, and if this
        thread writes it already.
        """
        ...


# ── the columns ──

# The attributes of `ImageRow` whose columns have other names.
ROW_ATTRIBUTES = {
    "class": "label",
    "labels": "best_labels",
    "probabilities": "best_probabilities",
}


def make_images_schema(description: ScanDescription) -> ArrowSchema:
    """Columns of the images table.

    `vector_0`, `vector_1`, … hold the vectors in their order, `response_0`, … the responses of the
    units of each layer, and `mean_response_0`, … their means over positions.
    """
    import pyarrow as pa

    fields = [
        pa.field("id", pa.int64()),
        pa.field("position", pa.int64()),
        pa.field("path", pa.string()),
        pa.field("sha256", pa.string()),
        pa.field("class", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("labels", pa.list_(pa.int32())),
        pa.field("probabilities", pa.list_(pa.float32())),
        pa.field("thumbnail", pa.binary()),
    ]
    for layer, column in description.vector_columns.items():
        length = description.vector_lengths[layer]
        fields.append(pa.field(column, pa.list_(pa.float32(), length)))
    for kind in description.response_kinds:
        for layer, column in description.name_response_columns(kind).items():
            units = description.layers[layer].units
            fields.append(pa.field(column, pa.list_(pa.float16(), units)))
    return pa.schema(fields)


def make_images_table(rows: Sequence[ImageRow], description: ScanDescription) -> ArrowTable:
    """Image rows as an Arrow table."""
    import pyarrow as pa

    schema = make_images_schema(description)
    arrays: list[ArrowArray] = []
    for field in schema:
        if pa.types.is_fixed_size_list(field.type):
            continue
        name: str = field.name
        attribute = ROW_ATTRIBUTES.get(name, name)
        values = [getattr(row, attribute) for row in rows]
        arrays.append(pa.array(values, field.type))
    for number in range(len(description.vector_lengths)):
        vectors = np.stack([row.vectors[number] for row in rows])
        arrays.append(make_list_array(vectors))
    for number in range(len(description.response_kinds)):
        responses = np.stack([row.responses[number] for row in rows])
        for units in description.unit_slices.values():
            arrays.append(make_list_array(responses[:, units]))
    return pa.table(arrays, schema=schema)


def round_responses(values: Tensor) -> Tensor:
    """Responses as they are stored, float16: beyond ±65504, infinite or NaN they are at its end."""
    numbers = values.nan_to_num(nan=-torch.inf)
    return numbers.clamp(-MAX_RESPONSE, MAX_RESPONSE).half()


def count_response_bytes(description: ScanDescription) -> int:
    """Bytes of the responses to one image."""
    return 2 * description.unit_count * len(description.response_kinds)


def make_list_array(matrix: np.ndarray) -> ArrowArray:
    """The rows of a matrix as an Arrow array of lists of one length."""
    import pyarrow as pa

    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), matrix.shape[1])


def make_errors_schema() -> ArrowSchema:
    """Columns of the errors table."""
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("position", pa.int64()),
            pa.field("path", pa.string()),
            pa.field("reason", pa.string()),
        ]
    )


def select_units(name: str, tensor: Any, units: slice | None) -> Tensor:
    """The part of a state tensor (or of a safetensors slice of it) that belongs to some units."""
    if units is None:
        return tensor[:]
    # Units are the first axis of the top-k, the second of the classes' top-k and of the rest.
    return tensor[units] if name.startswith("top.") else tensor[:, units]


def convert_to_tensor(column: ArrowArray, width: int = 0) -> Tensor:
    """An Arrow array of n numbers as a tensor, or one of lists of `width` numbers as n×width."""
    numbers = column.flatten() if width else column
    # A copy, since torch wants memory that it may write to.
    tensor = torch.from_numpy(numbers.to_numpy(zero_copy_only=False).copy())
    return tensor.view(-1, width) if width else tensor
