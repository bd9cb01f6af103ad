"""Images as Lance fragments: a cluster's workers write them, and the driver commits them.

A worker cannot know how many images before its own could be read, so it leaves out the column of
ids. The driver, which knows, adds that column to each fragment as a file of its own. What nobody
commits (a worker died) is in no version of the table and is removed at the end.
"""

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

from sightline.data.store.description import ScanDescription
from sightline.data.store.interface import ArrowTable, ImageRow, make_images_table
from sightline.data.store.lance_reader import IMAGES_TABLE
from sightline.errors import SightlineError

ID_COLUMN = "id"


def load_lance() -> None:
    """Imports what this file needs of Lance. Raises ImportError without the extra «cluster»."""
    import_module("lance.fragment")


@dataclass(frozen=True)
class LanceFragmentWriter:
    """Writes images beside the store at `path`, an absolute path that all nodes share."""

    path: Path
    description: ScanDescription

    def write_rows(self, rows: Sequence[ImageRow]) -> list[str]:
        """Writes rows without their ids; returns the fragments' metadata as JSON."""
        return write_image_fragments(self.path, make_images_table(rows, self.description))


def write_image_fragments(store: Path, images: ArrowTable) -> list[str]:
    """Writes a table without its ids; returns the fragments' metadata as JSON."""
    from lance.fragment import write_fragments

    dataset = open_lance_dataset(store)
    fragments = write_fragments(
        images.drop_columns([ID_COLUMN]),
        dataset,
        mode="append",
        data_storage_version=dataset.data_storage_version,
    )
    return [json.dumps(fragment.to_json()) for fragment in fragments]


def append_fragments(store: Path, fragments: Sequence[str], next_id: int) -> int:
    """Numbers the rows of fragments from `next_id` on and adds all of them in one commit.

    Returns the id after the last one. Raises SightlineError if the fragments are not in the store,
    which then lies where the workers' machines have another disk.
    """
    import lance
    from lance.fragment import FragmentMetadata

    dataset = open_lance_dataset(store)
    numbered_fragments: list[FragmentMetadata] = []
    for text in fragments:
        fragment = FragmentMetadata.from_json(text)
        for file in fragment.files:
            if not get_data_path(store, file.path).exists():
                raise SightlineError(
                    f"what a worker wrote is not in {store}; "
                    "the store must lie on a file system that all nodes share"
                )
        id_file = write_id_column(dataset, store, next_id, fragment.physical_rows)
        fragment.files = [id_file, *fragment.files]
        next_id += fragment.physical_rows
        numbered_fragments.append(fragment)

    operation = lance.LanceOperation.Append(numbered_fragments)
    lance.LanceDataset.commit(dataset.uri, operation, read_version=dataset.version)
    return next_id


def write_id_column(dataset: Any, store: Path, first_id: int, count: int) -> Any:
    """Writes the ids of one fragment's rows into a file of their own."""
    import pyarrow as pa
    from lance.file import LanceFileWriter
    from lance.fragment import DataFile

    schema = pa.schema([dataset.schema.field(ID_COLUMN)])
    ids = pa.array(range(first_id, first_id + count), schema.field(0).type)
    version = dataset.data_storage_version
    name = f"{uuid.uuid4().hex}.lance"
    path = get_data_path(store, name)
    with LanceFileWriter(str(path), schema, version=version) as file:
        file.write_batch(pa.record_batch([ids], schema=schema))

    fields = dataset.lance_schema.fields()
    field_id = next(field.id() for field in fields if field.name() == ID_COLUMN)
    major, minor = map(int, version.split("."))
    return DataFile(name, [field_id], [0], major, minor, path.stat().st_size)


def remove_stale_fragments(store: Path) -> None:
    """Removes old versions of the table, and fragments that nobody committed."""
    open_lance_dataset(store).cleanup_old_versions(timedelta(0), delete_unverified=True)


def open_lance_dataset(store: Path) -> Any:
    """The table of images, opened by Lance itself."""
    import lance

    return lance.dataset(str(store / f"{IMAGES_TABLE}.lance"))


def get_data_path(store: Path, name: str) -> Path:
    """The path of one of the table's data files."""
    return store / f"{IMAGES_TABLE}.lance" / "data" / name
