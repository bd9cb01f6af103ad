"""The pass over a collection: what it is of, where it is kept, how it goes on, and its commits."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from ..errors import SightlineError, outside, unknown
from ..model import Model
from ..outputs import positions
from . import layout
from .collection import Collection, collect
from .eye import Eye, Part
from .store import Scan
from .top import Tally
from .writing import Rows, Writer, writing

K, CLASS_K, SAMPLE = 25, 5, 256
CLASS_ENTRIES = 16_000_000  # units × classes × images kept for each class at most
COMMIT_SHARE, COMMIT_SECONDS = 0.02, 5.0  # commits take at most this share of the time, and are this far apart at least
ROWS = 2048  # rows in memory: with more they are written, and wait for the commit on the disk

Engine = Literal["local", "ray"]


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
    engine: Engine = "local",
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
        engine: `ray` divides the pass over the workers of a Ray cluster (extra `cluster`), which must see the same files.
        callback: called with a `Passing` after each batch; if it returns True the pass ends there and keeps what it has.

    Raises SightlineError where nothing can be read, for a store that was made of something else, a full or read-only disk.
    """
    if engine not in get_args(Engine):
        raise unknown("engine", engine, get_args(Engine))
    found = collect(folder)
    facts = facts_of(model, found, layers, vectors, k, side=size or model.size, batch=batch)
    path = Path(store) if store is not None else cached(facts)
    if engine == "ray":
        from .cluster import started

        started()
    with writing(path, facts) as writer:
        if not writer.tallies["complete"]:
            run_pass(model, folder, found, writer, engine=engine, callback=callback)
    scanned = Scan.open(path)
    if scanned.complete and not scanned.images:
        name, why = scanned.errors[0]
        raise SightlineError(f"none of the {len(found)} files could be read; the first: {os.path.basename(name)}: {why.split(': ')[-1]}")
    return scanned


def run_pass(
    model: Model, source: Any, found: Collection, writer: Writer, *, engine: Engine, callback: Callable[[Passing], object] | None
) -> None:
    """What is still to do of a pass, here or on a cluster."""
    tally = Tally.of(writer.facts)
    if writer.state:
        tally.load(writer.state)
    done, images = writer.tallies["done"], writer.tallies["images"]
    if engine == "ray":
        from .cluster import parts

        work = parts(model, source, {**writer.facts, "store": os.path.abspath(writer.path)}, tally, done=done, images=images)
    else:
        work = Eye(model, found, writer.facts, tally).parts(done, len(found), images)
    with closing(work):
        Pass(writer, tally, len(found)).run(work, callback)


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
    name = os.path.basename(facts["collection"]["source"] or facts["collection"]["kind"]) or "images"
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return layout.in_cache("scans", f"{name[:40]}-{digest[:16]}.scan")


class Pass:
    """One run over a collection from where the store ends. Batches are fixed by position, so a resumed pass has the same."""

    def __init__(self, writer: Writer, tally: Tally, total: int) -> None:
        self.writer, self.tally, self.total = writer, tally, total
        self.tallies = dict(writer.tallies)
        self.images: Rows = []
        self.errors: Rows = []
        self.fragments: list[str] = []

    def run(self, parts: Iterable[Part], callback: Callable[[Passing], object] | None) -> None:
        """To the end, or until the callback has enough."""
        first = self.tallies["done"]
        began = committed = time.monotonic()
        pause = COMMIT_SECONDS
        for done, readable, images, errors, fragments in parts:
            self.images += images
            self.errors += errors
            self.fragments += fragments
            self.tallies |= {"done": done, "images": self.tallies["images"] + readable, "errors": self.tallies["errors"] + len(errors)}
            now = time.monotonic()
            told = Passing(done, self.total, self.tallies["errors"], (done - first) / (now - began))
            stopped = callback is not None and callback(told)
            if len(self.images) + len(self.errors) >= ROWS:
                self.write()
            if stopped or done == self.total or now - committed > pause:
                self.commit(complete=done == self.total)
                committed = time.monotonic()
                pause = max(COMMIT_SECONDS, (committed - now) / COMMIT_SHARE)
            if stopped:
                return

    def commit(self, *, complete: bool) -> None:
        """What has gathered belongs to the store from here on."""
        self.write()
        self.tallies["complete"] = int(complete)
        self.writer.commit(self.tally.tensors(), dict(self.tallies))
        if complete:
            with suppress(SightlineError):  # no room to merge: the store is whole as it is, `sightline store compact` tells why
                self.writer.compact()

    def write(self) -> None:
        """Hands the rows that have gathered to the store."""
        self.writer.add(self.images, self.errors, self.fragments)
        for gathered in (self.images, self.errors, self.fragments):
            gathered.clear()
