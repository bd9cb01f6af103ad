"""Facts of units: computed once, kept whole, computed again where what is kept can't be used."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from helpers import ROOT

import sightline as sl
from sightline.data.store import lance_store
from sightline.data.store.maintenance import verify_store
from sightline.data.store.memory import MemoryStore
from sightline.data.units import facts as facts_module
from sightline.data.units.correlation import find_nearest_units
from sightline.data.units.distribution import measure_distribution
from sightline.data.units.facts import UnitFacts, compute_unit_facts, read_unit_facts
from sightline.data.units.selectivity import measure_selectivity


@pytest.fixture
def scan(odd: sl.Scan, tmp_path: Path) -> sl.Scan:
    """A copy of the scan, to be written to."""
    return sl.Scan.open(shutil.copytree(odd.path, tmp_path / "a.scan"))


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The layers whose facts are computed during a test."""
    layers: list[str] = []

    def compute(scan: sl.Scan, layer: str) -> UnitFacts:
        layers.append(layer)
        return compute_unit_facts(scan, layer)

    monkeypatch.setattr(facts_module, "compute_unit_facts", compute)
    return layers


def assert_same_facts(facts: UnitFacts, expected: UnitFacts) -> None:
    """Asserts equality to the last bit."""
    for field in fields(UnitFacts):
        value = getattr(facts, field.name)
        expected_value = getattr(expected, field.name)
        if isinstance(expected_value, np.ndarray):
            assert value.dtype == expected_value.dtype, field.name
            np.testing.assert_array_equal(value, expected_value, err_msg=field.name)
        else:
            assert value == expected_value
    assert facts.nearest_units == expected.nearest_units


def find_file(scan: sl.Scan, number: int) -> Path:
    """Where the facts of a layer are kept."""
    return scan.path / "units" / f"{number}.parquet"


def test_facts_are_what_the_parts_compute(scan: sl.Scan) -> None:
    facts = read_unit_facts(scan, "conv2")
    distribution = measure_distribution(scan, "conv2")
    for field in fields(distribution):
        np.testing.assert_array_equal(getattr(facts, field.name), getattr(distribution, field.name))
    index, favorite = measure_selectivity(scan, "conv2")
    np.testing.assert_array_equal(facts.selectivity, index)
    np.testing.assert_array_equal(facts.selective_class, favorite)
    nearest = find_nearest_units(scan, "conv2")
    np.testing.assert_array_equal(facts.duplicate_of, nearest.duplicate_of)
    for unit, entries in enumerate(facts.nearest_units):
        assert [scan.layers.index(layer) for layer, _, _ in entries] == [
            layer for layer in nearest.layers[unit].tolist() if layer >= 0
        ]
        assert [number for _, number, _ in entries] == [
            number for number in nearest.units[unit].tolist() if number >= 0
        ]
        values = [correlation for _, _, correlation in entries]
        assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("in_memory", [False, True])
def test_they_are_computed_once(
    in_memory: bool, scan: sl.Scan, odd_model: sl.Model, photos: Path, computed: list[str]
) -> None:
    if in_memory:
        layers = ("conv1", "relu1", "conv2")
        scan = sl.scan(odd_model, photos, store=MemoryStore(), batch=8, k=5, layers=layers)
    first = {layer: read_unit_facts(scan, layer) for layer in ("conv2", "conv1")}
    assert computed == ["conv2", "conv1"]
    for reader in (scan, sl.Scan.open(scan.store)):
        for layer, expected in first.items():
            assert_same_facts(read_unit_facts(reader, layer), expected)
    assert_same_facts(read_unit_facts(scan, "conv2"), compute_unit_facts(scan, "conv2"))
    assert computed == ["conv2", "conv1"]
    assert verify_store(scan.store) == []


def test_a_table_is_there_for_other_programs(scan: sl.Scan) -> None:
    facts = read_unit_facts(scan, "conv2")
    table = pq.read_table(find_file(scan, 2))
    assert table.num_rows == 10
    assert table["quantiles"].to_pylist()[3] == facts.quantiles[3].tolist()
    assert table["top_images"].to_pylist()[9] == facts.top_images[9].tolist()
    assert table.schema.metadata[b"layer"] == b"conv2"
    assert not find_file(scan, 0).exists()


def change_table(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    """What rewrites a file with a changed table."""

    def rewrite(file: Path) -> None:
        pq.write_table(change(pq.read_table(file)), file)

    return rewrite


def set_value(name: str, value: Any) -> Callable[[Path], None]:
    """What puts a value into the last row of a column."""

    def change(table: pa.Table) -> pa.Table:
        values = table[name].to_pylist()
        values[-1] = value
        index = table.schema.get_field_index(name)
        field = table.schema.field(index)
        return table.set_column(index, field, pa.array(values, field.type))

    return change_table(change)


def set_metadata(name: str, value: str) -> Callable[[Path], None]:
    """What changes an entry of the metadata."""

    def change(table: pa.Table) -> pa.Table:
        return table.replace_schema_metadata({**table.schema.metadata, name.encode(): value})

    return change_table(change)


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(b"no table"),
        lambda file: file.write_bytes(file.read_bytes()[:-40]),
        lambda file: file.write_bytes(b""),
        change_table(lambda table: table.drop_columns(["mean"])),
        change_table(lambda table: table.slice(1)),
        change_table(lambda table: table.replace_schema_metadata(None)),
        set_metadata("version", "0"),
        set_metadata("images", "42"),
        set_metadata("layer", "conv1"),
        set_value("frequency", None),
        set_value("top_images", [43] * 9),
        set_value("bottom_images", [-1] * 9),
        set_value("selective_class", 2),
        set_value("duplicate_of", 10),
        set_value("neighbor_layers", [3] * 10),
        set_value("neighbor_units", [-2] * 10),
        # Layer 0 has six units.
        lambda file: (
            set_value("neighbor_layers", [0] * 10)(file),
            set_value("neighbor_units", [6] * 10)(file),
        ),
    ],
)
def test_what_is_damaged_is_computed_again(
    damage: Callable[[Path], object], scan: sl.Scan, computed: list[str]
) -> None:
    expected = read_unit_facts(scan, "conv2")
    damage(find_file(scan, 2))
    assert_same_facts(read_unit_facts(scan, "conv2"), expected)
    assert_same_facts(read_unit_facts(scan, "conv2"), expected)
    assert computed == ["conv2", "conv2"]


def test_a_second_reader_waits_for_the_first(
    scan: sl.Scan, computed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = threading.Event()
    go_on = threading.Event()
    compute = facts_module.compute_unit_facts

    def compute_slowly(scan: sl.Scan, layer: str) -> UnitFacts:
        begun.set()
        assert go_on.wait(10)
        return compute(scan, layer)

    monkeypatch.setattr(facts_module, "compute_unit_facts", compute_slowly)
    results: list[UnitFacts] = []

    def read() -> None:
        results.append(read_unit_facts(sl.Scan.open(scan.path), "conv1"))

    threads = [threading.Thread(target=read) for _ in range(2)]
    threads[0].start()
    assert begun.wait(10)
    threads[1].start()
    threads[1].join(0.3)
    assert threads[1].is_alive()
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert computed == ["conv1"]
    assert_same_facts(results[0], results[1])


def test_a_store_that_cannot_be_written_gives_them_each_time(
    scan: sl.Scan, computed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> Any:
        raise sl.SightlineError("can't write: read-only file system")

    expected = compute_unit_facts(scan, "conv1")
    monkeypatch.setattr(lance_store.LanceStore, "open_writer", refuse)
    assert_same_facts(read_unit_facts(scan, "conv1"), expected)
    monkeypatch.undo()
    monkeypatch.setattr(lance_store, "replace_atomically", refuse)
    assert_same_facts(read_unit_facts(scan, "conv1"), expected)
    assert not find_file(scan, 0).exists()
    del computed


PROGRAM = """
import sys, time
import sightline as sl
from pyarrow import parquet
from sightline.data.units.facts import read_unit_facts
write = parquet.write_table
def write_half(table, path):
    write(table, path)
    content = open(path, "rb").read()
    open(path, "wb").write(content[: len(content) // 2])
    print("half", flush=True)
    time.sleep(60)
parquet.write_table = write_half
read_unit_facts(sl.Scan.open({store!r}), "conv2")
"""


def test_a_kill_leaves_nothing_half_written(scan: sl.Scan) -> None:
    program = PROGRAM.format(store=str(scan.path))
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "half\n"
        child.send_signal(signal.SIGKILL)
    assert not find_file(scan, 2).exists()
    assert len(list((scan.path / "units").iterdir())) == 1
    with FileLock(scan.path / "lock").acquire(blocking=False):
        pass
    assert verify_store(scan.path) == []
    facts = read_unit_facts(scan, "conv2")
    assert_same_facts(facts, compute_unit_facts(scan, "conv2"))
    assert [path.name for path in (scan.path / "units").iterdir()] == ["2.parquet"]


def test_where_there_are_no_facts(odd_model: sl.Model, odd: sl.Scan, photos: Path) -> None:
    def refused(message: str, scan: sl.Scan, layer: str = "conv1") -> None:
        with pytest.raises(sl.SightlineError, match=message) as caught:
            read_unit_facts(scan, layer)
        assert "\n" not in str(caught.value)

    paths = sorted((photos / "odd").iterdir())
    refused("no layer in the store odd.scan named 'conv9'; did you mean", odd, "conv9")
    bare = sl.scan(odd_model, paths[:3], store=MemoryStore("bare.scan"), responses=False)
    refused("bare.scan was made without responses: scan again with --responses", bare)
    alone = sl.scan(odd_model, paths[:1], store=MemoryStore("alone.scan"))
    refused("alone.scan has only 1 image; facts of units need 2", alone)
    stopped = sl.scan(
        odd_model, paths, store=MemoryStore("stopped.scan"), batch=4, callback=lambda _: True
    )
    refused(r"stopped.scan is not complete \(4 of 22 files\)", stopped)
    pair = sl.scan(odd_model, paths[:2], store=MemoryStore("pair.scan"))
    facts = read_unit_facts(pair, "conv1")
    assert facts.top_images.shape == (6, 2)
    assert np.isnan(facts.selectivity).all()
