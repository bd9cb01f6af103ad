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

from sightline.data.datasets.files import ImageDataset
from sightline.data.datasets.open import open_dataset
from sightline.data.scan.topk import UnitStatistics
from sightline.data.scan.worker import ScanPart, ScanWorker
from sightline.data.store.reader import Scan
from sightline.data.store.schema import STORE_FORMAT, STORE_VERSION, compute_network_facts
from sightline.data.store.writer import RowDicts, StoreWriter, open_store_writer
from sightline.errors import SightlineError, make_out_of_range_error, make_unknown_name_error
from sightline.images.files import get_cache_path
from sightline.models.model import Model
from sightline.models.outputs import reshape_to_unit_grid

DEFAULT_TOP_K, MAX_CLASS_TOP_K, RESPONSE_SAMPLE_SIZE = 25, 5, 256

MAX_CLASS_ENTRIES = 16_000_000  # units × classes × images kept for each class at most

MAX_COMMIT_SHARE, MIN_COMMIT_SECONDS = (
    0.02,
    5.0,
)  # commits take at most this share of the time, and are this far apart at least

MAX_BUFFERED_ROWS = (
    2048  # rows in memory: with more they are written, and wait for the commit on the disk
)

ScanEngine = Literal["local", "ray"]


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
    engine: ScanEngine = "local",
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
    if engine not in get_args(ScanEngine):
        raise make_unknown_name_error("engine", engine, get_args(ScanEngine))
    found = open_dataset(folder)
    facts = make_scan_facts(model, found, layers, vectors, k, side=size or model.size, batch=batch)
    path = Path(store) if store is not None else make_store_path(facts)
    if engine == "ray":
        from sightline.data.scan.ray import start_ray

        start_ray()
    with open_store_writer(path, facts) as writer:
        if not writer.counters["complete"]:
            run_scan_pass(model, folder, found, writer, engine=engine, callback=callback)
    scanned = Scan.open(path)
    if scanned.complete and not scanned.images:
        name, why = scanned.errors[0]
        raise SightlineError(
            f"none of the {len(found)} files could be read; the first: {os.path.basename(name)}: {why.split(': ')[-1]}"
        )
    return scanned


def run_scan_pass(
    model: Model,
    source: Any,
    dataset: ImageDataset,
    writer: StoreWriter,
    *,
    engine: ScanEngine,
    callback: Callable[[Passing], object] | None,
) -> None:
    """What is still to do of a pass, here or on a cluster."""
    tally = UnitStatistics.from_facts(writer.facts)
    if writer.state:
        tally.restore_tensors(writer.state)
    done, images = writer.counters["done"], writer.counters["images"]
    if engine == "ray":
        from sightline.data.scan.ray import scan_on_cluster

        work = scan_on_cluster(
            model,
            source,
            {**writer.facts, "store": os.path.abspath(writer.path)},
            tally,
            next_position=done,
            next_id=images,
        )
    else:
        work = ScanWorker(model, dataset, writer.facts, tally).scan_range(
            done, len(dataset), images
        )
    with closing(work):
        ScanPass(writer, tally, len(dataset)).store_parts(work, callback)


def make_scan_facts(
    model: Model,
    dataset: ImageDataset,
    layers: Sequence[str] | None,
    vectors: Sequence[str],
    k: int | None,
    *,
    side: int,
    batch: int,
) -> dict[str, Any]:
    """All that a pass depends on, as the store tells it."""
    count = len(dataset)
    if k is not None and not 1 <= k <= count:
        raise (
            SightlineError(f"k is {k}; the collection has {count} images")
            if k > count
            else make_out_of_range_error("k", k, 1, count)
        )
    if not 1 <= batch <= 4096:
        raise make_out_of_range_error("batch", batch, 1, 4096)
    convolutions = [
        name
        for name in model.layers
        if isinstance(model.module(name), nn.Conv2d) and len(model.layers[name].shape) == 3
    ]
    watched = list(dict.fromkeys(map(model.layer, layers))) if layers is not None else convolutions
    kept = list(dict.fromkeys(model.layer(name) for name in vectors))
    blank = torch.full((1, 3, side, side), 0.5, device=model.device)
    with torch.no_grad():
        outputs = model.run(blank, [*watched, *kept])
    shapes = {
        name: tuple(reshape_to_unit_grid(outputs[name], blank).shape[1:])
        for name in dict.fromkeys([*watched, *kept])
    }
    units = sum(shapes[name][0] for name in watched)
    per_class = max(
        1, min(MAX_CLASS_TOP_K, MAX_CLASS_ENTRIES // max(1, units * len(dataset.class_names)))
    )
    return {
        "format": STORE_FORMAT,
        "version": STORE_VERSION,
        "model": model.recipe,
        "network": compute_network_facts(model, side),
        "labels": list(model.labels),
        "names": {**model.aliases, **model.landmarks},
        "layers": {
            name: {"units": shapes[name][0], "shape": list(shapes[name][1:])} for name in watched
        },
        "vectors": {name: shapes[name][0] for name in kept},
        "k": k or min(DEFAULT_TOP_K, count),
        "class_k": per_class,
        "sample": RESPONSE_SAMPLE_SIZE,
        "batch": batch,
        "collection": {
            "kind": type(dataset).__name__,
            "source": dataset.source,
            "count": count,
            "sha256": dataset.digest,
        },
        "class_names": list(dataset.class_names),
    }


def make_store_path(facts: dict[str, Any]) -> Path:
    """The store's place in the user's cache."""
    name = (
        os.path.basename(facts["collection"]["source"] or facts["collection"]["kind"]) or "images"
    )
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return get_cache_path("scans", f"{name[:40]}-{digest[:16]}.scan")


class ScanPass:
    """One run over a collection from where the store ends. Batches are fixed by position, so a resumed pass has the same."""

    def __init__(self, writer: StoreWriter, statistics: UnitStatistics, total: int) -> None:
        self.writer, self.statistics, self.total = writer, statistics, total
        self.counters = dict(writer.counters)
        self.image_rows: RowDicts = []
        self.error_rows: RowDicts = []
        self.fragments: list[str] = []

    def store_parts(
        self, parts: Iterable[ScanPart], callback: Callable[[Passing], object] | None
    ) -> None:
        """To the end, or until the callback has enough."""
        first = self.counters["done"]
        began = committed = time.monotonic()
        pause = MIN_COMMIT_SECONDS
        for done, readable, images, errors, fragments in parts:
            self.image_rows += images
            self.error_rows += errors
            self.fragments += fragments
            self.counters |= {
                "done": done,
                "images": self.counters["images"] + readable,
                "errors": self.counters["errors"] + len(errors),
            }
            now = time.monotonic()
            told = Passing(
                done, self.total, self.counters["errors"], (done - first) / (now - began)
            )
            stopped = callback is not None and callback(told)
            if len(self.image_rows) + len(self.error_rows) >= MAX_BUFFERED_ROWS:
                self.write_rows()
            if stopped or done == self.total or now - committed > pause:
                self.commit_rows(complete=done == self.total)
                committed = time.monotonic()
                pause = max(MIN_COMMIT_SECONDS, (committed - now) / MAX_COMMIT_SHARE)
            if stopped:
                return

    def commit_rows(self, *, complete: bool) -> None:
        """What has gathered belongs to the store from here on."""
        self.write_rows()
        self.counters["complete"] = int(complete)
        self.writer.commit_state(self.statistics.name_tensors(), dict(self.counters))
        if complete:
            with suppress(
                SightlineError
            ):  # no room to merge: the store is whole as it is, `sightline store compact` tells why
                self.writer.compact_tables()

    def write_rows(self) -> None:
        """Hands the rows that have gathered to the store."""
        self.writer.add_rows(self.image_rows, self.error_rows, self.fragments)
        for gathered in (self.image_rows, self.error_rows, self.fragments):
            gathered.clear()
