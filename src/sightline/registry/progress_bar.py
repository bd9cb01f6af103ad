"""A bar that shows how far a method or a scan is, in a notebook or a terminal."""

from typing import Protocol


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


class ProgressBar:
    """A callback that draws a bar: `sl.synthesis(model, "church", callback=sl.ProgressBar())`.

    For every method that takes `callback`, and for `sl.scan`. One object can follow several runs,
    one after the other. The bar is text on the error stream, which notebooks show below the cell.
    It never stops a run.

    Args:
        title: What stands before the bar.
    """

    def __init__(self, title: str = "") -> None:
        from tqdm import tqdm

        self.title = title
        self._make_bar = tqdm
        self._bar: tqdm | None = None

    def __call__(self, event: StepEvent | PassingEvent) -> None:
        """Moves the bar to a step or a batch of files; the last one ends it."""
        done = getattr(event, "index", None)
        if done is None:
            done = getattr(event, "done", 0)
        bar = self._bar
        if bar is None or done < bar.n:
            self.close()
            bar = self._make_bar(total=event.total, desc=self.title or None)
            self._bar = bar
        bar.update(done - bar.n)
        if done >= event.total:
            self.close()

    def close(self) -> None:
        """Ends the bar where it is, as after a run that was interrupted."""
        if self._bar is not None:
            self._bar.close()
        self._bar = None
