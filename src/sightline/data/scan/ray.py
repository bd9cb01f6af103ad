"""The pass on a Ray cluster, by Ray Data: an actor pool takes stretches of the collection and writes the images' rows, a tree of
tasks joins what is kept of the units, and the driver commits.

A worker that dies is started again and its stretch repeated; the store sees whole stretches only. Ray is imported here alone.
"""

import json
import logging
import math
import os
import threading
from collections.abc import Generator, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa

from sightline.data.datasets.files import ImageDataset
from sightline.data.datasets.open import open_dataset
from sightline.data.scan.topk import UnitStatistics
from sightline.data.scan.worker import ScanPart, ScanWorker
from sightline.data.store.fragments import write_image_fragments
from sightline.data.store.schema import make_images_schema
from sightline.data.store.writer import make_arrow_table
from sightline.errors import SightlineError, get_first_error_line
from sightline.models.model import Model

MIN_CHUNK_BATCHES, MAX_CHUNK_BATCHES = (
    4,
    256,
)  # batches in a stretch: few, and a fragment is small; many, and a dead worker loses much

CHUNKS_PER_WORKER = 8  # stretches for each worker, so that the slow ones get fewer

TREE_FAN_IN, TARGET_TREE_ROOTS = (
    2,
    256,
)  # parts joined by one task of the tree; levels are added until about so many parts reach the driver

WorkerContext = tuple[Model, ImageDataset, dict[str, Any]]


class RayScanWorker:
    """One process of the pool. It gets network and collection with its first stretch, since the driver keeps them for the whole pass."""

    def __init__(self, shared_refs: list[Any]) -> None:
        self.shared_refs = shared_refs
        self.context: WorkerContext | None = None

    def __call__(self, chunk: Any) -> Any:
        """A stretch of positions; its images' rows go to the store, the rest goes on."""
        if self.context is None:
            self.context = load_worker_context(self.shared_refs)
        model, found, facts = self.context
        tally = UnitStatistics.from_facts(facts)
        [first], [end] = chunk["first"].to_pylist(), chunk["end"].to_pylist()
        done = list(ScanWorker(model, found, facts, tally).scan_range(first, end, 0))
        images = [row for part in done for row in part.image_rows]
        errors = [row for part in done for row in part.error_rows]
        fragments = (
            write_image_fragments(
                Path(facts["store"]), make_arrow_table(images, make_images_schema(facts["vectors"]))
            )
            if images
            else []
        )
        return make_branch_table(
            {
                "first": first,
                "end": end,
                "count": len(images),
                "errors": errors,
                "fragments": fragments,
            },
            tally,
        )


def make_branch_table(summary: dict[str, Any], statistics: UnitStatistics) -> Any:
    """What is known of neighbouring positions, a row: where they begin and end, how many images they had, errors, fragments, and
    what is kept of the units, with the images numbered from 0."""
    from safetensors.torch import save

    return pa.table(
        {
            "told": pa.array([json.dumps(summary)], pa.large_string()),
            "units": pa.array([save(statistics.export_partial())], pa.large_binary()),
        }
    )


def merge_branches(branches_table: Any, facts: dict[str, Any]) -> Any:
    """One level of the tree: branches of neighbouring positions as one."""
    from safetensors.torch import load

    tally, branches = (
        UnitStatistics.from_facts(facts),
        [json.loads(told) for told in branches_table["told"].to_pylist()],
    )
    count, last = 0, branches[0]["first"]
    for told, units in zip(branches, branches_table["units"], strict=True):
        require_branch_order(told, last)
        tally.merge_partial(load(units.as_py()), count)
        count, last = count + told["count"], told["end"]
    gathered = {
        kind: [item for told in branches for item in told[kind]] for kind in ("errors", "fragments")
    }
    return make_branch_table(
        {"first": branches[0]["first"], "end": last, "count": count, **gathered}, tally
    )


def scan_on_cluster(
    model: Model,
    source: Any,
    facts: dict[str, Any],
    statistics: UnitStatistics,
    *,
    next_position: int,
    next_id: int,
) -> Generator[ScanPart, None, None]:
    """The parts of a pass from position `done` on, in order, as the cluster gives them; `images` are numbered already."""
    ray = start_ray()
    from safetensors.torch import load

    place = os.path.abspath(source) if isinstance(source, (str, Path)) else source
    shared = [
        ray.put((pack_model(model), place, facts))
    ]  # the driver's for the whole pass: a worker that is started again finds it
    flow = build_ray_pipeline(
        ray, shared, facts, next_position, "GPU" if model.device.type == "cuda" else "CPU"
    )
    try:
        for rows in flow.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
            for told, units in zip(
                map(json.loads, rows["told"].to_pylist()), rows["units"], strict=True
            ):
                require_branch_order(told, next_position)
                statistics.merge_partial(load(units.as_py()), next_id)
                next_position, next_id = told["end"], next_id + told["count"]
                yield ScanPart(next_position, told["count"], [], told["errors"], told["fragments"])
    except ray.exceptions.RayError as error:
        raise SightlineError(explain_cluster_error(error)) from error


def require_branch_order(branch: dict[str, Any], expected: int) -> None:
    """Raises SightlineError unless a branch begins where the one before it ended: the images' numbers depend on it."""
    if branch["first"] != expected:
        raise SightlineError(
            f"the cluster gave position {branch['first']} where {expected} was due; scan again"
        )


def build_ray_pipeline(
    ray: Any, shared_refs: list[Any], facts: dict[str, Any], first_position: int, resource: str
) -> Any:
    """The lazy data set: stretches through the actor pool, then through the levels of the tree."""
    from ray import data

    workers = int(ray.cluster_resources().get(resource, 0))
    if not workers:
        raise SightlineError(f"the Ray cluster has no {resource}")
    bounds = list(
        split_into_chunks(facts["collection"]["count"], facts["batch"], first_position, workers)
    )
    flow = data.from_items(
        [{"first": first, "end": end} for first, end in bounds], override_num_blocks=len(bounds)
    )
    flow.context.enable_progress_bars = False
    flow.context.execution_options.preserve_order = True
    flow.context.raise_original_map_exception = True
    share: dict[str, Any] = {"num_gpus": 1} if resource == "GPU" else {"num_cpus": 1}
    tree: dict[str, Any] = {
        "batch_size": TREE_FAN_IN,
        "batch_format": "pyarrow",
        "fn_kwargs": {"facts": facts},
        "num_cpus": 0,
    }
    level: Any = merge_branches
    pool = data.ActorPoolStrategy(size=min(workers, len(bounds)))
    flow = flow.map_batches(
        RayScanWorker,
        batch_size=1,
        batch_format="pyarrow",
        compute=pool,
        fn_constructor_args=(shared_refs,),
        **share,
    )
    for _ in range(max(1, math.ceil(math.log(len(bounds) / TARGET_TREE_ROOTS, TREE_FAN_IN)))):
        flow = flow.map_batches(level, **tree)
    return flow


def split_into_chunks(
    image_count: int, batch_size: int, first_position: int, worker_count: int
) -> Iterator[tuple[int, int]]:
    """The positions that are still to do, cut between batches."""
    step = batch_size * max(
        MIN_CHUNK_BATCHES,
        min(
            MAX_CHUNK_BATCHES,
            (image_count - first_position) // (batch_size * worker_count * CHUNKS_PER_WORKER),
        ),
    )
    return (
        (first, min(first + step, image_count))
        for first in range(first_position, image_count, step)
    )


def load_worker_context(shared_refs: list[Any]) -> WorkerContext:
    """What the driver put for all workers: network, collection, facts. Raises SightlineError if this node has other files."""
    import ray

    packed, source, facts = ray.get(shared_refs[0])
    found = open_dataset(source)
    if found.digest != facts["collection"]["sha256"]:
        raise SightlineError(
            "the files are not the same on all nodes (paths, sizes, times); use a shared file system"
        )
    return unpack_model(packed), found, facts


def start_ray() -> Any:
    """Ray, on the cluster that RAY_ADDRESS names or on this machine. Raises SightlineError where a part of the extra is missing.

    To be called before LanceDB is loaded, whose threads don't survive the fork by which Ray starts its processes."""
    try:
        import ray

        if not ray.is_initialized():
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        for part in ("ray.data", "lance.fragment"):
            import_module(part)
    except ImportError as error:
        raise SightlineError(
            f"--engine ray needs the extra «cluster» ({error}); pip install 'sightline[cluster]'"
        ) from error
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are told in one line
    return ray


def explain_cluster_error(error: Exception) -> str:
    """Why a pass on a cluster ended, one line: a worker's own words, if it is one's failure."""
    told, deeper = f"the cluster failed: {get_first_error_line(error)}", error
    while isinstance(deeper, Exception):
        if isinstance(deeper, SightlineError):
            told = f"a worker of the cluster failed: {get_first_error_line(deeper)}"
        deeper = getattr(deeper, "cause", None) or deeper.__cause__
    return told


def pack_model(model: Model) -> dict[str, Any]:
    """A network as it can be sent: all but its lock."""
    return {name: value for name, value in vars(model).items() if name != "lock"}


def unpack_model(attributes: dict[str, Any]) -> Model:
    """The network that was sent."""
    model = Model.__new__(Model)
    vars(model).update(attributes, lock=threading.RLock())
    return model
