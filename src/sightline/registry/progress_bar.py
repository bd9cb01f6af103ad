"""A bar that shows how far a method or a scan is, in a notebook or a terminal."""

import html
import sys
import time
from typing import Any, Protocol

# A notebook's page is changed at most so often.
SECONDS_BETWEEN_UPDATES = 0.1


class StepEvent(Protocol):
    """What is read of a `Step`, which counts from 1 to `total`."""

    @property
    def index(self) -> int: ...

    @property
    def total(self) -> int: ...


class PassingEvent(Protocol):
    """What is read of the `Passing` of a scan, which counts the files done."""

    @property
    def done(self) -> int: ...

    @property
    def total(self) -> int: ...


class NotebookBar:
    """A bar on a notebook's page, changed in place; `n` are the steps done."""

    def __init__(self, total: int, title: str) -> None:
        from IPython.display import display

        self.total = total
        self.title = title
        self.n = 0
        self._changed_at = time.monotonic()
        self._handle: Any = display(self._draw(), display_id=True)

    def update(self, steps: int) -> None:
        """Moves the bar by so many steps."""
        self.n += steps
        if time.monotonic() - self._changed_at >= SECONDS_BETWEEN_UPDATES:
            self._show()

    def close(self) -> None:
        """Shows where the run has ended."""
        self._show()

    def _show(self) -> None:
        self._changed_at = time.monotonic()
        if self._handle is not None:
            self._handle.update(self._draw())

    def _draw(self) -> Any:
        from IPython.display import HTML

        text = html.escape(f"{self.title} {self.n}/{self.total}".strip())
        return HTML(f'<progress value="{self.n}" max="{self.total}"></progress> {text}')


class ProgressBar:
    """A callback that draws a bar: `sl.synthesis(model, "church", callback=sl.ProgressBar())`.

    For every method that takes `callback`, and for `sl.scan`. One object can follow several runs,
    one after the other. A notebook shows the bar below the cell, a script on the error stream. It
    never stops a run.

    Args:
        title: What stands before the bar.
    """

    def __init__(self, title: str = "") -> None:
        self.title = title
        self._bar: Any = None

    def __call__(self, event: StepEvent | PassingEvent) -> None:
        """Moves the bar to a step or a batch of files; the last one ends it."""
        done = getattr(event, "index", None)
        if done is None:
            done = getattr(event, "done", 0)
        if self._bar is None or done < self._bar.n:
            self.close()
            self._bar = self._make_bar(event.total)
        self._bar.update(done - self._bar.n)
        if done >= event.total:
            self.close()

    def close(self) -> None:
        """Ends the bar where it is, as after a run that was interrupted."""
        if self._bar is not None:
            self._bar.close()
        self._bar = None

    def _make_bar(self, total: int) -> Any:
        if is_in_notebook():
            return NotebookBar(total, self.title)
        from tqdm import tqdm

        return tqdm(total=total, desc=self.title or None)


def is_in_notebook() -> bool:
    """Whether this is a kernel, which shows pages, rather than a script or a terminal."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None
