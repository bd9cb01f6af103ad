"""The cache is listed and removed, and nothing outside it ever is."""

import json
import os
import time
from pathlib import Path

import pytest
from filelock import FileLock

import sightline as sl
from sightline.app.cli.main import main
from sightline.app.machine.cache import (
    CacheEntry,
    list_cache_entries,
    remove_cache_entries,
)
from sightline.data.writer_lock import LOCK_FILE
from sightline.images.files import get_cache_folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with two scans, a list, and a link to a folder outside."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    folder = tmp_path / "xdg" / "sightline"
    for name, size in (("old.scan", 300), ("new.scan", 7000)):
        (folder / "scans" / name / "rows.lance").mkdir(parents=True)
        (folder / "scans" / name / "rows.lance" / "data").write_bytes(b"x" * size)
        (folder / "scans" / name / LOCK_FILE).touch()
    (folder / "lists").mkdir()
    (folder / "lists" / "files.txt").write_bytes(b"y" * 50)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"z" * 9000)
    (folder / "scans" / "linked").symlink_to(tmp_path / "photos", target_is_directory=True)
    (folder / "scans" / "old.scan" / "inner").symlink_to(tmp_path / "photos")
    set_age(folder / "scans" / "old.scan", days=30)
    return folder


def set_age(path: Path, days: float) -> None:
    """Sets the time of a folder and of all in it."""
    then = time.time() - days * 86_400
    for folder, _, files in os.walk(path, topdown=False):
        for name in files:
            os.utime(Path(folder, name), (then, then), follow_symlinks=False)
        os.utime(folder, (then, then))
    os.utime(path / "inner", (then, then), follow_symlinks=False)


def test_entries_with_their_sizes_and_ages(cache: Path) -> None:
    entries = list_cache_entries()
    assert get_cache_folder() == cache
    assert [entry.path.name for entry in entries][:2] == ["new.scan", "old.scan"]
    by_name = {entry.path.name: entry for entry in entries}
    assert by_name["new.scan"].size == 7000
    assert by_name["old.scan"].size < 9000, "what a link points to is not counted"
    assert by_name["linked"].size < 9000
    assert 29.9 < by_name["old.scan"].days < 30.1
    assert by_name["files.txt"].kind == "lists"
    assert by_name["files.txt"].days < 1


def test_only_what_is_old_goes(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cache", "clear", "--older-than", "7"]) == 0
    output = capsys.readouterr().out
    assert "old.scan" in output
    assert "new.scan" not in output
    assert not (cache / "scans" / "old.scan").exists()
    assert (cache / "scans" / "new.scan" / "rows.lance" / "data").exists()
    assert (tmp_path / "photos" / "cat.jpg").exists()


def test_clear_removes_all_but_what_links_point_to(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cache", "clear", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert len(summary["removed"]) == 4
    assert summary["kept"] == {}
    assert list_cache_entries() == []
    assert (tmp_path / "photos" / "cat.jpg").stat().st_size == 9000
    assert main(["cache", "info"]) == 0
    assert "0 entries" in capsys.readouterr().out
    assert cache.exists()


def test_a_kind_that_is_a_link_is_not_followed(cache: Path, tmp_path: Path) -> None:
    (cache / "other").symlink_to(tmp_path / "photos", target_is_directory=True)
    assert all(entry.kind != "other" for entry in list_cache_entries())


def test_nothing_outside_the_cache_is_removed(cache: Path, tmp_path: Path) -> None:
    outside = CacheEntry(tmp_path / "photos" / "cat.jpg", "photos", 9000, 0.0)
    with pytest.raises(sl.SightlineError, match="is not in the cache"):
        remove_cache_entries([*list_cache_entries(), outside])
    assert outside.path.exists()
    assert (cache / "lists" / "files.txt").exists(), "nothing else was removed before"


def test_a_scan_that_is_being_written_stays(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FileLock(cache / "scans" / "new.scan" / LOCK_FILE):
        assert main(["cache", "clear"]) == 1
    captured = capsys.readouterr()
    assert "new.scan (another process writes it)" in captured.err
    assert "old.scan" in captured.out
    assert (cache / "scans" / "new.scan" / "rows.lance" / "data").exists()


def test_no_cache_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "none"))
    assert main(["cache", "info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["entries"] == []
    assert main(["cache", "clear"]) == 0
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("days", ["-1", "soon", "nan"])
def test_days_that_are_none(days: str, cache: Path) -> None:
    assert main(["cache", "clear", "--older-than", days]) in (1, 2)
    assert (cache / "scans" / "old.scan").exists()
