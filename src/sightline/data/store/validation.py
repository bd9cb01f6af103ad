"""Checks of what a store on disk holds, before it is used: anybody may have made or damaged it.

Numbers of the description are checked by its own types. Here are the JSON files as such, and
tensors and columns, which have to agree with the description and with the progress.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor

from sightline.data.store.description import (
    RESPONSE_PREFIXES,
    STORE_FORMAT,
    STORE_VERSION,
    ScanDescription,
)
from sightline.data.store.interface import ArrowArray, ScanProgress, VectorIndex, select_units
from sightline.errors import SightlineError

MAX_JSON_BYTES = 100_000_000
MAX_JSON_DEPTH = 32

MAX_LISTED_LABELS = 5  # of the network's best classes, as many are kept for each image

LABEL_COLUMNS = ("labels", "probabilities")  # of lists, a value for each of these labels
VECTOR_PREFIX = "vector_"  # of the names of columns of mean features

FLOAT16_EXPONENT = 0x7C00  # the bits that are all set in NaN and infinity

# Progress as it stands in the metadata of the state file: numbers as text.
PROGRESS_ADAPTER = TypeAdapter(dict[str, Annotated[int, Field(ge=0, le=2**48)]])

INDEXES_ADAPTER = TypeAdapter(dict[str, VectorIndex])

# Names of types in the header of a safetensors file.
STATE_DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.int32: "I32"}


def make_damage_error(path: Path, problem: str) -> SightlineError:
    """The error for a store with something that no scan writes."""
    return SightlineError(f"the store {path} is damaged: {problem}")


# ── JSON ──


def read_json_file(file: Path) -> Any:
    """The content of a JSON file.

    Raises OSError if it can't be read, ValueError if it is not JSON, too large or nested too deep.
    """
    if file.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"more than {MAX_JSON_BYTES / 1e6:.0f} MB")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    require_shallow(content, MAX_JSON_DEPTH)
    return content


def require_shallow(content: Any, max_depth: int) -> None:
    """Raises ValueError for JSON that is nested deeper than `max_depth`."""
    level = [content]
    for _ in range(max_depth):
        next_level: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                next_level += value.values()
            elif isinstance(value, list):
                next_level += value
        level = next_level
        if not level:
            return
    raise ValueError("nested too deep")


def parse_description(path: Path, content: Any) -> ScanDescription:
    """The description in the content of a `scan.json`.

    Raises SightlineError if it is something else, of a newer version or damaged.
    """
    header = content if isinstance(content, dict) else {}
    version = header.get("version")
    # To Python, True is a number.
    if header.get("format") != STORE_FORMAT or type(version) is not int or version < 1:
        raise SightlineError(f"{path} is no store: its scan.json is something else")
    if version > STORE_VERSION:
        raise SightlineError(
            f"the store {path} was made by a newer version "
            f"(layout {version}; this one reads {STORE_VERSION})"
        )
    try:
        return ScanDescription.from_json(header)
    except ValidationError as error:
        reason = describe_validation_error(error)
        raise make_damage_error(path, f"scan.json can't be read ({reason})") from error


def describe_validation_error(error: ValidationError) -> str:
    """The first error in one line: where it is, and what is wrong there."""
    first = error.errors()[0]
    location = ".".join(map(str, first["loc"]))
    return f"{location:.80}: {first['msg']:.200}"


def parse_indexes(content: Any) -> dict[str, VectorIndex]:
    """The indexes in the content of an `index.json`.

    Raises pydantic.ValidationError if it is damaged.
    """
    return INDEXES_ADAPTER.validate_python(content)


def parse_progress(path: Path, metadata: Mapping[str, str] | None) -> ScanProgress:
    """The progress in the metadata of a state file. Raises SightlineError if it is damaged."""
    try:
        counts = PROGRESS_ADAPTER.validate_python(metadata or {})
        progress = ScanProgress(
            done=counts["done"],
            images=counts["images"],
            errors=counts["errors"],
            complete=bool(counts["complete"]),
        )
    except (ValidationError, KeyError) as error:
        raise make_damage_error(path, "state.safetensors does not tell the progress") from error
    if progress.images + progress.errors > progress.done:
        raise make_damage_error(
            path,
            f"{progress.images} images and {progress.errors} errors of only {progress.done} files",
        )
    return progress


# ── tensors ──


def list_state_tensors(
    description: ScanDescription,
) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Type and shape of each tensor of a state file."""
    units = description.unit_count
    classes = len(description.class_names)
    top = (units, description.k)
    sample = (description.sample_size,)
    sample_units = (description.sample_size, units)
    class_top = (classes, units, description.class_k)
    return {
        "top.values": (torch.float32, top),
        "top.ids": (torch.int32, top),
        "top.places": (torch.int32, top),
        "sample.ids": (torch.int32, sample),
        "sample.positions": (torch.int32, sample),
        "sample.values": (torch.float32, sample_units),
        "sample.places": (torch.int32, sample_units),
        "class.values": (torch.float32, class_top),
        "class.ids": (torch.int32, class_top),
        "class.places": (torch.int32, class_top),
        "class.sums": (torch.float64, (classes, units)),
        "class.counts": (torch.float64, (classes,)),
    }


def check_state_layout(path: Path, state: Any, description: ScanDescription) -> None:
    """Raises SightlineError unless the tensors of an opened state file are those of the scan.

    Reads no more than the file's header. What is missing is an error for who reads it.
    """
    names = set(state.keys())
    for name, (dtype, shape) in list_state_tensors(description).items():
        if name not in names:
            continue
        tensor = state.get_slice(name)
        stored_type = tensor.get_dtype()
        stored_shape = tuple(tensor.get_shape())
        if stored_type != STATE_DTYPES[dtype] or stored_shape != shape:
            raise make_damage_error(
                path,
                f"{name} is {stored_type} of shape {stored_shape}; "
                f"it must be {STATE_DTYPES[dtype]} of shape {shape}",
            )


def find_state_problem(
    name: str,
    tensor: Tensor,
    description: ScanDescription,
    progress: ScanProgress,
    units: slice | None = None,
) -> str | None:
    """What is wrong with the values of a state tensor, or with its part of some units."""
    kind = name.split(".")[1]
    if kind == "values":
        return f"{name} holds NaN" if bool(tensor.isnan().any()) else None
    if kind in ("sums", "counts"):
        return None if bool(tensor.isfinite().all()) else f"{name} is not finite"
    limit: int | Tensor
    if kind == "places":
        limit = count_unit_places(description)[units or slice(None)]
        if name.startswith("top."):
            limit = limit[:, None]
        elif name.startswith("class."):
            limit = limit[None, :, None]
    else:
        limit = progress.done if kind == "positions" else progress.images
    if bool(((tensor < -1) | (tensor >= limit)).any()):
        nouns = {"ids": "images", "positions": "files", "places": "positions outside the maps"}
        suffix = "" if kind == "places" else " that are not in the store"
        return f"{name} names {nouns[kind]}{suffix}"
    return None


def count_unit_places(description: ScanDescription) -> Tensor:
    """Positions of the map of each unit, U."""
    counts: list[Tensor] = [torch.empty(0, dtype=torch.long)]
    for layer in description.layers.values():
        height, width = layer.map_shape
        counts.append(torch.full((layer.units,), height * width))
    return torch.cat(counts)


def select_checked_units(
    path: Path,
    name: str,
    state: Any,
    *,
    description: ScanDescription,
    progress: ScanProgress,
    units: slice | None = None,
) -> Tensor:
    """The part of a tensor of an opened state file that belongs to some units.

    Raises SightlineError if it is missing or damaged.
    """
    names = set(state.keys())
    if name not in names:
        raise make_damage_error(path, f"state.safetensors has no {name}")
    selected = select_units(name, state.get_slice(name), units)
    problem = find_state_problem(name, selected, description, progress, units)
    if problem is not None:
        raise make_damage_error(path, problem)
    return selected


# ── columns ──


def find_schema_problem(schema: Any, expected_schema: Any) -> str | None:
    """What a table's columns lack of those that a scan writes; others may stand beside them."""
    for field in expected_schema:
        indices = schema.get_all_field_indices(field.name)
        if len(indices) != 1:
            return f"{len(indices)} columns {field.name}"
        stored_type = schema.field(indices[0]).type
        if stored_type != field.type:
            return f"{field.name} holds {stored_type}, not {field.type}"
    return None


def find_column_problems(
    rows: Any, description: ScanDescription, progress: ScanProgress
) -> list[str]:
    """What is wrong with the values of some columns of images, a table or a batch."""
    problems: list[str] = []
    for name in rows.schema.names:
        column = rows[name]
        chunks = column.chunks if hasattr(column, "chunks") else [column]
        for chunk in chunks:
            problem = find_chunk_problem(name, chunk, description, progress)
            if problem is not None:
                problems.append(problem)
                break
    return problems


def find_chunk_problem(
    name: str, chunk: ArrowArray, description: ScanDescription, progress: ScanProgress
) -> str | None:
    """What is wrong with a piece of a column of images."""
    if not len(chunk):
        return None
    if chunk.null_count:
        return f"{name} is missing in {chunk.null_count} rows"
    is_label = name in LABEL_COLUMNS
    label_count = min(MAX_LISTED_LABELS, len(description.model_labels))
    if is_label and not has_list_length(chunk, label_count):
        return f"{name} does not hold {label_count} values in each row"

    is_feature = name.startswith((VECTOR_PREFIX, *RESPONSE_PREFIXES.values()))
    numbers = chunk.flatten() if is_feature or is_label else chunk
    if numbers.null_count:
        return f"{name} holds rows with missing numbers"
    if is_feature:
        return None if is_finite(numbers) else f"{name} holds values that are not finite"
    limits = list_column_limits(description, progress)
    return find_range_problem(name, numbers, limits[name]) if name in limits else None


def has_list_length(lists: ArrowArray, length: int) -> bool:
    """Whether each list of a column of lists, which has rows, has so many values."""
    import pyarrow.compute

    compute: Any = pyarrow.compute  # makes its functions when it is imported
    lengths = compute.min_max(compute.list_value_length(lists)).as_py()
    return lengths["min"] == lengths["max"] == length


def find_range_problem(name: str, numbers: ArrowArray, limits: tuple[int, int]) -> str | None:
    """What to say of numbers that go beyond their limits, both of which are allowed."""
    import pyarrow.compute

    if not len(numbers):
        return None
    compute: Any = pyarrow.compute
    extremes = compute.min_max(numbers).as_py()
    lowest, highest = limits
    if lowest <= extremes["min"] and extremes["max"] <= highest:
        return None
    return (
        f"{name} goes from {extremes['min']} to {extremes['max']}; "
        f"it must lie between {lowest} and {highest}"
    )


def list_column_limits(
    description: ScanDescription, progress: ScanProgress
) -> dict[str, tuple[int, int]]:
    """The smallest and largest value of the columns of integers."""
    largest = 2**31 - 1
    return {
        "id": (0, progress.images - 1),
        "position": (0, progress.done - 1),
        "class": (-1, len(description.class_names) - 1),
        "height": (1, largest),
        "width": (1, largest),
        "labels": (0, len(description.model_labels) - 1),
    }


def is_finite(numbers: ArrowArray) -> bool:
    """Whether all numbers are finite. Takes no memory, in contrast to a mask of them."""
    values = numbers.to_numpy(zero_copy_only=False)
    if values.dtype == np.float16:
        # Comparing half precision numbers takes five times as long as looking at their bits.
        exponents = values.view(np.uint16) & FLOAT16_EXPONENT
        return not len(values) or bool(exponents.max() < FLOAT16_EXPONENT)
    return not len(values) or bool(np.isfinite(values.min()) and np.isfinite(values.max()))
