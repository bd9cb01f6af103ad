"""A scan on two Ray nodes on this machine, a worker killed in the middle, against the local one. `make cluster-test` runs it."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import LABELS, small_network, smooth

import sightline as sl
from sightline import image as images
from sightline.scans import cluster
from sightline.scans.store import state_of

COUNT, BATCH = 160, 4


@pytest.mark.filterwarnings("default")
def test_two_nodes_and_a_killed_worker_equal_the_local_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray
    from ray.cluster_utils import Cluster

    model = sl.load(small_network(), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), labels=LABELS, size=32)
    for number, picture in enumerate(smooth(COUNT, side=40)):
        images.write(picture[None], tmp_path / "photos" / ("even" if number % 2 == 0 else "odd") / f"{number:03}.jpg")
    (tmp_path / "photos" / "even" / "004.jpg").write_bytes(b"no photograph")
    here = sl.scan(model, tmp_path / "photos", store=tmp_path / "here.scan", batch=BATCH, k=5)

    began = time.monotonic()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(os.path.abspath, sys.path)))
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes.add_node(num_cpus=1)
    ray.init(address=nodes.address, log_to_driver=False)
    monkeypatch.setattr(cluster, "LEAST", 2)
    places: list[str] = []
    made, killed = cluster.pool, list[int]()

    def place(_worker: object) -> str:
        return f"{ray.get_runtime_context().get_node_id()} {os.getpid()}"

    def watched(*given: object) -> list[object]:
        workers = made(*given)  # type: ignore[arg-type]
        places.extend(ray.get([worker.__ray_call__.remote(place) for worker in workers]))
        return workers

    def kill_one(event: object) -> None:
        if not killed:
            killed.append(int(places[1].split()[1]))
            os.kill(killed[0], signal.SIGKILL)

    monkeypatch.setattr(cluster, "pool", watched)
    try:
        there = sl.scan(model, tmp_path / "photos", store=tmp_path / "there.scan", batch=BATCH, k=5, engine="ray", callback=kill_one)
    finally:
        ray.shutdown()
        nodes.shutdown()
    sys.stdout.write(
        f"\nworkers (node, process): {places}; killed {killed}; {time.monotonic() - began:.0f} s with the start of both nodes\n"
    )
    assert len({place.split()[0] for place in places}) == 2
    assert killed
    assert (there.images, there.errors, there.paths) == (COUNT - 1, here.errors, here.paths)
    assert torch.equal(there.vectors(), here.vectors())
    with state_of(there.path) as one, state_of(here.path) as other:
        slots = [state.get_tensor("sample.ids").argsort() for state in (one, other)]
        for name in other.keys():  # noqa: SIM118 - not a mapping
            got, wanted = one.get_tensor(name), other.get_tensor(name)
            if name.startswith("sample."):
                got, wanted = got[slots[0]], wanted[slots[1]]
            if name == "class.sums":  # the only sums, added in another order
                torch.testing.assert_close(got, wanted, rtol=1e-12, atol=0)
            else:
                assert torch.equal(got, wanted), name
