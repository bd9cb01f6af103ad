"""Stores that somebody made or damaged: what opens one gives clean results or one line.

SIGHTLINE_HOSTILE_EXAMPLES is how many mutations of a store are tried; a few by default.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lancedb
import pyarrow as pa
import pytest
import torch
from helpers import folder_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

import sightline as sl
from sightline.data.store.index import MIN_INDEX_IMAGES, ensure_vector_index
from sightline.data.store.maintenance import compact_store, summarize_store, verify_store
from sightline.data.units.facts import read_unit_facts

EXAMPLES = int(os.environ.get("SIGHTLINE_HOSTILE_EXAMPLES", "6"))

PHOTO_COUNT = 8  # one of them broken


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of photographs."""
    return folder_of(tmp_path_factory.mktemp("photos"), PHOTO_COUNT)


@pytest.fixture(scope="module")
def valid(tiny: sl.Model, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete store. Nobody may change it."""
    path = tmp_path_factory.mktemp("stores") / "valid.scan"
    return sl.scan(tiny, photos, store=path, batch=4, k=3).path


@pytest.fixture
def store(valid: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(valid, tmp_path / "a.scan"))


def list_uses(store: Path, model: sl.Model, photos: Path) -> Iterator[Callable[[], object]]:
    """Everything that opens a store, one call each."""
    yield lambda: sl.Scan.open(store)
    yield lambda: sl.Scan.open(store)._repr_html_()
    for name in ("paths", "sizes", "classes", "errors", "top5"):
        yield lambda name=name: getattr(sl.Scan.open(store), name)
    yield lambda: sl.Scan.open(store).vectors()
    yield lambda: sl.Scan.open(store).thumbnails([0, 3])
    yield lambda: sl.Scan.open(store).image(2)
    for method in ("top", "class_top", "class_means", "sample"):
        yield lambda method=method: getattr(sl.Scan.open(store), method)("conv2")
    yield lambda: sl.Scan.open(store).responses("conv2")
    yield lambda: sl.Scan.open(store).responses("conv2", units=[3, 1], images=[2, 0])
    yield lambda: read_unit_facts(sl.Scan.open(store), "conv2")
    yield lambda: sl.neighbors(sl.Scan.open(store), id=1, k=2)
    yield lambda: ensure_vector_index(sl.Scan.open(store), "penultimate")
    yield lambda: summarize_store(store)
    yield lambda: verify_store(store)
    yield lambda: compact_store(store)
    yield lambda: sl.scan(model, photos, store=store, batch=4, k=3)


def collect_errors(store: Path, model: sl.Model, photos: Path) -> list[str]:
    """The messages of all uses of a store that raise; any other exception passes through."""
    messages: list[str] = []
    for use in list_uses(store, model, photos):
        try:
            use()
        except sl.SightlineError as error:
            messages.append(str(error))
    assert all(message.isprintable() and len(message) < 1000 for message in messages)
    return messages


def test_a_valid_store_raises_only_for_too_few_images(
    store: Path, tiny: sl.Model, photos: Path
) -> None:
    [message] = collect_errors(store, tiny, photos)
    assert message.startswith(f"an index needs at least {MIN_INDEX_IMAGES:,} images")
    assert verify_store(store) == []


# ── scan.json ──


def write_json(store: Path, *keys: Any, value: Any) -> None:
    """Replaces one value of a store's description."""
    content = json.loads((store / "scan.json").read_text(encoding="utf-8"))
    part = content
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    (store / "scan.json").write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("k",), "many"),
        (("k",), "3"),
        (("k",), 3.0),
        (("k",), True),
        (("k",), -3),
        (("k",), 10**30),
        (("k",), None),
        (("sample",), -1),
        (("batch",), 0),
        (("labels",), "ant"),
        (("labels",), [1, 2]),
        (("names",), []),
        (("layers",), None),
        (("layers", "conv1"), {"units": 8}),
        (("layers", "conv1", "units"), 0),
        (("layers", "conv1", "shape"), [32]),
        (("layers", "conv1", "shape"), [32, "32"]),
        (("layers", "conv1", "shape"), [2**40, 2**40]),
        (("vectors",), {"fc:in": -16}),
        (("network",), []),
        (("network", "mean"), [0.5, float("nan"), 0.5]),
        (("network", "std"), [float("inf")] * 3),
        (("network", "side"), 10**9),
        (("collection", "count"), -1),
        (("collection", "source"), ["/"]),
        (("class_names",), {"even": 0}),
        (("model",), "tiny"),
        (("responses",), "max"),
        (("responses",), ["largest"]),
        (("responses",), ["max", "max"]),
        (("responses",), ["mean"]),
        (("responses",), None),
    ],
    ids=lambda value: f"{value!r:.30}".replace("\n", ""),
)
def test_values_of_another_type_or_range(keys: tuple[Any, ...], value: Any, store: Path) -> None:
    write_json(store, *keys, value=value)
    with pytest.raises(sl.SightlineError, match=r"is damaged: scan\.json") as caught:
        sl.Scan.open(store)
    assert str(caught.value).isprintable()
    assert str(keys[0]) in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"{",
        b"null",
        b"[" * 200_000,
        b'{"format": "sightline scan", "version": 1, "model": '
        + b'{"a":' * 5000
        + b"1"
        + b"}" * 5001,
        b'{"format": "sightline scan", "version": 1, "k": ' + b"9" * 10_000 + b"}",
        b'{"format": "sightline scan", "version": true}',
        b'{"format": "sightline scan", "version": -1}',
        b'{"format": "sightline scan", "version": 2}',
        b'{"format": ["sightline scan"], "version": 1}',
        b'{"format": "sightline scan", "version": 1}',
        b"\0" * 1000,
    ],
    ids=lambda content: f"{len(content)} bytes {content[:12]!r}",
)
def test_another_description(content: bytes, store: Path, tiny: sl.Model, photos: Path) -> None:
    (store / "scan.json").write_bytes(content)
    uses = list(list_uses(store, tiny, photos))
    assert len(collect_errors(store, tiny, photos)) == len(uses)


def test_a_description_of_another_store(store: Path, tiny: sl.Model, photos: Path) -> None:
    """More units than the state has."""
    write_json(store, "layers", "conv1", "units", value=800)
    assert "top.values is F32 of shape" in collect_errors(store, tiny, photos)[0]


# ── what is no folder of a store ──


def test_what_is_no_store(store: Path, tmp_path: Path, tiny: sl.Model, photos: Path) -> None:
    (tmp_path / "file.scan").write_text("no store", encoding="utf-8")
    (tmp_path / "folder.scan" / "scan.json").mkdir(parents=True)
    (tmp_path / "full.scan").mkdir()
    (tmp_path / "full.scan" / "a.txt").touch()
    loop = tmp_path / "loop.scan"
    loop.symlink_to(loop)
    for name in ("file.scan", "folder.scan", "full.scan", "loop.scan"):
        uses = list(list_uses(tmp_path / name, tiny, photos))
        messages = collect_errors(tmp_path / name, tiny, photos)
        assert len(messages) == len(uses), name


@pytest.mark.parametrize(
    "name",
    ["a\0b", "a\nb.scan", "x" * 5000, "\udcff.scan"],
    ids=["null", "line", "long", "bytes"],
)
def test_odd_paths_of_stores(name: str, tmp_path: Path, tiny: sl.Model, photos: Path) -> None:
    path = tmp_path / name / "a.scan"
    for use in (lambda: sl.Scan.open(path), lambda: verify_store(path)):
        with pytest.raises(sl.SightlineError) as caught:
            use()
        assert str(caught.value).isprintable()
    with pytest.raises(sl.SightlineError) as caught:
        sl.scan(tiny, photos, store=path, batch=4, k=3)
    assert str(caught.value).isprintable()
    assert list(tmp_path.iterdir()) == []  # nothing is half-written


# ── the state ──


def read_state(store: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(store / "state.safetensors", framework="pt") as state:
        names = state.keys()
        return {name: state.get_tensor(name) for name in names}, state.metadata()


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {},
        {"done": "8"},
        {"done": "8", "images": "seven", "errors": "1", "complete": "1"},
        {"done": "8", "images": "-7", "errors": "1", "complete": "1"},
        {"done": "8", "images": "9", "errors": "1", "complete": "1"},
        {"done": "9" * 50, "images": "7", "errors": "1", "complete": "1"},
    ],
    ids=["none", "empty", "few", "text", "negative", "many", "huge"],
)
def test_another_progress(
    metadata: dict[str, str] | None, store: Path, tiny: sl.Model, photos: Path
) -> None:
    tensors, _ = read_state(store)
    save_file(tensors, store / "state.safetensors", metadata)
    with pytest.raises(sl.SightlineError, match="is damaged: "):
        sl.Scan.open(store)
    assert len(collect_errors(store, tiny, photos)) == len(list(list_uses(store, tiny, photos)))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("top.values", lambda tensor: tensor.double()),
        ("top.values", lambda tensor: tensor.T.contiguous()),
        ("top.ids", lambda tensor: tensor[:, :0].contiguous()),
        ("sample.values", lambda tensor: tensor[0]),
        ("class.sums", lambda tensor: tensor.float()),
    ],
    ids=["type", "transposed", "empty", "axes", "precision"],
)
def test_tensors_of_another_shape_or_type(
    name: str, change: Callable[[torch.Tensor], torch.Tensor], store: Path
) -> None:
    tensors, metadata = read_state(store)
    save_file({**tensors, name: change(tensors[name])}, store / "state.safetensors", metadata)
    with pytest.raises(sl.SightlineError, match=f"is damaged: {name} is .* it must be"):
        sl.Scan.open(store)


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("top.values", float("nan"), "NaN"),
        ("top.ids", -7, "images that are not in the store"),
        ("top.ids", 7, "images that are not in the store"),
        ("top.places", 5000, "positions outside the maps"),
        ("top.places", -2, "positions outside the maps"),
        ("sample.values", float("nan"), "NaN"),
        ("sample.ids", 99, "images that are not in the store"),
        ("sample.positions", 8, "files that are not in the store"),
        ("sample.places", 2**30, "positions outside the maps"),
        ("class.values", float("nan"), "NaN"),
        ("class.ids", -2, "images that are not in the store"),
        ("class.places", 5000, "positions outside the maps"),
        ("class.sums", float("inf"), "not finite"),
        ("class.counts", 3.5, "other numbers of images of the classes"),
        ("top.ids", 0, "twice"),
        ("sample.ids", 0, "the sample does not say"),
    ],
)
def test_odd_values_of_the_state_are_found(
    name: str, value: float, problem: str, store: Path
) -> None:
    tensors, metadata = read_state(store)
    tensors[name].fill_(value)
    save_file(tensors, store / "state.safetensors", metadata)
    assert problem in "; ".join(verify_store(store))


def test_missing_tensors_and_a_deleted_state_are_found(
    store: Path, tiny: sl.Model, photos: Path
) -> None:
    tensors, metadata = read_state(store)
    for name in tensors:
        rest = {key: tensor for key, tensor in tensors.items() if key != name}
        save_file(rest, store / "state.safetensors", metadata)
        assert any(f"has no {name}" in problem for problem in verify_store(store)), name
    collect_errors(store, tiny, photos)
    (store / "state.safetensors").unlink()
    [problem] = verify_store(store)
    assert "7 images are in no commit, as if its state were deleted" in problem
    assert sl.scan(tiny, photos, store=store, batch=4, k=3).images == 7
    assert verify_store(store) == []


def test_a_state_of_another_count_is_found(store: Path) -> None:
    tensors, metadata = read_state(store)
    save_file(tensors, store / "state.safetensors", {**metadata, "done": "7", "errors": "0"})
    assert "it is complete with 7 of 8 files" in verify_store(store)


# ── the tables ──


def rewrite_images(store: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Replaces the table of images by a changed one."""
    database = lancedb.connect(store)
    rows = change(database.open_table("images").to_arrow())
    database.drop_table("images")
    database.create_table("images", rows)


def set_column(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, column)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda rows: rows.drop_columns(["thumbnail"]), "0 columns thumbnail"),
        (lambda rows: rows.drop_columns(["vector_0"]), "0 columns vector_0"),
        (lambda rows: rows.drop_columns(["response_2"]), "0 columns response_2"),
        (lambda rows: set_column(rows, "id", rows["id"].cast(pa.float64())), "id holds double"),
        (lambda rows: set_column(rows, "path", rows["id"]), "path holds int64, not string"),
        (lambda rows: set_column(rows, "id", pa.array([-7, *range(1, 7)])), "id goes from -7"),
        (lambda rows: set_column(rows, "position", pa.array([99] * 7)), "position goes from 99"),
        (lambda rows: set_column(rows, "position", pa.array([0] * 7)), "not in the order"),
        (
            lambda rows: set_column(rows, "class", pa.array([2] * 7, pa.int32())),
            "class goes from 2 to 2; it must lie between -1 and 1",
        ),
        (
            lambda rows: set_column(rows, "height", pa.array([0] * 7, pa.int32())),
            "height goes from 0",
        ),
        (
            lambda rows: set_column(rows, "labels", pa.array([[9] * 5] * 7, pa.list_(pa.int32()))),
            "labels goes from 9",
        ),
        (
            lambda rows: set_column(rows, "labels", pa.array([[0]] * 7, pa.list_(pa.int32()))),
            "labels does not hold 5 values",
        ),
        (
            lambda rows: set_column(
                rows, "probabilities", pa.array([[float("nan")] * 5] * 7, pa.list_(pa.float32()))
            ),
            "the probabilities of image 0",
        ),
        (
            lambda rows: set_column(rows, "path", pa.array([None] * 7, pa.string())),
            "path is missing in 7 rows",
        ),
        (
            lambda rows: set_column(rows, "sha256", pa.array(["../etc"] * 7)),
            "the digest of image 0 is none",
        ),
        (
            lambda rows: set_column(rows, "thumbnail", pa.array([b""] * 7)),
            "the thumbnail of image 0 is broken",
        ),
        (lambda rows: rows.slice(0, 5), "5 of 7 images"),
        (lambda rows: rows.slice(0, 0), "0 of 7 images"),
        (lambda rows: pa.table({"a": [1]}), "0 columns id"),
    ],
    ids=[
        "no thumbnails",
        "no vectors",
        "no responses",
        "float ids",
        "numbers as paths",
        "negative id",
        "far position",
        "same position",
        "far class",
        "no height",
        "far label",
        "few labels",
        "nan",
        "no path",
        "digest",
        "empty thumbnail",
        "cut",
        "empty",
        "foreign",
    ],
)
def test_other_tables(change: Callable[[pa.Table], pa.Table], problem: str, store: Path) -> None:
    rewrite_images(store, change)
    assert problem in "; ".join(verify_store(store))


def test_a_foreign_table_of_errors(store: Path, tiny: sl.Model, photos: Path) -> None:
    database = lancedb.connect(store)
    for rows in (
        pa.table({"position": ["2"], "path": ["a"], "reason": ["b"]}),
        pa.table(
            {
                "position": pa.array([4], pa.int64()),
                "path": ["a"],
                "reason": pa.nulls(1, pa.string()),
            }
        ),
        pa.table({"position": pa.array([3], pa.int64()), "path": ["a"], "reason": ["b"]}),
    ):
        database.drop_table("errors")
        database.create_table("errors", rows)
        assert verify_store(store)
        collect_errors(store, tiny, photos)


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        '{"fc:in": {"lists": 1}}',
        '{"fc:in": []}',
        "[" * 100_000,
        '{"fc:in": {"images": 7, "metric": "other", "lists": 1, "codes": 1, "probes": 1, '
        '"refine": 1, "recall": 1.0, "sample": 1, "seconds": 1.0}}',
        '{"fc:in": {"images": 7, "metric": "l2", "lists": -1, "codes": 1, "probes": "1", '
        '"refine": 1, "recall": NaN, "sample": 1, "seconds": 1.0}}',
    ],
    ids=["list", "few", "inner list", "deep", "metric", "numbers"],
)
def test_a_damaged_index_file_counts_as_none(content: str, store: Path) -> None:
    (store / "index.json").write_text(content, encoding="utf-8")
    assert sl.Scan.open(store).reader.read_indexes() == {}
    assert summarize_store(store)["indexes"] == {}


# ── mutations ──


@st.composite
def draw_mutation(draw: st.DrawFn) -> Callable[[Path], None]:
    """A change of one file of a store: bytes flipped, cut, removed, swapped, or a JSON value."""
    choice = draw(st.floats(0, 1, exclude_max=True))
    place = draw(st.floats(0, 1, exclude_max=True))
    kind = draw(st.sampled_from(["flip", "cut", "remove", "swap", "zero", "json"]))
    value = draw(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.text(max_size=3), inner, max_size=3)
            ),
            max_leaves=4,
        )
    )

    def mutate(store: Path) -> None:
        files = sorted(path for path in store.rglob("*") if path.is_file() and path.stat().st_size)
        file = files[int(choice * len(files))]
        data = bytearray(file.read_bytes())
        offset = int(place * len(data))
        if kind == "json":
            content = json.loads((store / "scan.json").read_text(encoding="utf-8"))
            replace_json_value(content, int(place * 1000), value)
            (store / "scan.json").write_text(json.dumps(content), encoding="utf-8")
        elif kind == "remove":
            file.unlink()
        elif kind == "swap":
            other = files[int(place * len(files))]
            other_data = other.read_bytes()
            other.write_bytes(data)
            file.write_bytes(other_data)
        elif kind == "cut":
            file.write_bytes(data[:offset])
        elif kind == "zero":
            file.write_bytes(data[:offset] + bytes(len(data) - offset))
        else:
            data[offset] ^= 1 << int(choice * 8)
            file.write_bytes(data)

    return mutate


def replace_json_value(content: Any, number: int, value: Any) -> None:
    """Replaces the value that is found by a number, going down from the top."""
    while True:
        keys: list[Any] = list(content) if isinstance(content, dict) else list(range(len(content)))
        key = keys[number % len(keys)]
        number //= len(keys)
        if number and isinstance(content[key], (dict, list)) and content[key]:
            content = content[key]
            continue
        content[key] = value
        return


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(mutate=draw_mutation())
def test_mutated_stores_give_clean_results_or_one_line(
    mutate: Callable[[Path], None], valid: Path, tiny: sl.Model, photos: Path
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Path(shutil.copytree(valid, Path(folder) / "a.scan"))
        mutate(store)
        collect_errors(store, tiny, photos)
