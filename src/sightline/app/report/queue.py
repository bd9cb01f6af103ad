"""The sections that a report still lacks, shared by the processes that make them."""

import threading
from collections.abc import Sequence

from sightline.app.web.report.section import ReportSection


class SectionQueue:
    """Sections in the order in which they are taken; those that read the same scan come last.

    The first of these makes the scan. While one process does so, the others get no section that
    reads it.
    """

    def __init__(self, sections: Sequence[ReportSection]) -> None:
        self._pending = list(sections)
        self._is_scanning = False
        self._has_scan = False
        self._changed = threading.Condition()

    def take(self, *, scan_first: bool = False) -> ReportSection | None:
        """The next section, with `scan_first` one that reads the scan if there is one.

        Waits while all that are left need a scan in progress. Returns None when none are left.
        """
        with self._changed:
            while self._pending:
                available = [
                    section
                    for section in self._pending
                    if not (self._is_scanning and reads_scan(section))
                ]
                if available:
                    by_place = sorted(available, key=reads_scan, reverse=scan_first)
                    return self._hand_out(by_place[0])
                self._changed.wait()
        return None

    def _hand_out(self, section: ReportSection) -> ReportSection:
        self._pending.remove(section)
        if reads_scan(section) and not self._has_scan:
            self._is_scanning = True
        return section

    def finish(self, section: ReportSection) -> None:
        """Tells that a section was made, whatever came of it."""
        with self._changed:
            if reads_scan(section):
                self._is_scanning = False
                self._has_scan = True
            self._changed.notify_all()

    def give_back(self, section: ReportSection) -> None:
        """Returns a section that was taken and could not be made here."""
        with self._changed:
            self._pending.insert(0, section)
            if reads_scan(section):
                self._is_scanning = False
            self._changed.notify_all()


def reads_scan(section: ReportSection) -> bool:
    """Whether a section reads the scan of a dataset."""
    # Those that take a store alone read a scan only if it is given.
    return {"folder", "store"} <= section.method.parameters.keys()
