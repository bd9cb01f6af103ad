"""A second process that makes sections of a report while the first one makes others.

Python runs one thread at a time, so a second thread makes a report no faster. Both processes give
torch's operations as many threads as a single command does, so that a section's recipe makes it
again to the bit.

Nothing here imports torch until the second process does, which begins beside the first one's
imports.
"""

import logging
import logging.handlers
import multiprocessing
import os
import pickle
import queue
import signal
import warnings
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from sightline.app.machine.process import ignore_decoder_warnings, remove_unfinished_files

if TYPE_CHECKING:
    from sightline.app.web.report.section import ReportSection
    from sightline.models.model import Model

logger = logging.getLogger(__name__)

# The second process holds a network of its own. One of more bytes stays in the first process.
MAX_NETWORK_BYTES = 2**29

# An operation of torch delays the end of a process that was asked to end.
MAX_END_SECONDS = 10


class SharedReport(Protocol):
    """A report that two processes make, each with a copy of its own."""

    model: "Model"

    def plan_sections(self, label: int) -> "Iterable[ReportSection]":
        """Every section, without results."""
        ...

    def run_section(
        self, section: "ReportSection", label: int, callback: Callable[[object], None]
    ) -> "ReportSection":
        """The section with its result, or with the reason why it has none."""
        ...


@dataclass(frozen=True)
class ReportTask:
    """What the second process is told first: the report, the index of its class, where it goes."""

    report: SharedReport
    label: int
    folder: Path
    log_level: int


@dataclass
class SectionReply:
    """What the second process answers: the finished section, and what it would have shown.

    Attributes:
        error: Why the files of the section could not be written, or empty.
        notes: The warnings.
    """

    section: "ReportSection"
    error: str = ""
    notes: list[warnings.WarningMessage] = field(default_factory=list[warnings.WarningMessage])
    log: list[logging.LogRecord] = field(default_factory=list[logging.LogRecord])


class SectionWorker:
    """The second process, as the first one sees it. It lives within `with`.

    Where it can't take the report, or ends early, its methods say so, and the first process makes
    every section by itself.
    """

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, self._far_end = context.Pipe()
        self.process = context.Process(
            target=serve_sections, args=(self._far_end,), name="sections", daemon=True
        )

    def __enter__(self) -> Self:
        with ignore_interrupts():  # a process inherits that: this one hears Ctrl-C for both
            self.process.start()
        self._far_end.close()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        origin: TracebackType | None,
    ) -> None:
        self.stop()
        self.connection.close()

    def stop(self) -> None:
        """Ends the process, whatever it is making."""
        self.process.terminate()
        self.process.join(MAX_END_SECONDS)
        self.process.kill()

    def take_report(self, report: SharedReport, label: int, folder: Path) -> bool:
        """Sends the report. Returns whether the process will make sections of it; if not, it ends.

        A network that is large, on another device or can't be pickled stays in one process.
        """
        is_taken = can_be_shared(report.model) and self._send_report(report, label, folder)
        if not is_taken:
            self.stop()
        return is_taken

    def _send_report(self, report: SharedReport, label: int, folder: Path) -> bool:
        """Sends the report; returns whether it was understood."""
        level = logging.getLogger("sightline").getEffectiveLevel()
        try:
            task = pickle.dumps(ReportTask(report, label, folder.absolute(), level))
            self.connection.send_bytes(task)
            return bool(self.connection.recv())
        except Exception:  # what can't be pickled raises errors of any kind
            logger.debug("the report is made in one process", exc_info=True)
            return False

    def make(self, section: "ReportSection") -> SectionReply | None:
        """The finished section, its files written; None if the process has ended."""
        try:
            self.connection.send(section.folder)
            reply = pickle.loads(self.connection.recv_bytes())
        except Exception:  # of the pipe where the process has ended, or of pickle
            logger.debug("the second process of the report ended", exc_info=True)
            return None
        for warning in reply.notes:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
        for record in reply.log:
            logging.getLogger(record.name).handle(record)
        return reply


def can_be_shared(model: "Model") -> bool:
    """Whether a second process may run the network too: on processors, and not too large."""
    tensors = [*model.network.parameters(), *model.network.buffers()]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return model.device.type == "cpu" and size <= MAX_NETWORK_BYTES


@contextmanager
def ignore_interrupts() -> Generator[None, None, None]:
    """Ignores Ctrl-C while the block runs."""
    previous_handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous_handler)


# ── in the second process ──


def serve_sections(connection: Connection) -> None:
    """Makes sections until the first process ends or closes the connection.

    Ends early where the report or a section can't be sent, so that the first process makes them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited everywhere but on Windows
    signal.signal(signal.SIGTERM, end_process)
    ignore_decoder_warnings()
    from sightline.methods import load_methods

    load_methods()
    try:
        task: ReportTask = pickle.loads(connection.recv_bytes())
        sections = {section.folder: section for section in task.report.plan_sections(task.label)}
        connection.send(True)
        while True:
            section = sections[connection.recv()]
            connection.send_bytes(pickle.dumps(make_section(task, section)))
    except EOFError:
        pass  # the first process needs no more
    except Exception:
        logger.debug("the second process of the report ends early", exc_info=True)


def make_section(task: ReportTask, section: "ReportSection") -> SectionReply:
    """Runs one section and writes its files."""
    records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    handler = logging.handlers.QueueHandler(records)
    package_logger = logging.getLogger("sightline")
    package_logger.setLevel(task.log_level)
    package_logger.addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as caught:
            reply = SectionReply(task.report.run_section(section, task.label, ignore_step))
            reply.error = save_section(reply.section, task.folder)
    finally:
        package_logger.removeHandler(handler)
    reply.notes = list(caught)
    while not records.empty():
        reply.log.append(records.get())
    return reply


def ignore_step(_step: object) -> None:
    """The callback of methods whose progress is shown nowhere."""


def save_section(section: "ReportSection", folder: Path) -> str:
    """Writes the files of a section. Returns why that failed, or an empty text."""
    if section.result is None:
        return ""
    try:
        section.result.save(folder / section.folder)
    except Exception as error:
        logger.debug("the files of %s can't be written", section.folder, exc_info=True)
        return str(error)
    return ""


def end_process(_number: int, _frame: FrameType | None) -> None:
    """Ends the process without leaving half-written files."""
    remove_unfinished_files()
    os._exit(0)
