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

from ..errors import SightlineError, first_line
from ..model import Model
from . import layout
from .collection import Collection, collect
from .eye import Eye, Part
from .fragments import written
from .top import Tally
from .writing import columns

LEAST, MOST = 4, 256  # batches in a stretch: few, and a fragment is small; many, and a dead worker loses much
SHARES = 8  # stretches for each worker, so that the slow ones get fewer
FAN, ROOTS = 2, 256  # parts joined by one task of the tree; levels are added until about so many parts reach the driver
Held = tuple[Model, Collection, dict[str, Any]]


class Worker:
    """One process of the pool. It gets network and collection with its first stretch, since the driver keeps them for the whole pass."""

    def __init__(self, shared: list[Any]) -> None:
        self.shared = shared
        self.held: Held | None = None

    def __call__(self, stretch: Any) -> Any:
        """A stretch of positions; its images' rows go to the store, the rest goes on."""
        if self.held is None:
            self.held = received(self.shared)
        model, found, facts = self.held
        tally = Tally.of(facts)
        [first], [end] = stretch["first"].to_pylist(), stretch["end"].to_pylist()
        done = list(Eye(model, found, facts, tally).parts(first, end, 0))
        images = [row for part in done for row in part.images]
        errors = [row for part in done for row in part.errors]
        fragments = written(Path(facts["store"]), columns(images, layout.schema(facts["vectors"]))) if images else []
        return branch({"first": first, "end": end, "count": len(images), "errors": errors, "fragments": fragments}, tally)


def branch(told: dict[str, Any], tally: Tally) -> Any:
    """What is known of neighbouring positions, a row: where they begin and end, how many images they had, errors, fragments, and
    what is kept of the units, with the images numbered from 0."""
    from safetensors.torch import save

    return pa.table({"told": pa.array([json.dumps(told)], pa.large_string()), "units": pa.array([save(tally.part())], pa.large_binary())})


def joined(rows: Any, facts: dict[str, Any]) -> Any:
    """One level of the tree: branches of neighbouring positions as one."""
    from safetensors.torch import load

    tally, branches = Tally.of(facts), [json.loads(told) for told in rows["told"].to_pylist()]
    count, last = 0, branches[0]["first"]
    for told, units in zip(branches, rows["units"], strict=True):
        in_order(told, last)
        tally.join(load(units.as_py()), count)
        count, last = count + told["count"], told["end"]
    gathered = {kind: [item for told in branches for item in told[kind]] for kind in ("errors", "fragments")}
    return branch({"first": branches[0]["first"], "end": last, "count": count, **gathered}, tally)


def parts(model: Model, source: Any, facts: dict[str, Any], tally: Tally, *, done: int, images: int) -> Generator[Part, None, None]:
    """The parts of a pass from position `done` on, in order, as the cluster gives them; `images` are numbered already."""
    ray = started()
    from safetensors.torch import load

    place = os.path.abspath(source) if isinstance(source, (str, Path)) else source
    shared = [ray.put((vars_of(model), place, facts))]  # the driver's for the whole pass: a worker that is started again finds it
    flow = pipeline(ray, shared, facts, done, "GPU" if model.device.type == "cuda" else "CPU")
    try:
        for rows in flow.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
            for told, units in zip(map(json.loads, rows["told"].to_pylist()), rows["units"], strict=True):
                in_order(told, done)
                tally.join(load(units.as_py()), images)
                done, images = told["end"], images + told["count"]
                yield Part(done, told["count"], [], told["errors"], told["fragments"])
    except ray.exceptions.RayError as error:
        raise SightlineError(reason(error)) from error


def in_order(told: dict[str, Any], position: int) -> None:
    """Raises SightlineError unless a branch begins where the one before it ended: the images' numbers depend on it."""
    if told["first"] != position:
        raise SightlineError(f"the cluster gave position {told['first']} where {position} was due; scan again")


def pipeline(ray: Any, shared: list[Any], facts: dict[str, Any], done: int, kind: str) -> Any:
    """The lazy data set: stretches through the actor pool, then through the levels of the tree."""
    from ray import data

    workers = int(ray.cluster_resources().get(kind, 0))
    if not workers:
        raise SightlineError(f"the Ray cluster has no {kind}")
    bounds = list(stretches(facts["collection"]["count"], facts["batch"], done, workers))
    flow = data.from_items([{"first": first, "end": end} for first, end in bounds], override_num_blocks=len(bounds))
    flow.context.enable_progress_bars = False
    flow.context.execution_options.preserve_order = True
    flow.context.raise_original_map_exception = True
    share: dict[str, Any] = {"num_gpus": 1} if kind == "GPU" else {"num_cpus": 1}
    tree: dict[str, Any] = {"batch_size": FAN, "batch_format": "pyarrow", "fn_kwargs": {"facts": facts}, "num_cpus": 0}
    level: Any = joined
    pool = data.ActorPoolStrategy(size=min(workers, len(bounds)))
    flow = flow.map_batches(Worker, batch_size=1, batch_format="pyarrow", compute=pool, fn_constructor_args=(shared,), **share)
    for _ in range(max(1, math.ceil(math.log(len(bounds) / ROOTS, FAN)))):
        flow = flow.map_batches(level, **tree)
    return flow


def stretches(count: int, batch: int, done: int, workers: int) -> Iterator[tuple[int, int]]:
    """The positions that are still to do, cut between batches."""
    step = batch * max(LEAST, min(MOST, (count - done) // (batch * workers * SHARES)))
    return ((first, min(first + step, count)) for first in range(done, count, step))


def received(shared: list[Any]) -> Held:
    """What the driver put for all workers: network, collection, facts. Raises SightlineError if this node has other files."""
    import ray

    packed, source, facts = ray.get(shared[0])
    found = collect(source)
    if found.digest != facts["collection"]["sha256"]:
        raise SightlineError("the files are not the same on all nodes (paths, sizes, times); use a shared file system")
    return unpacked(packed), found, facts


def started() -> Any:
    """Ray, on the cluster that RAY_ADDRESS names or on this machine. Raises SightlineError where a part of the extra is missing.

    To be called before LanceDB is loaded, whose threads don't survive the fork by which Ray starts its processes."""
    try:
        import ray

        if not ray.is_initialized():
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        for part in ("ray.data", "lance.fragment"):
            import_module(part)
    except ImportError as error:
        raise SightlineError(f"--engine ray needs the extra «cluster» ({error}); pip install 'sightline[cluster]'") from error
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are told in one line
    return ray


def reason(error: Exception) -> str:
    """Why a pass on a cluster ended, one line: a worker's own words, if it is one's failure."""
    told, deeper = f"the cluster failed: {first_line(error)}", error
    while isinstance(deeper, Exception):
        if isinstance(deeper, SightlineError):
            told = f"a worker of the cluster failed: {first_line(deeper)}"
        deeper = getattr(deeper, "cause", None) or deeper.__cause__
    return told


def vars_of(model: Model) -> dict[str, Any]:
    """A network as it can be sent: all but its lock."""
    return {name: value for name, value in vars(model).items() if name != "_lock"}


def unpacked(held: dict[str, Any]) -> Model:
    """The network that was sent."""
    model = Model.__new__(Model)
    vars(model).update(held, _lock=threading.RLock())
    return model
