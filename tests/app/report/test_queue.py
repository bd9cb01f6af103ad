"""Sections shared by two processes: none is lost or made twice, and one process makes the scan."""

import threading
from dataclasses import replace

import pytest

from sightline.app.report.queue import SectionQueue
from sightline.app.web.report.section import ReportSection
from sightline.methods import load_methods

PLAIN = ["predictions", "saliency", "rise"]
OVER_A_SCAN = ["neighbors", "patches", "labels"]


@pytest.fixture
def sections() -> dict[str, ReportSection]:
    """Sections of both kinds, mixed."""
    methods = load_methods()
    return {
        name: ReportSection(method=methods[name], folder=name, command="", parameters={})
        for pair in zip(OVER_A_SCAN, PLAIN, strict=True)
        for name in pair
    }


def take_name(queue: SectionQueue, *, scan_first: bool = False) -> str | None:
    """The name of the next section."""
    section = queue.take(scan_first=scan_first)
    return section.folder if section else None


def test_alone_the_scan_comes_last(sections: dict[str, ReportSection]) -> None:
    queue = SectionQueue(list(sections.values()))
    names: list[str] = []
    while section := queue.take():
        names.append(section.folder)
        queue.finish(section)
    assert names == PLAIN + OVER_A_SCAN


def test_while_one_scans_the_other_gets_what_needs_no_scan(
    sections: dict[str, ReportSection],
) -> None:
    queue = SectionQueue(list(sections.values()))
    assert take_name(queue, scan_first=True) == "neighbors"
    assert [take_name(queue) for _ in PLAIN] == PLAIN

    waiting: list[str | None] = []
    other = threading.Thread(target=lambda: waiting.append(take_name(queue)))
    other.start()
    other.join(0.2)
    assert other.is_alive(), "what is left needs the scan"
    assert waiting == []

    # A finished section is a copy with its result.
    queue.finish(replace(sections["neighbors"], seconds=1.0))
    other.join(10)
    assert waiting == ["patches"]
    assert take_name(queue, scan_first=True) == "labels"
    assert take_name(queue) is None


def test_once_there_is_a_scan_both_read_it(sections: dict[str, ReportSection]) -> None:
    queue = SectionQueue(list(sections.values()))
    first = queue.take(scan_first=True)
    assert first
    queue.finish(first)
    assert take_name(queue, scan_first=True) == "patches"
    assert take_name(queue, scan_first=True) == "labels"
    assert take_name(queue, scan_first=True) == "predictions"


def test_what_is_given_back_is_made_by_the_other(sections: dict[str, ReportSection]) -> None:
    queue = SectionQueue(list(sections.values()))
    scanning = queue.take(scan_first=True)
    assert scanning
    assert [take_name(queue) for _ in PLAIN] == PLAIN
    queue.give_back(scanning)
    assert take_name(queue) == "neighbors"
    queue.finish(scanning)
    assert [take_name(queue), take_name(queue), take_name(queue)] == ["patches", "labels", None]
