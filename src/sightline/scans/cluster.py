"""The pass on a Ray cluster: workers take stretches of the collection, the driver joins their parts in order and writes the store.

A worker that dies is started again and its stretch repeated; the store sees whole stretches only. Ray is imported here alone.
"""

import logging
import os
import threading
from collections import deque
from collections.abc import Generator
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import SightlineError, first_line
from ..model import Model
from .collection import Collection, collect
from .eye import Eye, Part
from .top import Tally
from .writing import Rows

LEAST, MOST = 4, 256  # batches in a stretch: few, and joining them takes the driver's time; many, and a dead worker loses much
SHARES = 8  # stretches for each worker, so that the slow ones get fewer
WAITING = 2  # stretches given to each worker


class Worker:
    """One process of the pool; it gets network and collection once, with its first stretch."""

    def __init__(self) -> None:
        self.held: tuple[Model, Collection, dict[str, Any]] | None = None

    def stretch(self, shared: list[Any], first: int, end: int) -> tuple[Rows, Rows, dict[str, Tensor]]:
        """Rows of images and of errors, and the units' part; images are numbered from 0."""
        if self.held is None:
            self.held = received(shared)
        model, found, facts = self.held
        tally = Tally.of(facts)
        done = list(Eye(model, found, facts, tally).parts(first, end, 0))
        return [row for part in done for row in part.images], [row for part in done for row in part.errors], tally.part()


def received(shared: list[Any]) -> tuple[Model, Collection, dict[str, Any]]:
    """What the driver put for all workers: network, collection, facts. Raises SightlineError if this node has other files."""
    import ray

    packed, source, facts = ray.get(shared[0])
    found = collect(source)
    if found.digest != facts["collection"]["sha256"]:
        raise SightlineError("the files are not the same on all nodes (paths, sizes, times); use a shared file system")
    return unpacked(packed), found, facts


def parts(model: Model, source: Any, facts: dict[str, Any], tally: Tally, *, done: int, images: int) -> Generator[Part, None, None]:
    """The parts of a pass from position `done` on, in order, as the workers of a cluster give them; `images` are numbered already."""
    ray = started()
    workers = pool(ray, "GPU" if model.device.type == "cuda" else "CPU")
    place = os.path.abspath(source) if isinstance(source, (str, Path)) else source
    shared = [ray.put((vars_of(model), place, facts))]  # as an argument of the workers' making it would be lost to those started again
    count, batch = facts["collection"]["count"], facts["batch"]
    step = batch * max(LEAST, min(MOST, (count - done) // (batch * len(workers) * SHARES)))
    stretches = iter([(first, min(first + step, count)) for first in range(done, count, step)])
    waiting: deque[tuple[int, Any]] = deque()
    given = 0
    try:
        while True:
            while len(waiting) < WAITING * len(workers) and (bounds := next(stretches, None)) is not None:
                waiting.append((bounds[1], workers[given % len(workers)].stretch.remote(shared, *bounds)))
                given += 1
            if not waiting:
                return
            end, reference = waiting.popleft()
            rows, errors, part = result(ray, reference)
            tally.join(part, images)
            yield Part(end, [{**row, "id": row["id"] + images} for row in rows], errors)
            images += len(rows)
    finally:
        for worker in workers:
            ray.kill(worker)


def started() -> Any:
    """Ray, on the cluster that RAY_ADDRESS names or on this machine. Raises SightlineError where it is not installed."""
    try:
        import ray
    except ImportError as error:
        raise SightlineError(f"--engine ray needs the extra «cluster» ({error}); pip install 'sightline[cluster]'") from error
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    return ray


def pool(ray: Any, kind: str) -> list[Any]:
    """A worker for each processor, or GPU, of the cluster."""
    count = int(ray.cluster_resources().get(kind, 0))
    if not count:
        raise SightlineError(f"the Ray cluster has no {kind}")
    share = {"num_gpus": 1} if kind == "GPU" else {"num_cpus": 1}
    made = ray.remote(max_restarts=-1, max_task_retries=-1, **share)(Worker)
    return [made.remote() for _ in range(count)]


def result(ray: Any, reference: Any) -> Any:
    """What a worker gave. Raises SightlineError, one line, for what went wrong there."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise SightlineError(f"a worker of the cluster failed: {first_line(error.cause)}") from error
    except ray.exceptions.RayError as error:
        raise SightlineError(f"the cluster failed: {first_line(error)}") from error


def vars_of(model: Model) -> dict[str, Any]:
    """A network as it can be sent: all but its lock."""
    return {name: value for name, value in vars(model).items() if name != "_lock"}


def unpacked(held: dict[str, Any]) -> Model:
    """The network that was sent."""
    model = Model.__new__(Model)
    vars(model).update(held, _lock=threading.RLock())
    return model
