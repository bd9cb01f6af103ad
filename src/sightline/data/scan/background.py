"""A scan beside other work."""

import logging
import threading
from types import TracebackType
from typing import Self

from sightline.data.scan.run import Passing, scan
from sightline.models.model import Model

logger = logging.getLogger(__name__)


class BackgroundScan:
    """A pass of a network over a dataset, in a thread of its own.

    Within `with`, it runs. Whoever needs the scan calls `wait`, and then `scan`, which finds the
    store complete or raises what ended this pass. The end of `with` ends the pass after its batch;
    what it has by then is kept.
    """

    def __init__(self, model: Model, folder: str | None = None) -> None:
        self.model = model
        self.folder = folder
        self.is_stopped = threading.Event()
        self.thread = threading.Thread(target=self.run, name="background scan")

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        origin: TracebackType | None,
    ) -> None:
        self.is_stopped.set()
        self.wait()

    def wait(self) -> None:
        """Returns when the pass has ended."""
        self.thread.join()

    def run(self) -> None:
        """The pass itself. An error is left to those who need the scan: they meet it, too."""

        def ask_whether_stopped(_event: Passing) -> bool:
            return self.is_stopped.is_set()

        try:
            scan(self.model, self.folder, callback=ask_whether_stopped)
        except Exception:
            logger.debug("the scan in the background ended early", exc_info=True)
