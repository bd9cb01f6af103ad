"""Rows as Lance fragments: workers of a cluster write them beside a store's table, the driver numbers the images and commits.

A worker can't know how many images before its own could be read, so it leaves the column of numbers out; the driver, who knows,
adds it to each fragment as a file of its own. What nobody commits (a worker died) is in no version of the table and is removed at the end.
"""

import json
import uuid
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from sightline.data.store.schema import IMAGES_TABLE
from sightline.errors import SightlineError

ID_COLUMN = "id"


def write_image_fragments(store: Path, rows: Any) -> list[str]:
    """Writes rows without numbers; what the driver must know of the fragments, JSON."""
    from lance.fragment import write_fragments

    dataset = open_lance_dataset(store)
    version = dataset.data_storage_version
    found = write_fragments(
        rows.drop_columns([ID_COLUMN]), dataset, mode="append", data_storage_version=version
    )
    return [json.dumps(fragment.to_json()) for fragment in found]


def append_fragments(store: Path, fragments: Sequence[str], next_id: int) -> int:
    """Numbers the rows of fragments from `first` on and adds all to the table in one commit; the number after the last.

    Raises SightlineError if they are not here: then the store lies where the workers' machines have another disk.
    """
    import lance
    from lance.fragment import FragmentMetadata

    dataset = open_lance_dataset(store)
    whole: list[FragmentMetadata] = []
    for text in fragments:
        fragment = FragmentMetadata.from_json(text)
        if not all(
            (store / f"{IMAGES_TABLE}.lance" / "data" / file.path).exists()
            for file in fragment.files
        ):
            raise SightlineError(
                f"what a worker wrote is not in {store}; the store must lie on a file system that all nodes share"
            )
        fragment.files = [
            write_id_column(dataset, store, next_id, fragment.physical_rows),
            *fragment.files,
        ]
        next_id += fragment.physical_rows
        whole.append(fragment)
    lance.LanceDataset.commit(
        dataset.uri, lance.LanceOperation.Append(whole), read_version=dataset.version
    )
    return next_id


def write_id_column(dataset: Any, store: Path, first_id: int, count: int) -> Any:
    """A file with the column of numbers of one fragment."""
    from lance.file import LanceFileWriter
    from lance.fragment import DataFile

    schema = pa.schema([dataset.schema.field(ID_COLUMN)])
    version, name = dataset.data_storage_version, f"{uuid.uuid4().hex}.lance"
    path = store / f"{IMAGES_TABLE}.lance" / "data" / name
    with LanceFileWriter(str(path), schema, version=version) as file:
        file.write_batch(
            pa.record_batch(
                [pa.array(range(first_id, first_id + count), schema.field(0).type)], schema=schema
            )
        )
    field = next(field.id() for field in dataset.lance_schema.fields() if field.name() == ID_COLUMN)
    major, minor = map(int, version.split("."))
    return DataFile(name, [field], [0], major, minor, path.stat().st_size)


def remove_stale_fragments(store: Path) -> None:
    """Removes old versions of the table, and fragments that nobody committed."""
    open_lance_dataset(store).cleanup_old_versions(timedelta(0), delete_unverified=True)


def open_lance_dataset(store: Path) -> Any:
    """The table of images, by Lance itself."""
    import lance

    return lance.dataset(str(store / f"{IMAGES_TABLE}.lance"))
