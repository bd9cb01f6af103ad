"""What commands show: lines of text, progress bars on the error stream, and how Ctrl-C is heard.

The first Ctrl-C stops a run after its step and keeps the picture; the second ends it at once.
"""

import io
import signal
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from sightline.errors import escape_control_characters

if TYPE_CHECKING:
    from sightline.registry.progress import Step


def print_lines(*lines: str) -> None:
    """Prints each text on one line, whatever names are in it.

    A name with line ends or terminal escape sequences can't move the cursor.
    """
    for line in lines:
        print(escape_control_characters(line))


@dataclass
class StepProgressBar:
    """A progress bar that shows steps; `stopped` after the first Ctrl-C.

    `end_command` handles a Ctrl-C that can't wait for a step.
    """

    display: Progress
    title: str
    end_command: Callable[[int, FrameType | None], Any] = signal.default_int_handler
    stopped: bool = False

    def on_step(self, event: "Step") -> bool:
        """The callback of iterative methods."""
        return self.update_display(event.index, event.total, self.title)

    def update_display(self, done: int, total: int, title: str) -> bool:
        """Moves the bar. Returns whether the run should stop."""
        if not self.display.tasks:
            self.display.add_task(title, total=total)
        task = self.display.tasks[0].id
        self.display.update(task, description=title, completed=done, total=total)
        return self.stopped

    def handle_interrupt(self, number: int, frame: FrameType | None) -> None:
        """Handles SIGINT: asks the run to stop, or ends it where there is nothing to keep."""
        if self.stopped or not self.display.tasks:
            self.end_command(number, frame)
        self.stopped = True


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a stream is a terminal; one that the caller closed is None, and is none."""
    return stream is not None and stream.isatty()


def make_progress_display(text_format: str, *, quiet: bool) -> Progress:
    """A progress display on the error stream, if that is a terminal."""
    console = Console(stderr=True, quiet=quiet or not is_terminal(sys.stderr))
    columns = (TextColumn(text_format), BarColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)


@contextmanager
def hide_downloads(*, quiet: bool) -> Generator[None, None, None]:
    """Keeps off the error stream what libraries show of a download, where nobody wants to see it.

    Our own lines are shown when the block ends.
    """
    if not quiet:
        yield
        return
    hidden = io.StringIO()
    try:
        with redirect_stderr(hidden):
            yield
    finally:
        own_lines = [
            line for line in hidden.getvalue().splitlines() if line.startswith("sightline")
        ]
        for line in own_lines:
            print(line, file=sys.stderr)


@contextmanager
def show_progress_bar(title: str, *, quiet: bool) -> Generator[StepProgressBar, None, None]:
    """A progress bar on the error stream, which handles Ctrl-C, while the block runs."""
    with make_progress_display("{task.description}", quiet=quiet) as display:
        bar = StepProgressBar(display, title)
        previous_handler = signal.getsignal(signal.SIGINT)
        if callable(previous_handler):
            bar.end_command = previous_handler
        with handle_interrupts(bar.handle_interrupt):
            yield bar


@contextmanager
def handle_interrupts(
    handler: Callable[[int, FrameType | None], Any],
) -> Generator[None, None, None]:
    """Gives Ctrl-C to another handler while the block runs."""
    previous_handler = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous_handler)
