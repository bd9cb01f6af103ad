"""A report made by two processes: the same as by one, and whole where the second one fails."""

import logging
import pickle
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from helpers import small_network, smooth
from torch import Tensor

import sightline as sl
from sightline.app.report import tour
from sightline.app.report.tour import TourReport
from sightline.app.report.worker import ReportTask, SectionWorker, can_be_shared, make_section
from sightline.app.web.report.section import ReportSection
from sightline.images.io import pictures
from sightline.methods import load_methods

METHODS = load_methods()
CHOSEN = ("predictions", "saliency", "neighbors", "labels")
OVER_A_SCAN = {"neighbors", "labels"}


@pytest.fixture
def make_report(
    tiny: sl.Model, photo: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Any:
    """Makes a report of four sections, two of them over twelve photographs."""
    for number, picture in enumerate(smooth(12, side=24)):
        pictures.write(picture[None], tmp_path / "photos" / f"{number}.png")
    catalogue = {name: METHODS[name] for name in CHOSEN}
    monkeypatch.setattr(tour, "load_methods", lambda: catalogue)

    def make(model: sl.Model = tiny) -> TourReport:
        folder = str(tmp_path / "photos")
        return TourReport(model, photo, source="photo.png", quick=True, dataset_folder=folder)

    return make


def tell_nothing(_stage: str, _done: float) -> None:
    """No progress display."""


def read_sections(folder: Path) -> dict[str, bytes]:
    """Every file of every section."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.glob("*/*")
        if path.is_file()
    }


def test_two_processes_make_the_same_report(
    make_report: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    make = SectionWorker.make

    def record(self: SectionWorker, section: ReportSection) -> Any:
        reply = make(self, section)
        if reply:
            made.append(section.folder)
        return reply

    monkeypatch.setattr(SectionWorker, "make", record)
    alone, shared = make_report(), make_report()
    alone.write_report(tmp_path / "alone", tell_nothing)
    with SectionWorker() as worker:
        shared.write_report(tmp_path / "shared", tell_nothing, worker)
        assert worker.process.exitcode is not None, "it ends with the sections"

    assert made, "the second process made no section"
    assert made[0] in OVER_A_SCAN
    assert [section.folder for section in shared.sections] == list(CHOSEN)
    assert read_sections(tmp_path / "alone") == read_sections(tmp_path / "shared") != {}
    by_folder = {section.folder: section for section in shared.sections}
    for section in alone.sections:
        other = by_folder[section.folder]
        assert section.command == other.command
        assert section.trust_summary == other.trust_summary
    shared.check_failures()


def test_what_a_killed_process_was_making_is_made_here(
    make_report: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = SectionWorker.make

    def kill_first(self: SectionWorker, section: ReportSection) -> Any:
        self.process.kill()
        self.process.join()
        return make(self, section)

    monkeypatch.setattr(SectionWorker, "make", kill_first)
    report = make_report()
    with SectionWorker() as worker:
        report.write_report(tmp_path / "report", tell_nothing, worker)
    assert [section.folder for section in report.sections] == list(CHOSEN)
    assert all(section.result for section in report.sections)


def test_files_that_the_second_process_can_not_write_are_told(
    make_report: Any, tmp_path: Path
) -> None:
    for name in OVER_A_SCAN:
        blocking = tmp_path / "report" / name
        blocking.parent.mkdir(exist_ok=True)
        blocking.write_text("not a folder", encoding="utf-8")
    report = make_report()
    with (
        SectionWorker() as worker,
        pytest.raises(sl.SightlineError, match=r"report/\w+': File exists"),
    ):
        report.write_report(tmp_path / "report", tell_nothing, worker)
    assert (tmp_path / "report" / "saliency" / "recipe.json").is_file()


def test_a_network_that_can_not_be_sent_stays_in_one_process(
    make_report: Any, tmp_path: Path
) -> None:
    class Local(type(small_network())):
        """A class that no other process finds."""

    network = Local(*small_network())
    report = make_report(sl.load(network, size=32))
    with SectionWorker() as worker:
        assert not worker.take_report(report, 0, tmp_path)
        assert worker.process.exitcode is not None


def test_large_networks_are_not_held_twice(tiny: sl.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    assert can_be_shared(tiny)
    size = sum(4 * parameter.numel() for parameter in tiny.network.parameters())
    monkeypatch.setattr("sightline.app.report.worker.MAX_NETWORK_BYTES", size - 1)
    assert not can_be_shared(tiny)


@dataclass
class OneReply:
    """The first process's end of a pipe whose other end has answered."""

    answer: bytes

    def send(self, _name: str) -> None:
        """Takes a question."""

    def recv_bytes(self) -> bytes:
        """The answer."""
        return self.answer


def test_warnings_and_log_lines_come_out_in_the_first_process(
    make_report: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def warn(*_: object, **__: object) -> sl.Result:
        warnings.warn("the image is small", stacklevel=1)
        logging.getLogger("sightline.methods.some").info("took %d steps", 3)
        return sl.Result({}, {"steps": 3}, recipe={"image": {}})

    report = make_report()
    method = replace(METHODS["predictions"], function=warn)
    section = ReportSection(method=method, folder="predictions", command="", parameters={})
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        reply = make_section(ReportTask(report, 0, tmp_path, logging.INFO), section)
    caplog.clear()

    # Of the method, whose function is local here, only the name is needed.
    made = replace(reply.section, method=METHODS["predictions"])
    worker = SectionWorker()
    worker.connection = OneReply(pickle.dumps(replace(reply, section=made)))  # type: ignore[assignment]
    with pytest.warns(UserWarning, match="the image is small"):
        answered = worker.make(section)
    assert answered
    assert answered.section.result
    assert answered.section.result.values == {"steps": 3}
    (record,) = caplog.records
    assert (record.name, record.getMessage()) == ("sightline.methods.some", "took 3 steps")
