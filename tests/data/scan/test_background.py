"""The scan beside other work: complete after `wait`, ended by its `with`, silent about errors."""

from pathlib import Path

import pytest
from helpers import smooth

import sightline as sl
from sightline.data.scan import run
from sightline.data.scan.background import BackgroundScan


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nine photographs, and a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for seed in range(9):
        sl.write(smooth(side=40, seed=seed)[..., :36], tmp_path / "photos" / f"{seed}.png")
    return tmp_path / "photos"


def test_the_scan_is_complete_after_waiting(tiny: sl.Model, folder: Path) -> None:
    with BackgroundScan(tiny, str(folder)) as background:
        background.wait()
        found = sl.scan(tiny, folder, callback=lambda _: pytest.fail("it is scanned again"))
    assert found.complete
    assert found.images == 9


def test_leaving_ends_the_pass_after_its_batch(
    tiny: sl.Model, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[run.Passing] = []

    def scan_by_threes(model: sl.Model, source: str | None, callback: run.ScanCallback) -> sl.Scan:
        def note(event: run.Passing) -> object:
            events.append(event)
            background.is_stopped.wait(60)
            return callback(event)

        return sl.scan(model, source, batch=3, callback=note)

    monkeypatch.setattr("sightline.data.scan.background.scan", scan_by_threes)
    with BackgroundScan(tiny, str(folder)) as background:
        pass
    assert not background.thread.is_alive()
    assert len(events) <= 1
    assert sl.scan(tiny, folder, batch=3).complete


def test_an_error_is_left_to_who_needs_the_scan(tiny: sl.Model, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with BackgroundScan(tiny, str(tmp_path / "empty")) as background:
        background.wait()
    with pytest.raises(sl.SightlineError, match="empty"):
        sl.scan(tiny, tmp_path / "empty")
