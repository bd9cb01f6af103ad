"""A scan on two Ray nodes of this machine against the local one. `make cluster-test` runs it.

It is stopped and continued, and a worker is killed in the middle.
"""

import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import LABELS, small_network, smooth

import sightline as sl
from sightline.data.scan import ray as cluster
from sightline.data.store import lance_store
from sightline.data.store.lance_reader import open_state_file
from sightline.data.store.maintenance import verify_store
from sightline.data.store.memory import MemoryStore

COUNT = 160
BATCH_SIZE = 4


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A cluster of two nodes with a processor each; the id of the first, which is the driver's."""
    import ray
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(os.path.abspath, sys.path)))
    nodes = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    try:
        nodes.add_node(num_cpus=1)
        ray.init(address=nodes.address, log_to_driver=False)
        yield ray.get_runtime_context().get_node_id()
    finally:
        ray.shutdown()
        nodes.shutdown()


def write_photos(folder: Path) -> Path:
    """Small JPEG files of 40×56 pixels in two classes, one of them broken."""
    for number, photo in enumerate(smooth(COUNT, side=56)[:, :, :40]):
        class_folder = folder / ("even" if number % 2 == 0 else "odd")
        class_folder.mkdir(parents=True, exist_ok=True)
        sl.write(photo, class_folder / f"{number:03}.jpg")
    (folder / "even" / "004.jpg").write_bytes(b"no photograph")
    return folder


def make_watched_worker(head: str, notes: Path) -> type[cluster.RayScanWorker]:
    """Workers that note where they run.

    In the second pass that of the second node ends in its second chunk, its rows written but not
    told. The class is made here so that it is sent by value: other processes can't import this
    file.
    """
    import ray

    class WatchedWorker(cluster.RayScanWorker):
        def __init__(self, shared_refs: list[Any]) -> None:
            super().__init__(shared_refs)
            self.node = ray.get_runtime_context().get_node_id()
            self.calls = 0
            (notes / str(os.getpid())).write_text(self.node, encoding="utf-8")

        def __call__(self, chunk: Any) -> Any:
            branch = super().__call__(chunk)
            self.calls += 1
            is_due = (notes / "second").exists() and not (notes / "killed").exists()
            if self.node != head and self.calls == 2 and is_due:
                (notes / "killed").write_text(str(os.getpid()), encoding="utf-8")
                os.kill(os.getpid(), signal.SIGKILL)
            return branch

    return WatchedWorker


def make_failing_worker() -> type[cluster.RayScanWorker]:
    """Workers of nodes that have other files."""

    class FailingWorker(cluster.RayScanWorker):
        def __call__(self, chunk: Any) -> Any:
            raise sl.SightlineError("the files are not the same")

    return FailingWorker


@pytest.mark.filterwarnings("default")
def test_stopped_continued_and_a_worker_killed_equals_the_local_scan(
    head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = sl.load(
        small_network(), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), labels=LABELS, size=32
    )
    folder = write_photos(tmp_path / "photos")
    notes = tmp_path / "notes"
    notes.mkdir()
    start_time = time.monotonic()
    local = sl.scan(model, folder, store=tmp_path / "local.scan", batch=BATCH_SIZE, k=5)

    monkeypatch.setattr(cluster, "RayScanWorker", make_watched_worker(head, notes))
    monkeypatch.setattr(cluster, "MIN_CHUNK_BATCHES", 2)
    monkeypatch.setattr(lance_store, "MIN_LARGE_FRAGMENT_ROWS", 1)  # the fragments stay
    options: dict[str, Any] = {
        "store": tmp_path / "remote.scan",
        "batch": BATCH_SIZE,
        "k": 5,
        "engine": "ray",
    }
    stopped = sl.scan(model, folder, callback=lambda _: True, **options)
    assert 0 < stopped.done < COUNT
    assert verify_store(stopped.path) == []
    assert stopped.paths == local.paths[: stopped.images]

    (notes / "second").touch()
    # The batch size of the store is kept.
    remote = sl.scan(model, folder, **{**options, "batch": 3 * BATCH_SIZE})
    worker_nodes = {
        path.name: path.read_text(encoding="utf-8")
        for path in notes.iterdir()
        if path.name != "second"
    }
    killed = worker_nodes.pop("killed")
    sys.stdout.write(
        f"\nworkers (process: node): {worker_nodes}; killed: {killed}; "
        f"{stopped.done} files, then the rest; {time.monotonic() - start_time:.0f} s\n"
    )
    assert len(set(worker_nodes.values())) == 2
    # One in the first pass; in the second the one that was killed, and its successor.
    assert list(worker_nodes.values()).count(worker_nodes[killed]) == 3
    assert_same(remote, local)
    assert_only_fragments(remote, math.ceil(COUNT / BATCH_SIZE / 2))

    with pytest.raises(sl.SightlineError, match=r"^a cluster can't write into a store in memory"):
        sl.scan(model, folder, **{**options, "store": MemoryStore()})
    monkeypatch.setattr(cluster, "RayScanWorker", make_failing_worker())
    with pytest.raises(
        sl.SightlineError, match=r"^a worker of the cluster failed: the files are not the same$"
    ):
        sl.scan(model, folder, **{**options, "store": tmp_path / "failed.scan"})


def assert_only_fragments(scan: sl.Scan, count: int) -> None:
    """Asserts that the fragments are there, and nothing of the killed worker's."""
    import lance

    fragments = lance.dataset(str(scan.path / "images.lance")).get_fragments()
    files = {file.path for fragment in fragments for file in fragment.data_files()}
    assert len(fragments) == count
    assert {path.name for path in (scan.path / "images.lance" / "data").iterdir()} == files
    assert verify_store(scan.path) == []


def assert_same(remote: sl.Scan, local: sl.Scan) -> None:
    """Asserts that two scans are the same to the last bit, but for the sums."""
    assert remote.images == COUNT - 1
    assert remote.errors == local.errors
    assert remote.paths == local.paths
    assert torch.equal(remote.vectors(), local.vectors())
    for layer in local.layers:
        np.testing.assert_array_equal(remote.responses(layer), local.responses(layer))
    ids = range(COUNT - 1)
    assert remote.thumbnail_bytes(ids) == local.thumbnail_bytes(ids)
    with open_state_file(remote.path) as remote_state, open_state_file(local.path) as local_state:
        remote_order = remote_state.get_tensor("sample.ids").argsort()
        local_order = local_state.get_tensor("sample.ids").argsort()
        for name in local_state.keys():  # noqa: SIM118 - not a mapping
            tensor = remote_state.get_tensor(name)
            expected = local_state.get_tensor(name)
            if name.startswith("sample."):
                tensor = tensor[remote_order]
                expected = expected[local_order]
            if name == "class.sums":  # the only sums, added in another order
                torch.testing.assert_close(tensor, expected, rtol=1e-12, atol=0)
            else:
                assert torch.equal(tensor, expected), name
