"""What is wrong with a store is found, each by a line of its own."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

import sightline as sl
from sightline.data.store.lance_reader import open_table
from sightline.data.store.maintenance import compact_store, summarize_store, verify_store
from sightline.data.store.memory import MemoryReader, MemoryStore


@pytest.fixture(scope="module")
def complete(wide: sl.Model, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete store on disk."""
    path = tmp_path_factory.mktemp("stores") / "complete.scan"
    return sl.scan(wide, photos, store=path, batch=8, k=5, vectors=("conv2", "penultimate")).path


@pytest.fixture
def store(complete: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(complete, tmp_path / "a.scan"))


def test_summary_counts(store: Path) -> None:
    summary = summarize_store(store)
    assert summary["layers"] == {"conv1": 6, "conv2": 10}
    assert summary["vectors"] == {"conv2": 10, "fc:in": 10}
    assert summary["classes"] == ["even", "odd"]
    assert summary["collection"]["count"] == summary["done"] == 44
    assert summary["network"]["side"] == 32
    assert summary["version"] == 1
    assert summary["indexes"] == {}
    assert summary["responses"] == ["max"]
    assert summary["complete"] is True
    files = [path for path in store.rglob("*") if path.is_file()]
    assert summary["bytes"] == sum(len(path.read_bytes()) for path in files)


def test_a_store_before_its_first_commit(store: Path) -> None:
    (store / "state.safetensors").unlink()
    shutil.rmtree(store / "errors.lance")
    assert summarize_store(store)["errors"] == 0
    assert summarize_store(store)["images"] == 0
    assert verify_store(store) == []


def test_broken_rows_are_named(store: Path) -> None:
    images = open_table(store, "images")
    images.update(where="id = 3", values={"thumbnail": b"no picture"})
    [problem] = verify_store(store)
    assert problem.startswith("the thumbnail of image 3 is broken")


def test_vectors_that_are_not_finite(store: Path) -> None:
    images = open_table(store, "images")
    rows = images.to_arrow()
    vectors = rows["vector_1"].to_pylist()
    vectors[40][9] = float("inf")
    column = rows.schema.get_field_index("vector_1")
    field = rows.schema.field(column)
    images.add(rows.set_column(column, field, [pa.array(vectors, field.type)]), mode="overwrite")
    assert verify_store(store) == ["vector_1 holds values that are not finite"]


def test_responses_that_are_not_those_of_the_strongest_images(store: Path) -> None:
    scan = sl.Scan.open(store)
    assert verify_store(store) == []
    images = open_table(store, "images")
    rows = images.to_arrow()
    responses = rows["response_1"].to_pylist()
    strongest = int(scan.top("conv2").ids[0, 7])
    responses[strongest][7] += 1
    column = rows.schema.get_field_index("response_1")
    field = rows.schema.field(column)
    array = pa.array([np.array(row, np.float16) for row in responses], field.type)
    images.add(rows.set_column(column, field, [array]), mode="overwrite")
    assert verify_store(store) == ["the responses of conv2 are not those of its strongest images"]


def test_missing_and_doubled_rows(store: Path) -> None:
    images = open_table(store, "images")
    images.update(where="id = 40", values={"id": 41})
    assert verify_store(store) == ["the table of images has 43 rows; the state counts 43"]
    images.delete("id = 7")
    [problem] = verify_store(store)
    assert "42 of 43 images" in problem


def test_files_that_are_neither(store: Path) -> None:
    open_table(store, "errors").delete("position = 2")
    assert verify_store(store) == ["1 files are neither images nor errors"]


def test_missing_tables(store: Path) -> None:
    shutil.rmtree(store / "images.lance")
    [problem] = verify_store(store)
    assert "its table of images can't be opened" in problem


@pytest.fixture
def verify_changed(wide: sl.Model, photos: Path) -> Callable[..., list[str]]:
    """Verifies a store whose tensor of some name was changed."""
    store = MemoryStore()
    sl.scan(wide, photos, store=store, batch=8, k=5, responses=False)
    committed = store.open_reader()

    def verify(name: str, change: Callable[[torch.Tensor], object]) -> list[str]:
        tensor = committed.state[name].clone()
        change(tensor)
        changed: MemoryReader = replace(committed, state={**committed.state, name: tensor})
        store.committed = changed
        return verify_store(store)

    return verify


def test_units_out_of_order(verify_changed: Callable[..., list[str]]) -> None:
    def swap(values: torch.Tensor) -> None:
        values[8, 0] = values[8, 1] - 1

    def tie(values: torch.Tensor) -> None:
        values[8, 0] = values[8, 1]

    # Unit 8 of all is one of conv2's, whose first is number 6.
    assert verify_changed("top.values", swap) == ["the strongest images of conv2 are out of order"]
    assert verify_changed("top.values", tie) == []


def test_images_that_do_not_exist(verify_changed: Callable[..., list[str]]) -> None:
    def set_id(id: int) -> Callable[[torch.Tensor], object]:
        return lambda ids: ids[0, 4].fill_(id)

    assert verify_changed("top.ids", set_id(43)) == ["conv1 names images that are not in the store"]
    assert verify_changed("top.ids", set_id(42)) == []


def test_compacting_makes_it_smaller(wide: sl.Model, photos: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.scan"
    for end in (8, 16, 24):
        sl.scan(wide, photos, store=path, batch=8, callback=lambda event, e=end: event.done >= e)
    before, after = compact_store(path)
    assert after < before
    assert after == summarize_store(path)["bytes"]
    assert len(list((path / "images.lance" / "data").iterdir())) == 1
    assert verify_store(path) == []
