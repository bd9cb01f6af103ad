"""The pass over a dataset: what it is of, where it is kept, how it continues, and its commits."""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from sightline.data.datasets.files import ImageDataset
from sightline.data.datasets.open import open_dataset
from sightline.data.scan.unit_statistics import UnitStatistics
from sightline.data.scan.worker import ScanSegment, ScanWorker
from sightline.data.store.description import (
    DatasetDescription,
    LayerDescription,
    ScanDescription,
    describe_network,
    require_same_scan,
)
from sightline.data.store.interface import (
    ErrorRow,
    ImageRow,
    ScanStore,
    StoreWriter,
)
from sightline.data.store.lance_store import resolve_store
from sightline.data.store.reader import Scan
from sightline.errors import (
    SightlineError,
    convert_memory_errors,
    escape_control_characters,
    make_out_of_range_error,
    make_unknown_name_error,
)
from sightline.images.files import get_cache_path
from sightline.models.layers.feature_maps import reshape_to_unit_grid
from sightline.models.model import Model

DEFAULT_TOP_K = 25
MAX_CLASS_TOP_K = 5
RESPONSE_SAMPLE_SIZE = 256
DEFAULT_BATCH_SIZE = 32
MAX_BATCH_SIZE = 4096

MAX_CLASS_ENTRIES = 16_000_000  # units × classes × images kept for each class at most

MAX_COMMIT_SHARE = 0.02  # of the time, for commits
MIN_COMMIT_SECONDS = 5.0  # between two commits

# Rows in memory. More of them are written, and wait on the disk for the commit.
MAX_BUFFERED_ROWS = 2048

ScanEngine = Literal["local", "ray"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Passing:
    """How far a pass has come: files done of all, unreadable files, and files per second."""

    done: int
    total: int
    errors: int
    rate: float


ScanCallback = Callable[[Passing], object]


def scan(
    model: Model,
    folder: Any = None,
    *,
    store: str | Path | ScanStore | None = None,
    layers: Sequence[str] | None = None,
    vectors: Sequence[str] = ("penultimate",),
    k: int | None = None,
    size: int | None = None,
    batch: int = DEFAULT_BATCH_SIZE,
    engine: ScanEngine = "local",
    callback: ScanCallback | None = None,
) -> Scan:
    """Runs a dataset through a network once and keeps what the methods over a dataset need.

    A store that is complete is read as it is; an unfinished one is continued where it ended, once
    no other process writes it any more.

    Args:
        model: The network.
        folder: A folder, a pattern, a text list, tar shards, Parquet or Lance files, a list of
            paths, or a dataset object; None for tiles of the sample photographs.
        store: Where the scan is kept; None for the user's cache, under a name that changes with
            images, network and settings.
        layers: Layers whose units are followed; None for all convolutions, or the last hidden
            layer of a network without any.
        vectors: Layers whose features are kept for each image, averaged over positions. In a
            network without a penultimate layer, its last feature map or hidden layer stands in.
        k: Images kept for each unit; None for 25, or all if there are fewer.
        size: Side in pixels that images are fitted to; None for the network's own.
        batch: Images that go through the network at once, 1 to 4096. The last bit of a number may
            depend on it, so an unfinished scan continues with the batch size it began with.
        engine: "ray" divides the pass over the workers of a Ray cluster (extra `cluster`), which
            must see the same files.
        callback: Called with a `Passing` after each batch. If it returns True the pass ends there
            and keeps what it has.

    Raises:
        SightlineError: Nothing can be read, the store holds another scan, or the disk is full or
            read-only.
    """
    if engine not in get_args(ScanEngine):
        raise make_unknown_name_error("engine", engine, get_args(ScanEngine))
    dataset = open_dataset(folder)
    side = size or model.size
    description = describe_scan(model, dataset, layers, vectors, k, side=side, batch_size=batch)
    store = resolve_store(store if store is not None else make_store_path(description))
    if engine == "ray":
        from sightline.data.scan.ray import start_ray

        start_ray()  # before LanceDB is loaded

    result = open_complete_scan(store, description)
    if result is None:
        memory = convert_memory_errors("for the scan", "batch", "size")
        with memory, store.open_writer(description) as writer:
            # Another process may have completed the scan while this one waited.
            if not writer.progress.complete:
                run_scan_pass(model, folder, dataset, writer, engine=engine, callback=callback)
        result = Scan.open(store)
    if result.complete and not result.images:
        path, reason = result.errors[0]
        raise SightlineError(
            f"none of the {len(dataset)} files could be read; "
            f"the first: {os.path.basename(path)}: {reason.split(': ')[-1]}"
        )
    return result


def open_complete_scan(store: ScanStore, description: ScanDescription) -> Scan | None:
    """The scan if the store has all of it; reading needs no lock, so nobody waits for anybody.

    Raises SightlineError if the store holds another scan.
    """
    try:
        stored_scan = Scan.open(store)
    except SightlineError as error:
        logger.debug("%s is written: %s", store.path, error)
        return None
    require_same_scan(store.path, stored_scan.description, description)
    return stored_scan if stored_scan.complete else None


def run_scan_pass(
    model: Model,
    source: Any,
    dataset: ImageDataset,
    writer: StoreWriter,
    *,
    engine: ScanEngine,
    callback: ScanCallback | None,
) -> None:
    """Runs what remains of a pass, on this machine or on a cluster."""
    statistics = UnitStatistics.from_description(writer.description)
    committed_tensors = writer.load_state()
    if committed_tensors:
        statistics.restore_tensors(committed_tensors)

    next_position = writer.progress.done
    next_id = writer.progress.images
    if engine == "ray":
        from sightline.data.scan.ray import scan_on_cluster

        segments = scan_on_cluster(
            model, source, writer, statistics, next_position=next_position, next_id=next_id
        )
    else:
        worker = ScanWorker(model, dataset, writer.description, statistics)
        segments = worker.scan_range(next_position, len(dataset), next_id)
    with closing(segments):
        ScanPass(writer, statistics, len(dataset)).store_segments(segments, callback)


def describe_scan(
    model: Model,
    dataset: ImageDataset,
    layers: Sequence[str] | None,
    vectors: Sequence[str],
    k: int | None,
    *,
    side: int,
    batch_size: int,
) -> ScanDescription:
    """Describes a scan. Raises SightlineError for unknown layers and numbers out of range."""
    count = len(dataset)
    require_sizes(k, batch_size, count)
    # Found once: it takes a pass through the network.
    penultimate = resolve_scan_layer(model, "penultimate")
    if layers is None:
        unit_layers = list_default_layers(model)
    else:
        unit_layers = resolve_scan_layers(model, layers, penultimate)
    vector_layers = resolve_scan_layers(model, vectors, penultimate)
    shapes = measure_unit_grids(model, [*unit_layers, *vector_layers], side)

    aliases = {**model.aliases, **model.landmarks, "penultimate": penultimate}
    units = sum(shapes[name][0] for name in unit_layers)
    class_units = max(1, units * len(dataset.class_names))
    return ScanDescription(
        recipe=model.recipe,
        network=describe_network(model, side),
        model_labels=tuple(model.labels),
        aliases=aliases,
        layers={name: LayerDescription(shapes[name][0], shapes[name][1:]) for name in unit_layers},
        vector_lengths={name: shapes[name][0] for name in vector_layers},
        k=k or min(DEFAULT_TOP_K, count),
        class_k=max(1, min(MAX_CLASS_TOP_K, MAX_CLASS_ENTRIES // class_units)),
        sample_size=RESPONSE_SAMPLE_SIZE,
        batch_size=batch_size,
        dataset=DatasetDescription(
            kind=type(dataset).__name__,
            source=dataset.source,
            count=count,
            sha256=dataset.digest,
        ),
        class_names=tuple(dataset.class_names),
    )


def require_sizes(k: int | None, batch_size: int, count: int) -> None:
    """Raises SightlineError for a `k` or batch size out of range for `count` images."""
    if k is not None and k > count:
        raise SightlineError(f"k is {k}; the dataset has {count} images")
    if k is not None and k < 1:
        raise make_out_of_range_error("k", k, 1, count)
    if not 1 <= batch_size <= MAX_BATCH_SIZE:
        raise make_out_of_range_error("batch", batch_size, 1, MAX_BATCH_SIZE)


def resolve_scan_layers(model: Model, names: Sequence[str], penultimate: str) -> list[str]:
    """The layers' own names, each once; a pattern stands for all layers that it matches.

    `penultimate` is the layer of that name, which `resolve_scan_layer` finds.
    """
    layers = [
        penultimate if name == "penultimate" else model.layer(name)
        for name in model.match_layers(names)
    ]
    return list(dict.fromkeys(layers))


def resolve_scan_layer(model: Model, name: str) -> str:
    """A layer's own name, as `Model.layer`; "penultimate" is known for every network.

    Where the structure has no such layer, the last feature map stands in, else the last hidden
    layer, else the logits.
    """
    if name != "penultimate":
        return model.layer(name)
    penultimate = model.landmarks.get(name)
    if penultimate is not None and penultimate.endswith(":in"):
        # A head that runs several times is followed at its first call.
        penultimate = penultimate.split(":", maxsplit=1)[0] + ":in"
        if not is_input_recorded(model, penultimate):
            penultimate = None
    candidates = [penultimate, model.landmarks.get("last_conv"), find_last_hidden_layer(model)]
    return next((candidate for candidate in candidates if candidate is not None), "logits")


def is_input_recorded(model: Model, layer: str) -> bool:
    """Whether a layer NAME:in can be read: not if its module is given its input by keyword."""
    with torch.no_grad():
        outputs = model.run(model.blank(), [layer])
    return layer in outputs


def find_last_hidden_layer(model: Model) -> str | None:
    """The last layer that is computed with parameters and is not shaped like the logits."""
    logits_shape = (len(model.labels),)
    is_learned = False
    last_hidden = None
    for name, layer in model.layers.items():
        if layer.step:
            continue
        is_learned = is_learned or next(model.module(name).parameters(), None) is not None
        has_units = 1 <= len(layer.shape) <= 3
        if is_learned and has_units and layer.shape != logits_shape:
            last_hidden = name
    return last_hidden


def list_default_layers(model: Model) -> list[str]:
    """The layers whose units a scan follows by default.

    All convolutions; without any the last hidden layer, else the logits.
    """
    return list_convolutions(model) or [find_last_hidden_layer(model) or "logits"]


def list_convolutions(model: Model) -> list[str]:
    """The two-dimensional convolutions of a network."""
    return [
        name
        for name, layer in model.layers.items()
        if not layer.step and isinstance(model.module(name), nn.Conv2d) and len(layer.shape) == 3
    ]


def measure_unit_grids(
    model: Model, layers: Sequence[str], side: int
) -> dict[str, tuple[int, int, int]]:
    """Units, rows and columns of layers for images of side×side pixels."""
    blank = torch.full((1, model.channels, side, side), 0.5, device=model.device)
    with torch.no_grad():
        outputs = model.run(blank, layers)
    grids: dict[str, tuple[int, int, int]] = {}
    for name in layers:
        _, units, rows, columns = reshape_to_unit_grid(outputs[name], blank, model, name).shape
        grids[name] = (units, rows, columns)
    return grids


def make_store_path(description: ScanDescription) -> Path:
    """The path of a scan's store in the user's cache."""
    dataset = description.dataset
    # LanceDB opens no path that is not UTF-8, and control characters would be shown.
    source_name = os.path.basename(dataset.source or dataset.kind)
    name = escape_control_characters(source_name).replace("\\", "_") or "images"
    # The batch size is not in the name: a scan with another one is the same scan.
    content = replace(description, batch_size=DEFAULT_BATCH_SIZE).to_json()
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return get_cache_path("scans", f"{name[:40]}-{digest[:16]}.scan")


class ScanPass:
    """One run over a dataset from where the store ends, with its commits.

    Batches are cut by position, so a pass that continues has those of one that never stopped.
    """

    def __init__(self, writer: StoreWriter, statistics: UnitStatistics, total: int) -> None:
        self.writer = writer
        self.statistics = statistics
        self.total = total
        self.progress = writer.progress
        self.image_rows: list[ImageRow] = []
        self.error_rows: list[ErrorRow] = []
        self.fragments: list[str] = []

    def store_segments(
        self, segments: Iterable[ScanSegment], callback: ScanCallback | None
    ) -> None:
        """Stores the segments to the end, or until the callback returns True."""
        first_position = self.progress.done
        start_time = time.monotonic()
        commit_time = start_time
        commit_interval = MIN_COMMIT_SECONDS
        for segment in segments:
            self.add_segment(segment)
            time_now = time.monotonic()
            rate = (segment.done - first_position) / (time_now - start_time)
            event = Passing(segment.done, self.total, self.progress.errors, rate)
            is_stopped = callback is not None and bool(callback(event))

            if len(self.image_rows) + len(self.error_rows) >= MAX_BUFFERED_ROWS:
                self.write_rows()
            is_complete = segment.done == self.total
            if is_stopped or is_complete or time_now - commit_time > commit_interval:
                self.commit_rows(complete=is_complete)
                commit_time = time.monotonic()
                commit_seconds = commit_time - time_now
                commit_interval = max(MIN_COMMIT_SECONDS, commit_seconds / MAX_COMMIT_SHARE)
            if is_stopped:
                return

    def add_segment(self, segment: ScanSegment) -> None:
        """Takes in the rows of a segment."""
        self.image_rows += segment.image_rows
        self.error_rows += segment.error_rows
        self.fragments += segment.fragments
        self.progress = replace(
            self.progress,
            done=segment.done,
            images=self.progress.images + segment.readable_count,
            errors=self.progress.errors + len(segment.error_rows),
        )

    def commit_rows(self, *, complete: bool) -> None:
        """Makes what has gathered part of the store."""
        self.write_rows()
        self.progress = replace(self.progress, complete=complete)
        self.writer.commit(self.statistics.name_tensors(), self.progress)
        if complete:
            try:
                self.writer.compact()
            except SightlineError as error:
                # The store is whole without it, and `sightline store compact` tells the reason.
                logger.debug("the pieces of the store stay as they are: %s", error)

    def write_rows(self) -> None:
        """Hands the rows that have gathered to the store."""
        self.writer.add_rows(self.image_rows, self.error_rows, self.fragments)
        self.image_rows.clear()
        self.error_rows.clear()
        self.fragments.clear()
