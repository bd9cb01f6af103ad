"""The pass on a Ray cluster, by Ray Data. Ray is imported here only.

A pool of actors takes chunks of the dataset and writes the images' rows. A tree of tasks joins
what is kept of the units, and the driver commits. A worker that dies is started again and repeats
its chunk; the store sees whole chunks only.
"""

import json
import logging
import math
import os
import threading
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from sightline.data.datasets.files import ImageDataset
from sightline.data.datasets.open import open_dataset
from sightline.data.scan.unit_statistics import UnitStatistics
from sightline.data.scan.worker import ScanSegment, ScanWorker
from sightline.data.store.description import ScanDescription
from sightline.data.store.fragments import load_lance
from sightline.data.store.interface import (
    ArrowTable,
    ErrorRow,
    FragmentWriter,
    StoreWriter,
    count_response_bytes,
)
from sightline.errors import SightlineError, get_first_error_line
from sightline.models.model import Model

# Batches in a chunk: with few of them fragments are small, with many a dead worker loses much.
MIN_CHUNK_BATCHES = 4
MAX_CHUNK_BATCHES = 256

MAX_CHUNK_BYTES = 256_000_000  # of responses in a chunk, which a worker holds in memory

CHUNKS_PER_WORKER = 8  # chunks for each worker, so that slow ones can take fewer

TREE_FAN_IN = 2  # branches that one task joins
TARGET_TREE_ROOTS = 256  # levels are added until about so many branches reach the driver


@dataclass(frozen=True)
class WorkerContext:
    """What a worker needs for its chunks."""

    model: Model
    dataset: ImageDataset
    description: ScanDescription
    fragment_writer: FragmentWriter


@dataclass(frozen=True)
class BranchSummary:
    """What is known of adjoining dataset positions, `first` to `end` − 1: `count` images."""

    first: int
    end: int
    count: int
    errors: list[ErrorRow]
    fragments: list[str]

    def to_json(self) -> str:
        """The summary as text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "BranchSummary":
        """The summary of such a text."""
        fields = json.loads(text)
        errors = [ErrorRow(**error) for error in fields.pop("errors")]
        return cls(**fields, errors=errors)


class RayScanWorker:
    """One process of the pool.

    It gets network and dataset with its first chunk, from the driver, which keeps them for the
    whole pass.
    """

    def __init__(self, shared_refs: list[Any]) -> None:
        self.shared_refs = shared_refs
        self.context: WorkerContext | None = None

    def __call__(self, chunk: ArrowTable) -> ArrowTable:
        """Scans a chunk of positions: the images' rows go to the store, the rest is returned."""
        if self.context is None:
            self.context = load_worker_context(self.shared_refs)
        context = self.context
        [first] = chunk["first"].to_pylist()
        [end] = chunk["end"].to_pylist()

        statistics = UnitStatistics.from_description(context.description)
        worker = ScanWorker(context.model, context.dataset, context.description, statistics)
        segments = list(worker.scan_range(first, end, next_id=0))
        images = [row for segment in segments for row in segment.image_rows]
        errors = [row for segment in segments for row in segment.error_rows]
        fragments = context.fragment_writer.write_rows(images) if images else []
        return make_branch(BranchSummary(first, end, len(images), errors, fragments), statistics)


# ── branches of the tree ──


def make_branch(summary: BranchSummary, statistics: UnitStatistics) -> ArrowTable:
    """A table of one row: a summary, and the statistics of its images, whose ids begin at 0."""
    import pyarrow as pa
    from safetensors.torch import save

    return pa.table(
        {
            "summary": pa.array([summary.to_json()], pa.large_string()),
            "units": pa.array([save(statistics.export_partial())], pa.large_binary()),
        }
    )


def merge_branches(branches: ArrowTable, description: ScanDescription) -> ArrowTable:
    """One level of the tree: joins adjoining branches."""
    from safetensors.torch import load

    summaries = read_summaries(branches)
    statistics = UnitStatistics.from_description(description)
    first = summaries[0].first
    end = first
    count = 0
    errors: list[ErrorRow] = []
    fragments: list[str] = []
    for summary, units in zip(summaries, branches["units"], strict=True):
        require_branch_order(summary, end)
        statistics.merge_partial(load(units.as_py()), first_id=count)
        end = summary.end
        count += summary.count
        errors += summary.errors
        fragments += summary.fragments
    return make_branch(BranchSummary(first, end, count, errors, fragments), statistics)


def read_summaries(branches: ArrowTable) -> list[BranchSummary]:
    """The summaries of a table of branches."""
    return [BranchSummary.from_json(text) for text in branches["summary"].to_pylist()]


def require_branch_order(branch: BranchSummary, expected: int) -> None:
    """Raises SightlineError unless a branch begins where the last one ended: ids depend on it."""
    if branch.first != expected:
        raise SightlineError(
            f"the cluster gave position {branch.first} where {expected} was due; scan again"
        )


# ── the driver ──


def scan_on_cluster(
    model: Model,
    source: Any,
    writer: StoreWriter,
    statistics: UnitStatistics,
    *,
    next_position: int,
    next_id: int,
) -> Generator[ScanSegment, None, None]:
    """The segments of a pass from `next_position` on, in order, as the cluster gives them.

    The statistics of a segment are merged before it is given.
    """
    from safetensors.torch import load

    ray = start_ray()
    if isinstance(source, (str, Path)):
        source = os.path.abspath(source)
    shared_content = (pack_model(model), source, writer.description, writer.make_fragment_writer())
    # The driver's for the whole pass, so that a worker that is started again finds it.
    shared_refs = [ray.put(shared_content)]
    resource = "GPU" if model.device.type == "cuda" else "CPU"
    pipeline = build_ray_pipeline(ray, shared_refs, writer.description, next_position, resource)
    try:
        batches = pipeline.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)
        for branches in batches:
            for branch, units in zip(read_summaries(branches), branches["units"], strict=True):
                require_branch_order(branch, next_position)
                statistics.merge_partial(load(units.as_py()), next_id)
                next_position = branch.end
                next_id += branch.count
                yield ScanSegment(
                    done=branch.end,
                    readable_count=branch.count,
                    image_rows=[],
                    error_rows=branch.errors,
                    fragments=branch.fragments,
                )
    except ray.exceptions.RayError as error:
        raise SightlineError(explain_cluster_error(error)) from error


def build_ray_pipeline(
    ray: Any,
    shared_refs: list[Any],
    description: ScanDescription,
    first_position: int,
    resource: str,
) -> Any:
    """The lazy Ray dataset: chunks through the pool of actors, then the levels of the tree."""
    from ray import data

    worker_count = int(ray.cluster_resources().get(resource, 0))
    if not worker_count:
        raise SightlineError(f"the Ray cluster has no {resource}")

    bounds = split_into_chunks(
        description.dataset.count,
        description.batch_size,
        first_position,
        worker_count,
        max_rows=limit_chunk_rows(description),
    )
    chunks = [{"first": first, "end": end} for first, end in bounds]
    pipeline = data.from_items(chunks, override_num_blocks=len(chunks))
    pipeline.context.enable_progress_bars = False
    pipeline.context.execution_options.preserve_order = True
    pipeline.context.raise_original_map_exception = True

    worker_share: dict[str, Any] = {"num_gpus": 1} if resource == "GPU" else {"num_cpus": 1}
    pipeline = pipeline.map_batches(
        RayScanWorker,
        batch_size=1,
        batch_format="pyarrow",
        compute=data.ActorPoolStrategy(size=min(worker_count, len(chunks))),
        fn_constructor_args=(shared_refs,),
        **worker_share,
    )
    merge: Any = merge_branches
    level_count = math.ceil(math.log(len(chunks) / TARGET_TREE_ROOTS, TREE_FAN_IN))
    for _ in range(max(1, level_count)):
        pipeline = pipeline.map_batches(
            merge,
            batch_size=TREE_FAN_IN,
            batch_format="pyarrow",
            fn_kwargs={"description": description},
            num_cpus=0,
        )
    return pipeline


def split_into_chunks(
    image_count: int,
    batch_size: int,
    first_position: int,
    worker_count: int,
    *,
    max_rows: int,
) -> Iterator[tuple[int, int]]:
    """First position and end of each chunk of the remaining positions, cut between batches.

    A chunk has more than `max_rows` images only where the fewest batches have.
    """
    remaining = image_count - first_position
    batches_per_chunk = remaining // (batch_size * worker_count * CHUNKS_PER_WORKER)
    max_batches = min(MAX_CHUNK_BATCHES, max_rows // batch_size)
    batches_per_chunk = max(MIN_CHUNK_BATCHES, min(max_batches, batches_per_chunk))
    step = batch_size * batches_per_chunk
    for first in range(first_position, image_count, step):
        yield first, min(first + step, image_count)


def limit_chunk_rows(description: ScanDescription) -> int:
    """How many images a worker may hold the responses of."""
    return MAX_CHUNK_BYTES // max(1, count_response_bytes(description))


def start_ray() -> Any:
    """Ray, on the cluster that RAY_ADDRESS names or on this machine.

    Call it before LanceDB is loaded: LanceDB's threads don't survive the fork by which Ray starts
    its processes. Raises SightlineError without the extra «cluster».
    """
    try:
        import ray

        if not ray.is_initialized():
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        import_module("ray.data")
        load_lance()
    except ImportError as error:
        raise SightlineError(
            f"--engine ray needs the extra «cluster» ({error}); pip install 'sightline[cluster]'"
        ) from error
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are told in one line
    return ray


def explain_cluster_error(error: Exception) -> str:
    """Why a pass on a cluster ended, in one line: a worker's own words where a worker failed."""
    message = f"the cluster failed: {get_first_error_line(error)}"
    cause: Any = error
    while isinstance(cause, Exception):
        if isinstance(cause, SightlineError):
            # Ray Data appends lines about its retries to the worker's own words. They are not yet
            # escaped here, as they are by our own `str`.
            own_words = ValueError.__str__(cause).strip().split("\n")[0]
            message = f"a worker of the cluster failed: {own_words}"
        cause = getattr(cause, "cause", None) or cause.__cause__
    return message


# ── what is sent to the workers ──


def load_worker_context(shared_refs: list[Any]) -> WorkerContext:
    """What the driver put for all workers.

    Raises SightlineError if this node has other files.
    """
    import ray

    packed_model, source, description, fragment_writer = ray.get(shared_refs[0])
    dataset = open_dataset(source)
    if dataset.digest != description.dataset.sha256:
        raise SightlineError(
            "the files are not the same on all nodes (paths, sizes, times); "
            "use a shared file system"
        )
    return WorkerContext(unpack_model(packed_model), dataset, description, fragment_writer)


def pack_model(model: Model) -> dict[str, Any]:
    """A network's attributes as they can be sent: all but its lock."""
    return {name: value for name, value in vars(model).items() if name != "lock"}


def unpack_model(attributes: dict[str, Any]) -> Model:
    """The network that was sent."""
    model = Model.__new__(Model)
    vars(model).update(attributes, lock=threading.RLock())
    return model
