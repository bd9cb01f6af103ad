"""What a store holds, whether it is whole, and how it is made smaller."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from sightline.data.store.index import read_store_indexes
from sightline.data.store.reader import Scan, open_store_table
from sightline.data.store.schema import IMAGES_TABLE, THUMBNAIL_SIZE, read_store_facts
from sightline.data.store.writer import StoreWriter, lock_store
from sightline.errors import SightlineError, get_first_error_line
from sightline.images.decode import decode_as_rgb

VERIFY_BATCH_ROWS = 1000  # rows looked at together


def summarize_store(path: str | Path) -> dict[str, Any]:
    """Facts of a store, JSON-able. Raises SightlineError as `Scan.open` does."""
    found = Scan.open(path)
    facts = found.facts
    return {
        "images": found.images,
        "errors": len(found.errors) if found.done else 0,
        "complete": found.complete,
        "done": found.done,
        "model": found.recipe.get("model"),
        "recipe": found.recipe,
        "network": found.network,
        "layers": {name: layer["units"] for name, layer in facts["layers"].items()},
        "vectors": facts["vectors"],
        "k": facts["k"],
        "classes": found.class_names,
        "collection": facts["collection"],
        "indexes": {name: asdict(index) for name, index in read_store_indexes(found).items()},
        "version": facts["version"],
        "bytes": sum(file.stat().st_size for file in found.path.rglob("*") if file.is_file()),
    }


def verify_store(path: str | Path) -> list[str]:
    """Everything that is wrong with a store, a line each; empty if it is whole. Reads all of it once."""
    found = Scan.open(path)
    if not found.done:
        return []
    wrong: list[str] = []
    for check in (_check_image_rows, _check_error_count, _check_unit_order):
        try:
            wrong += check(found)
        except (SightlineError, OSError, RuntimeError, ValueError) as error:
            wrong.append(get_first_error_line(error))
    return wrong


def compact_store(path: str | Path) -> tuple[int, int]:
    """Merges the pieces of a store's tables and drops left-overs; bytes before and after. Raises SightlineError while it is written."""
    before = summarize_store(path)
    with lock_store(Path(path)):
        StoreWriter(Path(path), read_store_facts(Path(path))).compact_tables()
    return before["bytes"], summarize_store(path)["bytes"]


def _check_image_rows(scan: Scan) -> list[str]:
    columns = [
        "id",
        "thumbnail",
        *(f"vector_{number}" for number in range(len(scan.facts["vectors"]))),
    ]
    seen, wrong = 0, []
    query = (
        open_store_table(scan.path, IMAGES_TABLE)
        .search()
        .where(f"id < {scan.images}")
        .select(columns)
    )
    for batch in query.to_batches(VERIFY_BATCH_ROWS):
        for row in batch.select(["id", "thumbnail"]).to_pylist():
            seen += 1
            try:
                decode_as_rgb(row["thumbnail"], THUMBNAIL_SIZE)
            except SightlineError as error:
                wrong.append(f"the thumbnail of image {row['id']} is broken ({error})")
        for name in columns[2:]:
            if not bool(
                torch.from_numpy(batch[name].flatten().to_numpy(zero_copy_only=False).copy())
                .isfinite()
                .all()
            ):
                wrong.append(f"{name} holds values that are no numbers")
    ids = sorted(scan.read_column("id").to_pylist()) if not wrong else []
    if seen != scan.images or (ids and ids != list(range(scan.images))):
        wrong.append(f"the table of images has {seen} rows; the state tells of {scan.images}")
    return list(dict.fromkeys(wrong))


def _check_error_count(scan: Scan) -> list[str]:
    missing = scan.done - scan.images - len(scan.errors)
    return [f"{missing} files are neither images nor errors"] if missing else []


def _check_unit_order(scan: Scan) -> list[str]:
    wrong: list[str] = []
    for layer in scan.layers:
        values, ids, _ = scan.top(layer)
        if bool((values[1:] > values[:-1]).any()):
            wrong.append(f"the strongest images of {layer} are out of order")
        if bool((ids >= scan.images).any()):
            wrong.append(f"{layer} names images that are not in the store")
    return wrong
