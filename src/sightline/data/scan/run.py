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

from sightline.data.datasets.files import ImageDataset
from sightline.data.datasets.open import open_dataset
from sightline.data.scan.layers import (
    list_default_layers,
    measure_unit_grids,
    resolve_scan_layer,
    resolve_scan_layers,
)
from sightline.data.scan.unit_statistics import UnitStatistics
from sightline.data.scan.worker import ScanSegment, ScanWorker
from sightline.data.store.description import (
    RESPONSE_KIND_CHOICES,
    DatasetDescription,
    LayerDescription,
    ResponseKind,
    ScanDescription,
    describe_network,
    require_responses,
    require_same_scan,
)
from sightline.data.store.interface import (
    ErrorRow,
    ImageRow,
    ScanStore,
    StoreWriter,
    count_response_bytes,
)
from sightline.data.store.lance_store import resolve_store
from sightline.data.store.reader import MAX_FEATURE_DIFFERENCE, Scan
from sightline.errors import (
    SightlineError,
    convert_memory_errors,
    escape_control_characters,
    make_out_of_range_error,
    make_unknown_name_error,
)
from sightline.images.files import get_cache_path
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
MAX_BUFFERED_BYTES = 64_000_000  # of their responses

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
    responses: bool | None = None,
    mean_responses: bool = False,
    engine: ScanEngine = "local",
    callback: ScanCallback | None = None,
) -> Scan:
    """Runs a dataset through a network once and keeps what the methods over a dataset need.

    A store that is complete is read as it is; an unfinished one is continued where it ended, once
    no other process writes it any more.

    Args:
        model: The network.
        folder: A folder, a pattern, a text list, tar shards, Parquet or Lance files, a list of
            paths, or a dataset object; None for parts of the sample pictures.
        store: Where the scan is kept; None for the user's cache, under a name that changes with
            images, network and settings.
        layers: Layers whose units are followed; None for all convolutions, or the last hidden
            layer of a network without any.
        vectors: Layers whose features are kept for each image, averaged over positions. In a
            network without a penultimate layer, its last feature map or hidden layer stands in.
        k: Images kept for each unit; None for 25, or all if there are fewer.
        size: Shorter side in pixels of what images are fitted to, in the network's aspect; None for
            the network's own.
        batch: Images that go through the network at once, 1 to 4096. The last bit of a number may
            depend on it, so an unfinished scan continues with the batch size it began with.
        responses: Whether every unit's response to every image is kept: the largest value over
            positions, as float16, 2 bytes a unit and image. Numbers beyond ±65504 become that; of
            others three digits stay, and what is nearer to 0 than 3e-8 becomes 0. None keeps them
            in a new store and takes a store that exists as it is; True refuses a store without.
        mean_responses: Whether the mean over positions is kept, too.
        engine: "ray" divides the pass over the workers of a Ray cluster (extra `cluster`), which
            must see the same files.
        callback: Called with a `Passing` after each batch. If it returns True the pass ends there
            and keeps what it has.

    Raises:
        SightlineError: Nothing can be read, the store holds another scan or lacks the responses
            asked for, or the disk is full or read-only.
    """
    if engine not in get_args(ScanEngine):
        raise make_unknown_name_error("engine", engine, get_args(ScanEngine))
    dataset = open_dataset(folder)
    fitted_size = model.scale_size(size)
    description = describe_scan(
        model, dataset, layers, vectors, k, size=fitted_size, batch_size=batch
    )
    kinds = list_response_kinds(responses, mean_responses)
    description = replace(description, response_kinds=kinds)
    required_kinds = kinds if responses or mean_responses else ()
    is_cached = store is None
    if store is None:
        store = find_cached_store(model, description, required_kinds)
    store = resolve_store(store)
    if engine == "ray":
        from sightline.data.scan.ray import start_ray

        start_ray()  # before LanceDB is loaded

    # One of the cache was compared when it was found.
    compared = None if is_cached else model
    result = open_complete_scan(store, description, required_kinds, model=compared)
    if result is None:
        memory = convert_memory_errors("for the scan", "batch", "size")
        with memory, store.open_writer(description) as writer:
            require_responses(writer.path, writer.description, required_kinds)
            # Another process may have completed the scan while this one waited.
            if not writer.progress.complete:
                run_scan_pass(model, folder, dataset, writer, engine=engine, callback=callback)
        result = Scan.open(store)
    if result.complete and not result.images:
        path, reason = result.errors[0]
        # A folder that can't be listed has a separator at its end, and the dataset's own no path.
        name = os.path.basename(path.rstrip(os.sep) or str(dataset.source))
        raise SightlineError(
            f"none of the {len(dataset)} files could be read; "
            f"the first: {name}: {reason.split(': ')[-1]}"
        )
    return result


def list_response_kinds(responses: bool | None, mean_responses: bool) -> tuple[ResponseKind, ...]:
    """The responses that a new store is to keep.

    Raises SightlineError for means without the largest values.
    """
    if responses is False:
        if mean_responses:
            raise SightlineError("mean_responses needs responses: leave out responses=False")
        return ()
    return ("max", "mean") if mean_responses else ("max",)


def open_complete_scan(
    store: ScanStore,
    description: ScanDescription,
    required_kinds: Sequence[ResponseKind] = (),
    *,
    model: Model | None = None,
) -> Scan | None:
    """The scan if the store has all of it; reading needs no lock, so nobody waits for anybody.

    Raises SightlineError if the store holds another scan, or lacks responses that it must have, and
    if `model`, where it is given, computes something else.
    """
    try:
        stored_scan = Scan.open(store)
    except SightlineError as error:
        logger.debug("%s is written: %s", store.path, error)
        return None
    require_same_scan(store.path, stored_scan.description, description)
    if model is not None:
        stored_scan.require_same_features(model)
    require_responses(store.path, stored_scan.description, required_kinds)
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
    size: tuple[int, int],
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
    shapes = measure_unit_grids(model, [*unit_layers, *vector_layers], size)

    aliases = {**model.aliases, **model.landmarks, "penultimate": penultimate}
    units = sum(shapes[name][0] for name in unit_layers)
    class_units = max(1, units * len(dataset.class_names))
    return ScanDescription(
        recipe=model.recipe,
        network=describe_network(model, size),
        model_labels=tuple(model.labels),
        aliases=aliases,
        layers={name: LayerDescription(shapes[name][0], shapes[name][1:]) for name in unit_layers},
        vector_lengths={name: shapes[name][0] for name in vector_layers},
        k=k or min(DEFAULT_TOP_K, count),
        class_k=max(1, min(MAX_CLASS_TOP_K, MAX_CLASS_ENTRIES // class_units)),
        sample_size=RESPONSE_SAMPLE_SIZE,
        # The answers of some networks depend on the other images of a batch.
        batch_size=1 if model.findings.runs_one_by_one else batch_size,
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


def choose_cached_store(
    description: ScanDescription, required_kinds: Sequence[ResponseKind]
) -> Path:
    """Where a scan is kept in the user's cache.

    What there is with other responses serves whoever does not need those, since another pass may
    take hours: the caches of earlier versions, which have none, stay in use.
    """
    kinds_to_try = [description.response_kinds, *reversed(RESPONSE_KIND_CHOICES)]
    paths = [
        make_store_path(replace(description, response_kinds=kinds))
        for kinds in kinds_to_try
        if set(required_kinds) <= set(kinds)
    ]
    return next((path for path in paths if path.exists()), paths[0])


def find_cached_store(
    model: Model, description: ScanDescription, required_kinds: Sequence[ResponseKind]
) -> Path:
    """Where a scan of this network is kept in the user's cache.

    A network that computes something else with the same weights, as with another activation, has a
    store of its own beside the first one's.
    """
    path = first_path = choose_cached_store(description, required_kinds)
    number = 1
    while path.exists() and was_made_by_another_network(path, model):
        number += 1
        path = first_path.with_name(f"{first_path.stem}-{number}{first_path.suffix}")
    return path


def was_made_by_another_network(path: Path, model: Model) -> bool:
    """Whether a store that can be read has other features than this network gives."""
    try:
        stored_scan = Scan.open(path)
    except SightlineError:
        return False  # what is wrong with it is told when it is used
    return stored_scan.measure_difference(model) > MAX_FEATURE_DIFFERENCE


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
        self.max_rows = limit_buffered_rows(writer.description)

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

            if len(self.image_rows) + len(self.error_rows) >= self.max_rows:
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


def limit_buffered_rows(description: ScanDescription) -> int:
    """How many rows may gather in memory."""
    max_rows = MAX_BUFFERED_BYTES // max(1, count_response_bytes(description))
    return min(MAX_BUFFERED_ROWS, max(1, max_rows))
