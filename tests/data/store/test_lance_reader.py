"""A store on disk as its readers find it: damaged, of a newer version, or with rows to spare."""

import json
import pickle
import shutil
from datetime import timedelta
from pathlib import Path

import pytest

import sightline as sl
from sightline.data.lance import open_lance_table
from sightline.data.store import lance_reader
from sightline.data.store.interface import ScanProgress
from sightline.data.store.lance_reader import LanceReader


@pytest.fixture(scope="module")
def stored(wide: sl.Model, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> sl.Scan:
    """A scan of the photographs."""
    path = tmp_path_factory.mktemp("stores") / "a.scan"
    return sl.scan(wide, photos, store=path, batch=8, k=5)


def test_broken_stores(stored: sl.Scan, tmp_path: Path) -> None:
    def refused(message: str, content: str | None = None) -> None:
        if content is not None:
            (tmp_path / "scan.json").write_text(content, encoding="utf-8")
        with pytest.raises(sl.SightlineError, match=message) as caught:
            sl.Scan.open(tmp_path)
        assert "\n" not in str(caught.value)

    description = stored.description.to_json()
    refused("is no store; sightline scan makes one")
    refused("is damaged: scan.json", "{")
    refused("is no store: its scan.json is something else", "[]")
    refused("its scan.json is something else", json.dumps({**description, "format": "other"}))
    refused("its scan.json is something else", json.dumps({**description, "version": "1"}))
    refused(
        r"was made by a newer version \(layout 2; this one reads 1\)",
        json.dumps({**description, "version": 2}),
    )
    refused("is damaged: scan.json .*k: ", json.dumps({**description, "k": "many"}))
    network = {**description["network"]}
    del network["short"]
    refused(
        r"is damaged: scan.json .*network\.short: Field required",
        json.dumps({**description, "network": network}),
    )
    (tmp_path / "scan.json").write_text(json.dumps(description), encoding="utf-8")
    (tmp_path / "state.safetensors").write_bytes(b"123")
    refused("is damaged: state.safetensors")
    with pytest.raises(sl.SightlineError, match="absent is no store: there is nothing"):
        sl.Scan.open(tmp_path / "absent")


def test_a_description_alone_is_a_store_without_images(stored: sl.Scan, tmp_path: Path) -> None:
    (tmp_path / "scan.json").write_bytes((stored.path / "scan.json").read_bytes())
    reader = LanceReader(tmp_path)
    assert reader.progress == ScanProgress()
    assert reader.description == stored.description
    with pytest.raises(sl.SightlineError, match="its table of images can't be opened"):
        reader.read_images(["id"])


def test_rows_by_range_and_by_id(stored: sl.Scan) -> None:
    reader = stored.reader
    assert reader.progress == ScanProgress(done=44, images=43, errors=1, complete=True)
    assert sorted(reader.read_images(["id"], range(5, 9))["id"].to_pylist()) == [5, 6, 7, 8]
    assert sorted(reader.read_images(["id"], range(41, 99))["id"].to_pylist()) == [41, 42]
    rows = reader.read_rows([7, 2, 7], ["path", "width"])
    assert rows.keys() == {2, 7}
    assert rows[7] == {"id": 7, "path": stored.paths[7], "width": 56}
    assert reader.read_rows([], ["path"]) == {}
    batches = list(reader.iterate_images(["id"], 10))
    assert sorted(id for batch in batches for id in batch["id"].to_pylist()) == list(range(43))
    assert max(len(batch) for batch in batches) <= 10


def test_damaged_index_file_gives_no_index(
    stored: sl.Scan, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "scan.json").write_bytes((stored.path / "scan.json").read_bytes())
    reader = LanceReader(tmp_path)
    assert reader.read_indexes() == {}
    with caplog.at_level("DEBUG", logger=lance_reader.__name__):
        for content in ("{", "[]", '{"a": 1}', '{"a": {"lists": 1}}'):
            (tmp_path / "index.json").write_text(content, encoding="utf-8")
            assert reader.read_indexes() == {}
    assert len(caplog.records) == 4


class RustPanic(BaseException):
    """What LanceDB's Rust code raises where it can't go on."""


class PanickingTable:
    """A table of a damaged store, none of whose content can be asked for."""

    def __getattr__(self, name: str) -> object:
        raise RustPanic(f"{name}: index out of bounds")


def test_a_panic_is_one_line_whatever_was_asked_for(
    stored: sl.Scan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lance_reader, "open_lance_table", lambda *_: PanickingTable())
    reader = LanceReader(stored.path)
    for read in (
        lambda: reader.read_images(["id"]),
        lambda: reader.read_rows([0], ["path"]),
        lambda: list(reader.iterate_images(["id"], 4)),
        reader.read_errors,
    ):
        with pytest.raises(sl.SightlineError, match=r"is damaged: its table of .* can't be read"):
            read()
    assert reader.count_left_overs() == 0


@pytest.fixture
def opened_tables(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the tables that are opened from now on."""
    names: list[str] = []
    open_table = lance_reader.open_lance_table

    def open_noted(folder: Path, name: str) -> object:
        names.append(name)
        return open_table(folder, name)

    monkeypatch.setattr(lance_reader, "open_lance_table", open_noted)
    return names


def test_the_table_stays_open_in_its_process(
    stored: sl.Scan, opened_tables: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = stored.paths
    opened_tables.clear()  # the scan opens a table of its own
    reader = LanceReader(stored.path)
    for id in (3, 4, 5):
        assert reader.read_rows([id], ["path"])[id]["path"] == paths[id]
    assert opened_tables == ["images"]
    copied = pickle.loads(pickle.dumps(reader))
    assert copied.read_rows([6], ["path"])[6]["path"] == paths[6]
    assert opened_tables == ["images"] * 2
    monkeypatch.setattr(lance_reader.os, "getpid", lambda: -1)
    assert reader.read_rows([7], ["path"])[7]["path"] == paths[7]
    assert opened_tables == ["images"] * 3


@pytest.mark.filterwarnings("ignore:optimize.cleanup_older_than=0")
def test_a_table_that_was_compacted_meanwhile_is_opened_again(
    stored: sl.Scan, opened_tables: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "copied.scan"
    shutil.copytree(stored.path, path)
    reader = LanceReader(path)
    expected_rows = reader.read_rows([1], ["path"])
    table = open_lance_table(path, "images")
    table.update(where="id = 1", values={"width": 56})
    table.optimize(cleanup_older_than=timedelta(0), delete_unverified=True)
    assert reader.read_rows([1], ["path"]) == expected_rows
    assert opened_tables == ["images"] * 2
