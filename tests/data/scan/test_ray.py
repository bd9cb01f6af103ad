"""What a cluster's workers give and how it is joined, without a cluster."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load

import sightline as sl
from sightline.data.datasets.open import open_dataset
from sightline.data.scan import ray as cluster
from sightline.data.scan.run import describe_scan
from sightline.data.scan.unit_statistics import UnitStatistics
from sightline.data.scan.worker import ScanWorker
from sightline.data.store.description import ScanDescription
from sightline.data.store.interface import ErrorRow
from sightline.data.store.lance_store import LanceStore

BATCH_SIZE = 4
PHOTO_COUNT = 44


def run_workers(
    model: sl.Model, folder: Path, store: LanceStore, step: int
) -> tuple[ScanDescription, list[pa.Table]]:
    """A new store, and the branches that workers give of its chunks."""
    dataset = open_dataset(folder)
    description = describe_scan(
        model, dataset, None, ("penultimate",), 5, size=model.image_size, batch_size=BATCH_SIZE
    )
    with store.open_writer(description) as writer:
        fragment_writer = writer.make_fragment_writer()
    worker = cluster.RayScanWorker([])
    worker.context = cluster.WorkerContext(model, dataset, description, fragment_writer)
    branches = [
        worker(pa.table({"first": [first], "end": [min(first + step, PHOTO_COUNT)]}))
        for first in range(0, PHOTO_COUNT, step)
    ]
    return description, branches


def test_a_tree_of_branches_equals_one_pass(wide: sl.Model, photos: Path, tmp_path: Path) -> None:
    store = LanceStore(tmp_path / "a.scan")
    description, branches = run_workers(wide, photos, store, 2 * BATCH_SIZE)
    expected = UnitStatistics.from_description(description)
    list(ScanWorker(wide, open_dataset(photos), description, expected).scan_range(0, 44, 0))

    pairs = [
        cluster.merge_branches(pa.concat_tables(branches[start : start + 2]), description)
        for start in range(0, len(branches), 2)
    ]
    root = cluster.merge_branches(pa.concat_tables(pairs), description)
    [summary] = cluster.read_summaries(root)
    assert (summary.first, summary.end, summary.count) == (0, PHOTO_COUNT, PHOTO_COUNT - 1)
    [error] = summary.errors
    assert (error.position, error.path) == (2, str(photos / "even" / "004.jpg"))
    assert len(summary.fragments) == len(branches)

    joined = UnitStatistics.from_description(description)
    joined.merge_partial(load(root["units"][0].as_py()), 0)
    for name, tensor in expected.name_tensors().items():
        if not name.startswith("sample."):
            torch.testing.assert_close(joined.name_tensors()[name], tensor, rtol=1e-12, atol=0)
    joined_order = joined.sample.positions.argsort()
    expected_order = expected.sample.positions.argsort()
    for joined_tensor, expected_tensor in zip(joined.sample, expected.sample, strict=True):
        assert torch.equal(joined_tensor[joined_order], expected_tensor[expected_order])

    with pytest.raises(sl.SightlineError, match="gave position 16 where 8 was due"):
        cluster.merge_branches(pa.concat_tables([branches[0], branches[2]]), description)


def test_a_summary_survives_json() -> None:
    errors = [ErrorRow(3, "a\n«ä».jpg", "no picture"), ErrorRow(5, "b", "")]
    summary = cluster.BranchSummary(2, 9, 5, errors, ["{}"])
    assert cluster.BranchSummary.from_json(summary.to_json()) == summary


@pytest.mark.parametrize("batch_size", [1, 4, 32])
@pytest.mark.parametrize("worker_count", [1, 7])
@pytest.mark.parametrize(("first", "count"), [(0, 5), (96, 100), (0, 3000), (64, 50_000)])
def test_chunks_are_whole_batches(
    first: int, count: int, worker_count: int, batch_size: int
) -> None:
    chunks = list(cluster.split_into_chunks(count, batch_size, first, worker_count, max_rows=10**9))
    positions = [position for start, end in chunks for position in range(start, end)]
    assert positions == list(range(first, count))
    sizes = [end - start for start, end in chunks]
    assert all(size % batch_size == 0 for size in sizes[:-1])
    assert max(sizes) <= cluster.MAX_CHUNK_BATCHES * batch_size
    assert min(sizes[:-1], default=batch_size * 4) >= cluster.MIN_CHUNK_BATCHES * batch_size
    batches_per_chunk = (count - first) // (batch_size * worker_count * cluster.CHUNKS_PER_WORKER)
    if cluster.MIN_CHUNK_BATCHES <= batches_per_chunk <= cluster.MAX_CHUNK_BATCHES:
        assert sizes[0] == batches_per_chunk * batch_size


def test_chunks_of_many_responses_are_shorter(wide: sl.Model, photos: Path) -> None:
    description = describe_scan(
        wide, open_dataset(photos), None, ("fc:in",), 5, size=(32, 32), batch_size=4
    )
    assert cluster.limit_chunk_rows(description) >= cluster.MAX_CHUNK_BYTES
    kept = replace(description, response_kinds=("max", "mean"))
    max_rows = cluster.limit_chunk_rows(kept)
    assert max_rows == cluster.MAX_CHUNK_BYTES // (16 * 2 * 2)  # 16 units, 2 kinds, 2 bytes
    for allowed, expected in ((43, 40), (40, 40), (3, 4 * cluster.MIN_CHUNK_BATCHES)):
        chunks = cluster.split_into_chunks(5000, 4, 0, 1, max_rows=allowed)
        assert {end - first for first, end in list(chunks)[:-1]} == {expected}


def test_errors_are_a_workers_words_where_it_has_any() -> None:
    def wrap(error: Exception, cause: Exception) -> Exception:
        error.__cause__ = cause
        return error

    lost = RuntimeError("node lost\nand a traceback")
    assert cluster.explain_cluster_error(lost) == "the cluster failed: node lost"
    words = "other files\nFailed to apply UDF transform after 1/1 attempts."
    refused = wrap(RuntimeError("task failed"), sl.SightlineError(words))
    assert cluster.explain_cluster_error(wrap(RuntimeError("outer"), refused)) == (
        "a worker of the cluster failed: other files"
    )


def test_a_node_with_other_files_refuses(
    wide: sl.Model,
    write_photos: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = write_photos(tmp_path / "photos", 8)
    dataset = open_dataset(folder)
    description = describe_scan(wide, dataset, None, ("fc:in",), 5, size=(32, 32), batch_size=4)
    packed = (cluster.pack_model(wide), str(folder), description, None)
    monkeypatch.setattr("ray.get", lambda _: packed)
    context = cluster.load_worker_context([None])
    assert context.dataset.digest == dataset.digest
    assert context.model.layers.keys() == wide.layers.keys()
    assert context.model.lock is not wide.lock

    changed_dataset = replace(description.dataset, sha256="00")
    packed = (*packed[:2], replace(description, dataset=changed_dataset), None)
    with pytest.raises(sl.SightlineError, match="the files are not the same on all nodes"):
        cluster.load_worker_context([None])
