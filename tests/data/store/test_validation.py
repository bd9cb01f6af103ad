"""What is checked of a store's content: each kind of damage is named, and sound content passes."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sightline.data.store.description import (
    DatasetDescription,
    LayerDescription,
    NetworkDescription,
    ScanDescription,
)
from sightline.data.store.interface import ScanProgress, make_images_schema
from sightline.data.store.validation import (
    MAX_JSON_DEPTH,
    check_state_layout,
    count_unit_places,
    find_column_problems,
    find_schema_problem,
    find_state_problem,
    list_state_tensors,
    parse_description,
    parse_indexes,
    parse_progress,
    read_json_file,
    select_checked_units,
)
from sightline.errors import SightlineError

PROGRESS = ScanProgress(done=6, images=4, errors=2)
STORE = Path("out.scan")


def make_description() -> ScanDescription:
    """Two layers of 2 and 3 units, two classes, a vector of three numbers."""
    return ScanDescription(
        recipe={"model": "net"},
        network=NetworkDescription("ab" * 32, (0.5,), (0.5,), size=(32, 32), short_side=36),
        model_labels=("cat", "dog", "fox"),
        aliases={},
        layers={"conv": LayerDescription(2, (4, 5)), "fc": LayerDescription(3, (1, 1))},
        vector_lengths={"fc": 3},
        k=2,
        class_k=1,
        sample_size=3,
        batch_size=2,
        dataset=DatasetDescription("Files", "/photos", 6, "cd" * 32),
        class_names=("ant", "bee"),
        response_kinds=("max", "mean"),
    )


DESCRIPTION = make_description()


# ── JSON ──


def test_json_is_read_with_its_letters(tmp_path: Path) -> None:
    content = {"é": [1, None, True], "深": {"x": 0.5}}
    file = tmp_path / "a.json"
    file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    assert read_json_file(file) == content


def nest(depth: int) -> str:
    """Lists and dictionaries in each other by turns, so many of them."""
    text = "1"
    for level in range(depth):
        text = f"[{text}]" if level % 2 else f'{{"a": {text}}}'
    return text


@pytest.mark.parametrize("depth", [1, MAX_JSON_DEPTH - 1])
def test_json_may_be_nested(depth: int, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(nest(depth), encoding="utf-8")
    assert read_json_file(tmp_path / "a.json") == json.loads(nest(depth))


@pytest.mark.parametrize("depth", [MAX_JSON_DEPTH + 1, 100_000])
def test_json_nested_too_deep_is_refused(depth: int, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(nest(depth), encoding="utf-8")
    with pytest.raises(ValueError, match="nested too deep"):
        read_json_file(tmp_path / "a.json")


def test_a_huge_json_file_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "a.json", "wb") as file:
        file.truncate(100_000_001)  # takes no room on the disk
    with pytest.raises(ValueError, match="more than 100 MB"):
        read_json_file(tmp_path / "a.json")


def test_a_description_is_that_of_its_json() -> None:
    assert parse_description(STORE, DESCRIPTION.to_json()) == DESCRIPTION


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "out.scan is no store"),
        ({"version": True}, "out.scan is no store"),
        ({"version": 0}, "out.scan is no store"),
        ({"version": 2}, r"newer version \(layout 2; this one reads 1\)"),
        ({"k": -1}, r"damaged: scan.json can't be read \(k: "),
        ({"network": {}}, r"can't be read \(network.weights: "),
    ],
)
def test_other_descriptions_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SightlineError, match=message):
        parse_description(STORE, {**DESCRIPTION.to_json(), **change})


@pytest.mark.parametrize("content", [None, [], "scan", 3])
def test_json_that_is_no_object_is_no_description(content: Any) -> None:
    with pytest.raises(SightlineError, match="is no store"):
        parse_description(STORE, content)


def test_progress_from_the_texts_of_the_metadata() -> None:
    metadata = {"done": "6", "images": "4", "errors": "2", "complete": "1", "format": "1"}
    assert parse_progress(STORE, metadata) == ScanProgress(6, 4, 2, complete=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"done": "five"}, "does not tell the progress"),
        ({"images": "-1"}, "does not tell the progress"),
        ({"images": "5"}, "5 images and 2 errors of only 6 files"),
        ({"done": str(2**48 + 1)}, "does not tell the progress"),
    ],
)
def test_other_progress_is_damage(change: dict[str, str], message: str) -> None:
    metadata = {"done": "6", "images": "4", "errors": "2", "complete": "0", **change}
    with pytest.raises(SightlineError, match=message):
        parse_progress(STORE, metadata)
    del metadata["complete"]
    with pytest.raises(SightlineError, match="does not tell the progress"):
        parse_progress(STORE, metadata)
    with pytest.raises(SightlineError, match="does not tell the progress"):
        parse_progress(STORE, None)


def test_indexes_have_all_their_numbers() -> None:
    numbers = {
        "images": 9, "metric": "cosine", "lists": 3, "codes": 4, "probes": 2, "refine": 5,
        "recall": 0.75, "sample": 8, "seconds": 1.5,
    }  # fmt: skip
    index = parse_indexes({"fc": numbers})["fc"]
    assert (index.images, index.metric, index.recall) == (9, "cosine", 0.75)
    for change in ({"metric": "hamming"}, {"lists": -1}, {"recall": float("nan")}):
        with pytest.raises(ValidationError):
            parse_indexes({"fc": {**numbers, **change}})


# ── tensors ──


def make_state() -> dict[str, Tensor]:
    """Tensors of a sound state file: every index is that of an image, file or position."""
    return {
        name: torch.zeros(shape, dtype=dtype)
        for name, (dtype, shape) in list_state_tensors(DESCRIPTION).items()
    }


def test_each_unit_has_the_positions_of_its_map() -> None:
    assert count_unit_places(DESCRIPTION).tolist() == [20, 20, 1, 1, 1]


def test_tensors_have_the_sizes_of_the_description() -> None:
    shapes = {name: shape for name, (_, shape) in list_state_tensors(DESCRIPTION).items()}
    assert shapes["top.values"] == (5, 2)
    assert shapes["sample.values"] == (3, 5)
    assert shapes["class.places"] == (2, 5, 1)
    assert shapes["class.sums"] == (2, 5)
    assert shapes["class.counts"] == (2,)


@pytest.mark.parametrize("name", list_state_tensors(DESCRIPTION))
def test_a_tensor_of_another_shape_or_type_is_damage(name: str, tmp_path: Path) -> None:
    state = make_state()
    for tensor in (state[name][:, None], state[name].half()):
        save_file({**state, name: tensor.contiguous()}, tmp_path / "state")
        with (
            safe_open(tmp_path / "state", framework="pt") as file,
            pytest.raises(SightlineError, match=f"{name} is .* it must be "),
        ):
            check_state_layout(STORE, file, DESCRIPTION)


def test_sound_tensors_pass_and_missing_ones_are_missed_when_read(tmp_path: Path) -> None:
    state = make_state()
    del state["class.sums"]
    state["top.values"] = torch.arange(10.0).view(5, 2)
    state["class.values"] = torch.arange(10.0).view(2, 5, 1)
    save_file(state, tmp_path / "state")
    with safe_open(tmp_path / "state", framework="pt") as file:
        check_state_layout(STORE, file, DESCRIPTION)

        def select(name: str, units: slice | None = None) -> Tensor:
            return select_checked_units(
                STORE, name, file, description=DESCRIPTION, progress=PROGRESS, units=units
            )

        assert select("top.values").equal(state["top.values"])
        assert select("top.values", slice(1, 3)).tolist() == [[2, 3], [4, 5]]
        assert select("class.values", slice(3, 5)).flatten().tolist() == [3, 4, 8, 9]
        with pytest.raises(SightlineError, match=r"has no class\.sums"):
            select("class.sums")


@pytest.mark.parametrize(
    ("name", "index", "value", "problem"),
    [
        ("top.values", (1, 0), float("nan"), "top.values holds NaN"),
        ("class.sums", (1, 4), float("inf"), "class.sums is not finite"),
        ("class.counts", (1,), float("nan"), "class.counts is not finite"),
        ("top.ids", (4, 1), 4, "top.ids names images that are not in the store"),
        ("class.ids", (0, 0, 0), -2, "class.ids names images that are not in the store"),
        ("sample.positions", (2,), 6, "sample.positions names files that are not in the store"),
        ("top.places", (1, 1), 20, "top.places names positions outside the maps"),
        ("top.places", (2, 0), 1, "top.places names positions outside the maps"),
        ("sample.places", (0, 4), 1, "sample.places names positions outside the maps"),
        ("class.places", (1, 2, 0), 1, "class.places names positions outside the maps"),
    ],
)
def test_each_wrong_number_is_noticed(
    name: str, index: tuple[int, ...], value: float, problem: str
) -> None:
    tensor = make_state()[name]
    assert find_state_problem(name, tensor, DESCRIPTION, PROGRESS) is None
    tensor[index] = value
    assert find_state_problem(name, tensor, DESCRIPTION, PROGRESS) == problem


@pytest.mark.parametrize(
    ("name", "index", "value"),
    [
        ("top.ids", (0, 0), 3),
        ("top.ids", (0, 0), -1),  # no image
        ("sample.positions", (0,), 5),
        ("top.places", (1, 1), 19),
        ("class.places", (1, 1, 0), 19),
        ("top.values", (0, 0), float("-inf")),
    ],
)
def test_the_limits_themselves_are_allowed(name: str, index: tuple[int, ...], value: float) -> None:
    tensor = make_state()[name]
    tensor[index] = value
    assert find_state_problem(name, tensor, DESCRIPTION, PROGRESS) is None


def test_some_units_have_the_limits_of_their_own_maps() -> None:
    """Units 1 and 2: the map of the one has 20 positions, that of the other a single one."""
    places = torch.tensor([[19, 0], [0, 0]], dtype=torch.int32)
    units = slice(1, 3)
    assert find_state_problem("top.places", places, DESCRIPTION, PROGRESS, units) is None
    assert find_state_problem("top.places", places.flip(0), DESCRIPTION, PROGRESS, units)


# ── columns ──


def make_rows(count: int = 4) -> dict[str, list[Any]]:
    return {
        "id": list(range(count)),
        "position": [0, 2, 3, 5][:count],
        "class": [-1, 0, 1, 1][:count],
        "height": [1, 40, 50, 2**31 - 1][:count],
        "labels": [[0, 1, 2], [2, 1, 0], [1, 0, 2], [1, 2, 0]][:count],
        "probabilities": [[0.5, 0.3, 0.2]] * count,
        "vector_0": [[1.0, -2.0, 0.0]] * count,
        "response_0": [[65504.0, -65504.0]] * count,
        "mean_response_1": [[1.0, 0.0, -3.0]] * count,
    }


def make_table(rows: dict[str, list[Any]]) -> pa.Table:
    schema = make_images_schema(DESCRIPTION)
    fields = [schema.field(name) for name in rows]
    return pa.table(rows, schema=pa.schema(fields))


def test_sound_columns_have_no_problem() -> None:
    table = make_table(make_rows())
    assert find_column_problems(table, DESCRIPTION, PROGRESS) == []
    assert find_column_problems(table.to_batches()[0], DESCRIPTION, PROGRESS) == []
    assert find_column_problems(make_table(make_rows(0)), DESCRIPTION, PROGRESS) == []


@pytest.mark.parametrize(
    ("column", "row", "value", "problem"),
    [
        ("id", 2, 4, "id goes from 0 to 4; it must lie between 0 and 3"),
        ("id", 0, -1, "id goes from -1 to 3; it must lie between 0 and 3"),
        ("position", 3, 6, "position goes from 0 to 6; it must lie between 0 and 5"),
        ("class", 1, 2, "class goes from -1 to 2; it must lie between -1 and 1"),
        ("class", 1, -2, "class goes from -2 to 1; it must lie between -1 and 1"),
        ("height", 1, 0, "height goes from 0 to 2147483647; it must lie between 1 and 2147483647"),
        ("labels", 3, [1, 2, 3], "labels goes from 0 to 3; it must lie between 0 and 2"),
        ("labels", 0, [1, 2], "labels does not hold 3 values in each row"),
        ("labels", 0, [1, 2, 0, 0], "labels does not hold 3 values in each row"),
        ("labels", 1, [1, None, 2], "labels holds rows with missing numbers"),
        ("probabilities", 1, [], "probabilities does not hold 3 values in each row"),
        ("probabilities", 1, [0.5, None, 0.5], "probabilities holds rows with missing numbers"),
        ("height", 1, None, "height is missing in 1 rows"),
        ("labels", 1, None, "labels is missing in 1 rows"),
        ("vector_0", 0, [0.0, float("nan"), 0.0], "vector_0 holds values that are not finite"),
        ("vector_0", 3, [0.0, 0.0, float("-inf")], "vector_0 holds values that are not finite"),
        ("vector_0", 2, [0.0, None, 1.0], "vector_0 holds rows with missing numbers"),
        ("response_0", 1, [float("inf"), 0.0], "response_0 holds values that are not finite"),
        ("response_0", 2, [0.0, float("nan")], "response_0 holds values that are not finite"),
        ("response_0", 2, None, "response_0 is missing in 1 rows"),
        (
            "mean_response_1",
            3,
            [0.0, 0.0, float("-inf")],
            "mean_response_1 holds values that are not finite",
        ),
    ],
)
def test_each_wrong_cell_is_noticed(column: str, row: int, value: Any, problem: str) -> None:
    rows = make_rows()
    rows[column] = [*rows[column][:row], value, *rows[column][row + 1 :]]
    table = make_table(rows)
    assert find_column_problems(table, DESCRIPTION, PROGRESS) == [problem]
    # In the second chunk of a column as in the first.
    chunked = pa.concat_tables([table.slice(0, 0), make_table(make_rows()), table])
    assert find_column_problems(chunked, DESCRIPTION, PROGRESS) == [problem]


def test_other_columns_may_stand_beside_those_of_a_scan() -> None:
    expected = make_images_schema(DESCRIPTION)
    assert find_schema_problem(expected.append(pa.field("note", pa.string())), expected) is None
    position = expected.get_field_index("height")
    assert find_schema_problem(expected.remove(position), expected) == "0 columns height"
    doubled = expected.append(expected.field("height"))
    assert find_schema_problem(doubled, expected) == "2 columns height"
    stored_type = expected.field("height").type
    retyped = expected.set(position, pa.field("height", pa.string()))
    assert find_schema_problem(retyped, expected) == f"height holds string, not {stored_type}"
