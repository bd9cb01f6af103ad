"""What a store holds, whether it is whole, and how it is made smaller."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from sightline.data.store.description import STORE_VERSION
from sightline.data.store.interface import THUMBNAIL_SIZE, ScanStore, convert_to_tensor
from sightline.data.store.reader import Scan
from sightline.errors import SightlineError, get_first_error_line
from sightline.images.decode.picture import decode_as_rgb

VERIFY_BATCH_ROWS = 1000  # rows checked together


def summarize_store(path: str | Path | ScanStore) -> dict[str, Any]:
    """Facts of a store, JSON-able. Raises SightlineError as `Scan.open` does."""
    scan = Scan.open(path)
    description = scan.description
    indexes = scan.reader.read_indexes()
    return {
        "images": scan.images,
        # Before the first commit there may not be a table of errors yet.
        "errors": len(scan.errors) if scan.done else 0,
        "complete": scan.complete,
        "done": scan.done,
        "model": scan.recipe.get("model"),
        "recipe": scan.recipe,
        "network": scan.network,
        "layers": {name: layer.units for name, layer in description.layers.items()},
        "vectors": description.vector_lengths,
        "k": description.k,
        "classes": scan.class_names,
        "collection": asdict(description.dataset),
        "indexes": {layer: asdict(index) for layer, index in indexes.items()},
        "version": STORE_VERSION,
        "bytes": scan.reader.count_bytes(),
    }


def verify_store(path: str | Path | ScanStore) -> list[str]:
    """Everything that is wrong with a store, a line each; empty if it is whole.

    Reads all of it once.
    """
    scan = Scan.open(path)
    if not scan.done:
        return []
    problems: list[str] = []
    for check in (check_image_rows, check_error_count, check_unit_order):
        try:
            problems += check(scan)
        except (SightlineError, OSError, RuntimeError, ValueError) as error:
            problems.append(get_first_error_line(error))
    return problems


def compact_store(path: str | Path | ScanStore) -> tuple[int, int]:
    """Merges the pieces of a store's tables and drops left-overs; bytes before and after.

    Raises SightlineError while another process writes the store, and without room on the disk.
    """
    scan = Scan.open(path)
    bytes_before = scan.reader.count_bytes()
    with scan.store.open_writer(scan.description) as writer:
        writer.compact()
    return bytes_before, scan.reader.count_bytes()


def check_image_rows(scan: Scan) -> list[str]:
    """What is wrong with the rows of the images."""
    vector_columns = scan.description.vector_columns.values()
    columns = ["id", "thumbnail", *vector_columns]
    problems: list[str] = []
    row_count = 0
    for batch in scan.reader.iterate_images(columns, VERIFY_BATCH_ROWS):
        row_count += len(batch)
        for row in batch.select(["id", "thumbnail"]).to_pylist():
            try:
                decode_as_rgb(row["thumbnail"], THUMBNAIL_SIZE)
            except SightlineError as error:
                problems.append(f"the thumbnail of image {row['id']} is broken ({error})")
        for column in vector_columns:
            numbers = convert_to_tensor(batch[column].flatten())
            if not bool(numbers.isfinite().all()):
                problems.append(f"{column} holds values that are not finite")

    has_all_ids = row_count == scan.images
    if not problems:
        ids = sorted(scan.read_column("id").to_pylist())
        has_all_ids = has_all_ids and ids == list(range(scan.images))
    if not has_all_ids:
        problems.append(f"the table of images has {row_count} rows; the state counts {scan.images}")
    return list(dict.fromkeys(problems))


def check_error_count(scan: Scan) -> list[str]:
    """Whether every file is either an image or an error."""
    missing = scan.done - scan.images - len(scan.errors)
    return [f"{missing} files are neither images nor errors"] if missing else []


def check_unit_order(scan: Scan) -> list[str]:
    """What is wrong with the units' strongest images."""
    problems: list[str] = []
    for layer in scan.layers:
        values, ids, _ = scan.top(layer)
        if bool((values[1:] > values[:-1]).any()):
            problems.append(f"the strongest images of {layer} are out of order")
        if bool((ids >= scan.images).any()):
            problems.append(f"{layer} names images that are not in the store")
    return problems
