"""A store on disk, written: its lock, the order of commits, and what is taken for a store."""

from pathlib import Path

import pytest

import sightline as sl
from sightline.data.store import lance_store
from sightline.data.store.interface import ErrorRow, ScanProgress
from sightline.data.store.lance_reader import open_table
from sightline.data.store.lance_store import LanceStore, is_store_or_empty


@pytest.fixture
def stopped(wide: sl.Model, photos: Path, tmp_path: Path) -> sl.Scan:
    """A scan that was stopped after two batches of eight."""
    return sl.scan(
        wide,
        photos,
        store=tmp_path / "a.scan",
        batch=8,
        k=5,
        callback=lambda event: event.done >= 16,
    )


def test_a_second_writer_of_the_same_thread_is_refused(stopped: sl.Scan) -> None:
    with (
        stopped.store.open_writer(stopped.description),
        pytest.raises(sl.SightlineError, match=r"a.scan is being written by this thread already"),
        stopped.store.open_writer(stopped.description),
    ):
        pass
    with stopped.store.open_writer(stopped.description) as writer:
        assert writer.progress.done == 16


def test_errors_within_a_writer_stay_what_they_are(stopped: sl.Scan) -> None:
    """A caller's OSError is not taken for the store's disk."""
    with (
        pytest.raises(TimeoutError, match=r"^caller$"),
        stopped.store.open_writer(stopped.description),
    ):
        raise TimeoutError("caller")


def test_what_is_a_store(stopped: sl.Scan, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked" / "lock").write_text("", encoding="utf-8")
    assert is_store_or_empty(stopped.path)
    assert is_store_or_empty(tmp_path / "empty")
    assert is_store_or_empty(tmp_path / "locked")
    assert not is_store_or_empty(tmp_path / "file")
    assert not is_store_or_empty(tmp_path)


def test_left_overs_are_removed_by_the_next_writer(stopped: sl.Scan) -> None:
    """Rows of images and errors that were added, and a process that died before its commit."""
    with stopped.store.open_writer(stopped.description) as writer:
        writer.add_rows([], [ErrorRow(16, "a", "b"), ErrorRow(15, "c", "d")])
    images = open_table(stopped.path, "images")
    rows = images.search().limit(1).to_arrow()
    ids = rows.schema.get_field_index("id")
    images.add(rows.set_column(ids, rows.schema.field("id"), [[15]]))
    assert open_table(stopped.path, "images").count_rows() == 16
    assert open_table(stopped.path, "errors").count_rows() == 3
    # No reader sees them.
    reader = stopped.store.open_reader()
    assert sorted(reader.read_images(["id"])["id"].to_pylist()) == list(range(15))
    assert sorted(reader.read_images(["id"], range(12, 20))["id"].to_pylist()) == [12, 13, 14]
    assert sum(len(batch) for batch in reader.iterate_images(["id"], 4)) == 15
    assert [error.position for error in reader.read_errors()] == [2, 15]

    with stopped.store.open_writer(stopped.description) as writer:
        assert writer.progress == stopped.reader.progress
    assert open_table(stopped.path, "images").count_rows() == 15
    positions = open_table(stopped.path, "errors").to_arrow()["position"].to_pylist()
    assert sorted(positions) == [2, 15]


def test_state_is_what_was_committed(stopped: sl.Scan, wide: sl.Model, tmp_path: Path) -> None:
    with stopped.store.open_writer(stopped.description) as writer:
        tensors = writer.load_state()
        progress = ScanProgress(done=17, images=15, errors=2)
        writer.commit({**tensors, "top.values": tensors["top.values"] + 1}, progress)
        assert writer.progress == progress
    reader = LanceStore(stopped.path).open_reader()
    assert reader.progress == progress
    assert reader.read_state("top.values").equal(tensors["top.values"] + 1)
    mode = (stopped.path / "state.safetensors").stat().st_mode
    assert mode == (stopped.path / "scan.json").stat().st_mode
    new = LanceStore(tmp_path / "new.scan")
    with new.open_writer(stopped.description) as writer:
        assert writer.load_state() == {}
        assert writer.progress == ScanProgress()
    assert new.open_reader().description == stopped.description


def test_a_path_that_cannot_be_written(stopped: sl.Scan, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    for path in (tmp_path / "file" / "a.scan", Path("/proc/sightline.scan")):
        with (
            pytest.raises(sl.SightlineError, match="can't write") as caught,
            LanceStore(path).open_writer(stopped.description),
        ):
            pass
        assert "\n" not in str(caught.value)


def test_fragments_of_a_cluster_stay_large(
    stopped: sl.Scan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where workers wrote pieces that are large enough, nothing is merged."""
    rows = stopped.reader.read_images(stopped.reader.read_images(["id"]).column_names)
    assert len(rows) == 15
    merged: list[str] = []
    monkeypatch.setattr(lance_store, "remove_stale_fragments", lambda path: merged.append("stale"))
    monkeypatch.setattr(lance_store, "count_fragments", lambda table: 1)
    with stopped.store.open_writer(stopped.description) as writer:
        writer._has_fragments = True
        monkeypatch.setattr(lance_store, "MIN_LARGE_FRAGMENT_ROWS", 16)
        writer.compact()
        assert merged == []
        monkeypatch.setattr(lance_store, "MIN_LARGE_FRAGMENT_ROWS", 15)
        writer.compact()
        assert merged == ["stale"]
