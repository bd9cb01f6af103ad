"""What a store holds, whether it is whole, and how it is made smaller."""

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sightline.data.store.description import STORE_VERSION
from sightline.data.store.interface import (
    THUMBNAIL_SIZE,
    ArrowBatch,
    ScanStore,
    convert_to_tensor,
    make_images_schema,
    round_responses,
)
from sightline.data.store.reader import Scan
from sightline.data.store.validation import (
    find_column_problems,
    find_state_problem,
    list_state_tensors,
)
from sightline.errors import (
    SightlineError,
    get_first_error_line,
    is_out_of_memory,
    make_memory_error,
)
from sightline.images.decode.picture import decode_as_rgb

VERIFY_BATCH_ROWS = 1000  # rows checked together

MAX_PROBABILITY = 1.0001  # of a softmax, rounded

# What `verify_store` can't know without the images and the network.
UNCHECKED_PARTS = (
    "whether the images are still those that were scanned",
    "whether responses, features and classes are those of the network",
    "whether an index finds what it should",
)


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
        "responses": list(description.response_kinds),
        "k": description.k,
        "classes": scan.class_names,
        "collection": asdict(description.dataset),
        "indexes": {layer: asdict(index) for layer, index in indexes.items()},
        "version": STORE_VERSION,
        "bytes": scan.reader.count_bytes(),
    }


def verify_store(path: str | Path | ScanStore) -> list[str]:
    """Everything that is wrong with a store, a line each; empty if it is whole.

    Reads all of it once. `UNCHECKED_PARTS` says what can't be known without the images.
    """
    scan = Scan.open(path)
    if not scan.done:
        return check_beginning(scan)
    row_problems = run_checks(scan, [check_image_rows])
    checks = [check_progress, check_state_tensors, check_unit_order]
    if not row_problems:
        checks += [check_error_rows, check_sampled_images, check_class_counts, check_responses]
    return [*row_problems, *run_checks(scan, checks)]


def run_checks(scan: Scan, checks: Sequence[Callable[[Scan], list[str]]]) -> list[str]:
    """What the checks find, each problem once. A check that can't go on is a problem.

    Raises SightlineError where there is no memory left, which tells nothing of the store.
    """
    problems: list[str] = []
    for check in checks:
        try:
            problems += check(scan)
        except (SightlineError, OSError, RuntimeError, ValueError) as error:
            if is_out_of_memory(error):
                raise make_memory_error("to check the store", "the load of the machine") from error
            problems.append(get_first_error_line(error))
    return list(dict.fromkeys(problems))


def compact_store(path: str | Path | ScanStore) -> tuple[int, int]:
    """Merges the pieces of a store's tables and drops left-overs; bytes before and after.

    Raises SightlineError while another process writes the store, and without room on the disk.
    """
    scan = Scan.open(path)
    bytes_before = scan.reader.count_bytes()
    with scan.store.open_writer(scan.description) as writer:
        writer.compact()
    return bytes_before, scan.reader.count_bytes()


# ── what can be wrong ──


def check_beginning(scan: Scan) -> list[str]:
    """What is wrong with a store before its first commit: images that no commit counts."""
    row_count = scan.reader.count_left_overs()
    if not row_count:
        return []
    return [f"{row_count} images are in no commit, as if its state were deleted: scan again"]


def check_progress(scan: Scan) -> list[str]:
    """What is wrong with the counts of the last commit."""
    problems: list[str] = []
    file_count = scan.description.dataset.count
    if scan.done > file_count:
        problems.append(f"{scan.done} files are done, of {file_count} in the dataset")
    if scan.complete and scan.done < file_count:
        problems.append(f"it is complete with {scan.done} of {file_count} files")
    return problems


def check_image_rows(scan: Scan) -> list[str]:
    """What is wrong with the rows of the images."""
    schema = make_images_schema(scan.description)
    problems: list[str] = []
    ids: list[int] = []
    for batch in scan.reader.iterate_images(schema.names, VERIFY_BATCH_ROWS):
        ids += batch["id"].to_pylist()
        batch_problems = find_column_problems(batch, scan.description, scan.reader.progress)
        problems += batch_problems
        if not batch_problems:
            problems += check_row_values(batch)

    if len(ids) != scan.images:
        problems.append(f"the table of images has {len(ids)} of {scan.images} images")
    elif not problems and sorted(ids) != list(range(scan.images)):
        problems.append(f"the table of images has {len(ids)} rows; the state counts {scan.images}")
    elif not problems:
        positions = convert_to_tensor(scan.read_column("position"))
        if bool((positions.diff() <= 0).any()):
            problems.append("the images are not in the order of the dataset")
    return problems


def check_row_values(rows: ArrowBatch) -> list[str]:
    """What is wrong with thumbnails, digests and probabilities of some images."""
    problems: list[str] = []
    for row in rows.select(["id", "thumbnail", "sha256", "probabilities"]).to_pylist():
        try:
            picture, _, _ = decode_as_rgb(row["thumbnail"], THUMBNAIL_SIZE)
            if max(picture.size) > THUMBNAIL_SIZE:
                problems.append(f"the thumbnail of image {row['id']} is too large")
        except SightlineError as error:
            problems.append(f"the thumbnail of image {row['id']} is broken ({error})")
        if not re.fullmatch("([0-9a-f]{64})?", row["sha256"]):
            problems.append(f"the digest of image {row['id']} is none")
        # Written so that NaN is a problem, too.
        if not all(0 <= probability <= MAX_PROBABILITY for probability in row["probabilities"]):
            problems.append(f"the probabilities of image {row['id']} do not lie between 0 and 1")
    return problems


def check_error_rows(scan: Scan) -> list[str]:
    """Whether every file is either an image or an error, and once."""
    missing = scan.done - scan.images - len(scan.errors)
    if missing:
        return [f"{missing} files are neither images nor errors"]
    positions = [error.position for error in scan.reader.read_errors()]
    positions += scan.read_column("position").to_pylist()
    if sorted(positions) != list(range(scan.done)):
        return ["a file is both an image and an error, or twice one of them"]
    return []


def check_state_tensors(scan: Scan) -> list[str]:
    """What is wrong with the values of the state. Ids of strongest images are checked by layer."""
    problems: list[str] = []
    for name in list_state_tensors(scan.description):
        if name == "top.ids":
            continue
        try:
            tensor = scan.reader.read_state(name)
        except KeyError:
            problems.append(f"the state has no {name}")
            continue
        problem = find_state_problem(name, tensor, scan.description, scan.reader.progress)
        if problem is not None:
            problems.append(problem)
    return problems


def check_unit_order(scan: Scan) -> list[str]:
    """What is wrong with the units' strongest images."""
    problems: list[str] = []
    for layer in scan.layers:
        values, ids, _ = scan.top(layer)
        if bool((values[1:] > values[:-1]).any()):
            problems.append(f"the strongest images of {layer} are out of order")
        if bool(((ids >= scan.images) | (ids < -1)).any()):
            problems.append(f"{layer} names images that are not in the store")
        if bool(((ids == -1) != (values == -torch.inf)).any()):
            problems.append(f"{layer} has responses without an image, or images without one")
        sorted_ids = ids.sort(dim=0).values
        if bool(((sorted_ids[1:] == sorted_ids[:-1]) & (sorted_ids[1:] >= 0)).any()):
            problems.append(f"{layer} names an image twice for the same unit")
    return problems


def check_sampled_images(scan: Scan) -> list[str]:
    """Whether the sample is of different images, and knows where they are in the dataset."""
    ids = scan.reader.read_state("sample.ids").long()
    positions = scan.reader.read_state("sample.positions").long()
    is_filled = ids >= 0
    filled_ids = ids[is_filled]
    expected_positions = torch.full_like(ids, -1)
    stored_positions = convert_to_tensor(scan.read_column("position"))
    expected_positions[is_filled] = stored_positions[filled_ids]
    if not positions.equal(expected_positions) or len(filled_ids.unique()) != len(filled_ids):
        return ["the sample does not say which images it is of"]
    return []


def check_class_counts(scan: Scan) -> list[str]:
    """Whether the state counts as many images of each class as there are."""
    if scan.classes is None:
        return []
    known_classes = scan.classes[scan.classes >= 0]
    counts = known_classes.bincount(minlength=len(scan.class_names))
    if not counts.double().equal(scan.reader.read_state("class.counts")):
        return ["the state counts other numbers of images of the classes"]
    return []


def check_responses(scan: Scan) -> list[str]:
    """Whether the stored responses to the units' strongest images are those of the state."""
    if not scan.has_responses:
        return []
    problems: list[str] = []
    for layer in scan.layers:
        top = scan.top(layer)
        first_id = 0
        for responses in scan.iterate_responses(layer):
            in_block = (top.ids >= first_id) & (top.ids < first_id + len(responses))
            ranks, units = in_block.nonzero(as_tuple=True)
            stored = responses[top.ids[ranks, units] - first_id, units]
            expected = round_responses(top.values[ranks, units]).numpy()
            if not np.array_equal(stored, expected):
                problems.append(f"the responses of {layer} are not those of its strongest images")
                break
            first_id += len(responses)
    return problems
