"""Images are decoded ahead in threads, a batch goes through the network once, and all that is kept is taken on the way."""

import os
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ..errors import SightlineError, first_line
from ..fitted import Fitted, fitted, stacked, thumbnail
from ..model import Model
from . import layout
from .collection import Collection, sha256
from .peaks import Peaks
from .top import Tally
from .writing import Rows

AHEAD = 2  # batches decoded while one is in the network


@dataclass(frozen=True)
class Read:
    """One file, read: its square, digest and thumbnail; or why not."""

    view: Fitted | None
    sha256: str = ""
    thumbnail: bytes = b""
    reason: str = ""


class Part(NamedTuple):
    """Rows for the store from one stretch of a collection, the position where it ends, and how many of its images could be read;
    their rows, or the fragments in which a worker of a cluster has written them."""

    done: int
    readable: int
    images: Rows
    errors: Rows
    fragments: Sequence[str] = ()


class Eye:
    """A network that looks at a collection, with what is kept of its units."""

    def __init__(self, model: Model, found: Collection, facts: Mapping[str, Any], tally: Tally) -> None:
        self.found, self.tally, self.batch, self.device = found, tally, facts["batch"], model.device
        self.side, self.short, self.vectors = facts["network"]["side"], facts["network"]["short"], list(facts["vectors"])
        slices: dict[str, slice] = {}
        units = 0
        for name, layer in facts["layers"].items():
            slices[name] = slice(units, units + layer["units"])
            units += layer["units"]
        self.peaks = Peaks(model, slices, facts["vectors"], tally)

    def parts(self, first: int, end: int, id: int) -> Generator[Part, None, None]:
        """Batch by batch from one position to another; `id` is the first image's number."""
        for start, batch in self.decoded(first, end):
            part = self.take(start, batch, id)
            id += part.readable
            yield part

    def decoded(self, first: int, end: int) -> Generator[tuple[int, list[Read]], None, None]:
        """Batches by their first position, decoded in threads a little ahead."""
        starts = iter(range(first, end, self.batch))
        waiting: deque[tuple[int, list[Future[Read]]]] = deque()
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            try:
                while True:
                    while len(waiting) <= AHEAD and (start := next(starts, None)) is not None:
                        ends = min(start + self.batch, end)
                        waiting.append((start, [pool.submit(self.read, position) for position in range(start, ends)]))
                    if not waiting:
                        return
                    start, futures = waiting.popleft()
                    yield start, [future.result() for future in futures]
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def read(self, position: int) -> Read:
        """One file, decoded, or the reason why not."""
        try:
            source = self.found.read(position)
            view = fitted(source, self.side, self.short)
        except SightlineError as error:
            return Read(None, reason=first_line(error))
        except (OSError, ValueError) as error:
            return Read(None, reason=getattr(error, "strerror", None) or first_line(error))
        return Read(view, sha256(source), thumbnail(view, min(layout.THUMBNAIL, self.side)))

    def take(self, start: int, batch: list[Read], id: int) -> Part:
        """One batch through the network."""
        errors = [
            {"position": position, "path": self.found.path(position), "reason": read.reason}
            for position, read in enumerate(batch, start)
            if read.view is None
        ]
        good = [(position, read, read.view) for position, read in enumerate(batch, start) if read.view is not None]
        return Part(start + len(batch), len(good), self.look(good, id) if good else [], errors)

    def look(self, good: list[tuple[int, Read, Fitted]], id: int) -> Rows:
        """The rows of a batch's readable images."""
        places = [position for position, _, _ in good]
        labels = torch.tensor([self.found.label(position) for position in places])
        self.tally.begin(torch.arange(id, id + len(good)), labels, torch.tensor(places))
        outputs = self.peaks.measure(stacked([view for _, _, view in good]).to(self.device))
        best = outputs["logits"].softmax(1).topk(min(5, outputs["logits"].shape[1]))
        return [
            {
                "id": id + row, "position": position, "path": self.found.path(position), "sha256": read.sha256,
                "class": int(labels[row]), "height": view.height, "width": view.width, "thumbnail": read.thumbnail,
                "labels": best.indices[row].numpy(), "probabilities": best.values[row].numpy(),
                **{f"vector_{number}": outputs[name][row].numpy() for number, name in enumerate(self.vectors)},
            }
            for row, (position, read, view) in enumerate(good)
        ]  # fmt: skip
