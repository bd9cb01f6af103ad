"""The pass: images are decoded ahead in threads, a batch goes through the network once, and all that is kept is taken on the way."""

import hashlib
import json
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import SightlineError, first_line, outside
from ..fitted import Fitted, fitted, stacked, thumbnail
from ..model import Model
from ..outputs import positions
from . import layout
from .collection import Collection, collect, sha256
from .peaks import Peaks
from .store import Scan
from .top import Tally
from .writing import Writer, writing

K, CLASS_K, SAMPLE = 25, 5, 256
CLASS_ENTRIES = 16_000_000  # units × classes × images kept for each class at most
AHEAD = 2  # batches decoded while one is in the network
COMMIT_SHARE, COMMIT_SECONDS = 0.02, 5.0  # commits take at most this share of the time, and are this far apart at least


@dataclass(frozen=True)
class Passing:
    """How far a pass has come: positions done of all, files that could not be read, images a second since it began."""

    done: int
    total: int
    errors: int
    rate: float


def scan(
    model: Model,
    folder: Any = None,
    *,
    store: str | Path | None = None,
    layers: Sequence[str] | None = None,
    vectors: Sequence[str] = ("penultimate",),
    k: int | None = None,
    size: int | None = None,
    batch: int = 32,
    callback: Callable[[Passing], object] | None = None,
) -> Scan:
    """Passes a collection of images through a network once and keeps what it answers; goes on where an earlier pass ended.

    Args:
        model: the network.
        folder: a folder, a pattern, a text list, tar shards, Parquet or Lance files, a list of paths, a dataset object;
            tiles of the sample photographs by default (`collect` tells more).
        store: where it is kept; by default in the user's cache, under a name that changes with images, network and settings.
        layers: the layers whose units are followed; all convolutions by default.
        vectors: the layers whose features are kept for each image, averaged over places.
        k: images kept for each unit; 25, or all if there are fewer, by default.
        size: side in pixels that images are fitted to; the network's own by default.
        batch: images that go through the network at once; the results may differ in the last bit from batch to batch size.
        callback: called with a `Passing` after each batch; if it returns True the pass ends there and keeps what it has.

    Raises SightlineError where nothing can be read, for a store that was made of something else, a full or read-only disk.
    """
    found = collect(folder)
    facts = facts_of(model, found, layers, vectors, k, side=size or model.size, batch=batch)
    path = Path(store) if store is not None else cached(facts)
    with writing(path, facts) as writer:
        if not writer.tallies["complete"]:
            Pass(model, found, writer).run(callback)
    scanned = Scan.open(path)
    if scanned.complete and not scanned.images:
        name, why = scanned.errors[0]
        raise SightlineError(f"none of the {len(found)} files could be read; the first: {os.path.basename(name)}: {why.split(': ')[-1]}")
    return scanned


def facts_of(
    model: Model, found: Collection, layers: Sequence[str] | None, vectors: Sequence[str], k: int | None, *, side: int, batch: int
) -> dict[str, Any]:
    """All that a pass depends on, as the store tells it."""
    count = len(found)
    if k is not None and not 1 <= k <= count:
        raise SightlineError(f"k is {k}; the collection has {count} images") if k > count else outside("k", k, 1, count)
    if not 1 <= batch <= 4096:
        raise outside("batch", batch, 1, 4096)
    convolutions = [name for name in model.layers if isinstance(model.module(name), nn.Conv2d) and len(model.layers[name].shape) == 3]
    watched = list(dict.fromkeys(map(model.layer, layers))) if layers is not None else convolutions
    kept = list(dict.fromkeys(model.layer(name) for name in vectors))
    blank = torch.full((1, 3, side, side), 0.5, device=model.device)
    with torch.no_grad():
        outputs = model.run(blank, [*watched, *kept])
    shapes = {name: tuple(positions(outputs[name], blank).shape[1:]) for name in dict.fromkeys([*watched, *kept])}
    units = sum(shapes[name][0] for name in watched)
    per_class = max(1, min(CLASS_K, CLASS_ENTRIES // max(1, units * len(found.class_names))))
    return {
        "format": layout.FORMAT,
        "version": layout.VERSION,
        "model": model.recipe,
        "network": layout.network_facts(model, side),
        "labels": list(model.labels),
        "names": {**model._aliases, **model.landmarks},
        "layers": {name: {"units": shapes[name][0], "shape": list(shapes[name][1:])} for name in watched},
        "vectors": {name: shapes[name][0] for name in kept},
        "k": k or min(K, count),
        "class_k": per_class,
        "sample": SAMPLE,
        "batch": batch,
        "collection": {"kind": type(found).__name__, "source": found.source, "count": count, "sha256": found.digest},
        "class_names": list(found.class_names),
    }


def cached(facts: dict[str, Any]) -> Path:
    """The store's place in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = os.path.basename(facts["collection"]["source"] or facts["collection"]["kind"]) or "images"
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return cache / "sightline" / "scans" / f"{name[:40]}-{digest[:16]}.scan"


@dataclass(frozen=True)
class Read:
    """One file, read: its square, digest and thumbnail; or why not."""

    view: Fitted | None
    sha256: str = ""
    thumbnail: bytes = b""
    reason: str = ""


class Pass:
    """One run over a collection from where the store ends. Batches are fixed by position, so a resumed pass has the same."""

    def __init__(self, model: Model, found: Collection, writer: Writer) -> None:
        facts = writer.facts
        self.found, self.writer, self.batch = found, writer, facts["batch"]
        self.side, self.short = facts["network"]["side"], facts["network"]["short"]
        self.slices: dict[str, slice] = {}
        units = 0
        for name, layer in facts["layers"].items():
            self.slices[name] = slice(units, units + layer["units"])
            units += layer["units"]
        self.tally = Tally(units, facts["k"], facts["sample"], len(facts["class_names"]), facts["class_k"])
        if writer.state:
            self.tally.load(writer.state)
        self.peaks = Peaks(model, self.slices, facts["vectors"], self.tally)
        self.device = model.device
        self.tallies = dict(writer.tallies)
        self.images: list[dict[str, Any]] = []
        self.errors: list[dict[str, Any]] = []

    def run(self, callback: Callable[[Passing], object] | None) -> None:
        """To the end, or until the callback has enough."""
        total, first = len(self.found), self.tallies["done"]
        began = committed = time.monotonic()
        pause = COMMIT_SECONDS
        for start, batch in self.decoded(first):
            self.take(start, batch)
            done, now = start + len(batch), time.monotonic()
            self.tallies["done"] = done
            told = Passing(done, total, self.tallies["errors"], (done - first) / (now - began))
            stopped = callback is not None and callback(told)
            if stopped or done == total or now - committed > pause:
                self.commit(complete=done == total)
                committed = time.monotonic()
                pause = max(COMMIT_SECONDS, (committed - now) / COMMIT_SHARE)
            if stopped:
                return

    def commit(self, *, complete: bool) -> None:
        """Hands what has gathered to the store."""
        self.tallies["complete"] = int(complete)
        self.writer.commit(self.images, self.errors, self.tally.tensors(), dict(self.tallies))
        self.images.clear()
        self.errors.clear()
        if complete:
            self.writer.compact()

    def decoded(self, first: int) -> Generator[tuple[int, list[Read]], None, None]:
        """Batches by their first position, decoded in threads a little ahead."""
        starts = iter(range(first, len(self.found), self.batch))
        waiting: deque[tuple[int, list[Future[Read]]]] = deque()
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            try:
                while True:
                    while len(waiting) <= AHEAD and (start := next(starts, None)) is not None:
                        ends = min(start + self.batch, len(self.found))
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

    def take(self, start: int, batch: list[Read]) -> None:
        """One batch through the network."""
        for offset, read in enumerate(batch):
            if read.view is None:
                self.errors.append({"position": start + offset, "path": self.found.path(start + offset), "reason": read.reason})
        self.tallies["errors"] += sum(read.view is None for read in batch)
        good = [(start + offset, read, read.view) for offset, read in enumerate(batch) if read.view is not None]
        if not good:
            return
        first = self.tallies["images"]
        labels = torch.tensor([self.found.label(position) for position, _, _ in good])
        self.tally.begin(torch.arange(first, first + len(good)), labels)
        outputs = self.peaks.measure(stacked([view for _, _, view in good]).to(self.device))
        best = outputs["logits"].softmax(1).topk(min(5, outputs["logits"].shape[1]))
        for row, (position, read, view) in enumerate(good):
            self.images.append({
                "id": first + row, "position": position, "path": self.found.path(position), "sha256": read.sha256,
                "class": int(labels[row]), "height": view.height, "width": view.width, "thumbnail": read.thumbnail,
                "labels": best.indices[row].numpy(), "probabilities": best.values[row].numpy(),
                **{f"vector_{number}": outputs[name][row].numpy() for number, name in enumerate(self.writer.facts["vectors"])},
            })  # fmt: skip
        self.tallies["images"] += len(good)
