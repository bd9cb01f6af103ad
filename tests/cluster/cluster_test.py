"""A scan on two Ray nodes on this machine, stopped and gone on with, a worker killed in the middle, against the local one. `make cluster-test` runs it."""

import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import LABELS, small_network, smooth

import sightline as sl
from sightline.data.scan import ray as cluster
from sightline.data.store import writer as writing
from sightline.data.store.maintenance import verify_store
from sightline.data.store.reader import open_state_file
from sightline.images import io as images

COUNT, BATCH = 160, 4


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A cluster of two nodes with a processor each; the name of the first, to which the driver belongs."""
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


def photos(folder: Path) -> Path:
    """Small JPEG files of two classes, one of them broken."""
    for number, picture in enumerate(smooth(COUNT, side=40)):
        images.write(
            picture[None], folder / ("even" if number % 2 == 0 else "odd") / f"{number:03}.jpg"
        )
    (folder / "even" / "004.jpg").write_bytes(b"no photograph")
    return folder


def watched(head: str, seen: Path) -> type[cluster.RayScanWorker]:
    """Workers that note where they run. In the second pass that of the second node ends in its second stretch, its rows written but
    not told. By value, since other processes can't import this file."""
    import ray

    class Watched(cluster.RayScanWorker):
        def __init__(self, shared: list[Any]) -> None:
            super().__init__(shared)
            self.node, self.calls = ray.get_runtime_context().get_node_id(), 0
            (seen / str(os.getpid())).write_text(self.node, encoding="utf-8")

        def __call__(self, stretch: Any) -> Any:
            done = super().__call__(stretch)
            self.calls += 1
            if (
                self.node != head
                and self.calls == 2
                and (seen / "second").exists()
                and not (seen / "killed").exists()
            ):
                (seen / "killed").write_text(str(os.getpid()), encoding="utf-8")
                os.kill(os.getpid(), signal.SIGKILL)
            return done

    return Watched


def failing() -> type[cluster.RayScanWorker]:
    """Workers of nodes that have other files."""

    class Failing(cluster.RayScanWorker):
        def __call__(self, stretch: Any) -> Any:
            raise sl.SightlineError("the files are not the same")

    return Failing


@pytest.mark.filterwarnings("default")
def test_stopped_gone_on_with_and_a_worker_killed_equals_the_local_scan(
    head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = sl.load(
        small_network(), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), labels=LABELS, size=32
    )
    folder, seen, began = photos(tmp_path / "photos"), tmp_path / "seen", time.monotonic()
    here = sl.scan(model, folder, store=tmp_path / "here.scan", batch=BATCH, k=5)
    seen.mkdir()
    monkeypatch.setattr(cluster, "RayScanWorker", watched(head, seen))
    monkeypatch.setattr(cluster, "MIN_CHUNK_BATCHES", 2)
    monkeypatch.setattr(writing, "MIN_LARGE_FRAGMENT_ROWS", 1)  # the fragments stay as they are
    options: dict[str, Any] = {
        "store": tmp_path / "there.scan",
        "batch": BATCH,
        "k": 5,
        "engine": "ray",
    }
    part = sl.scan(model, folder, callback=lambda _: True, **options)
    assert 0 < part.done < COUNT
    assert (verify_store(part.path), part.paths) == ([], here.paths[: part.images])
    (seen / "second").touch()
    there = sl.scan(model, folder, **options)
    told = {
        path.name: path.read_text(encoding="utf-8")
        for path in seen.iterdir()
        if path.name != "second"
    }
    killed = told.pop("killed")
    sys.stdout.write(
        f"\nworkers (process: node): {told}; killed: {killed}; {part.done} files, then the rest; {time.monotonic() - began:.0f} s\n"
    )
    assert len(set(told.values())) == 2
    assert (
        list(told.values()).count(told[killed]) == 3
    )  # one in the first pass; in the second the one that was killed, and its successor
    assert_same(there, here)
    assert_only_fragments(there, math.ceil(COUNT / BATCH / 2))
    monkeypatch.setattr(cluster, "RayScanWorker", failing())
    with pytest.raises(
        sl.SightlineError, match=r"^a worker of the cluster failed: the files are not the same$"
    ):
        sl.scan(model, folder, **{**options, "store": tmp_path / "failed.scan"})


def assert_only_fragments(found: sl.Scan, count: int) -> None:
    """The fragments are there, and nothing of the killed worker's."""
    import lance

    held = lance.dataset(str(found.path / "images.lance")).get_fragments()
    wanted = {file.path for fragment in held for file in fragment.data_files()}
    assert len(held) == count
    assert {path.name for path in (found.path / "images.lance" / "data").iterdir()} == wanted
    assert verify_store(found.path) == []


def assert_same(there: sl.Scan, here: sl.Scan) -> None:
    """Two scans to the last bit, but for the sums."""
    assert (there.images, there.errors, there.paths) == (COUNT - 1, here.errors, here.paths)
    assert torch.equal(there.vectors(), here.vectors())
    assert there.thumbnail_bytes(range(COUNT - 1)) == here.thumbnail_bytes(range(COUNT - 1))
    with open_state_file(there.path) as one, open_state_file(here.path) as other:
        slots = [state.get_tensor("sample.ids").argsort() for state in (one, other)]
        for name in other.keys():  # noqa: SIM118 - not a mapping
            got, wanted = one.get_tensor(name), other.get_tensor(name)
            if name.startswith("sample."):
                got, wanted = got[slots[0]], wanted[slots[1]]
            if name == "class.sums":  # the only sums, added in another order
                torch.testing.assert_close(got, wanted, rtol=1e-12, atol=0)
            else:
                assert torch.equal(got, wanted), name
