"""The index of a store: what it finds against the exact neighbours, and when it is built again."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import sightline as sl
from sightline.app.cli.main import main
from sightline.data.search.nearest import Metric, find_nearest
from sightline.data.store import index
from sightline.data.store.description import (
    DatasetDescription,
    NetworkDescription,
    ScanDescription,
)
from sightline.data.store.interface import ImageRow, ScanProgress, ScanStore, StoreWriter
from sightline.data.store.lance_reader import INDEX_FILE
from sightline.data.store.lance_store import LanceStore
from sightline.data.store.memory import MemoryStore
from sightline.data.writer_lock import lock_folder
from sightline.methods.retrieval import neighbors as method

COUNT = 1200
SIZE = 24

DESCRIPTION = ScanDescription(
    recipe={"model": "none"},
    network=NetworkDescription("0" * 64, (0.5,), (0.25,), size=(8, 8), short_side=8),
    model_labels=("thing",),
    aliases={"last": "penultimate"},
    layers={},
    vector_lengths={"other": 4, "penultimate": SIZE},
    k=5,
    class_k=1,
    sample_size=4,
    batch_size=8,
    dataset=DatasetDescription("Files", "none", COUNT, "0" * 64),
    class_names=(),
)


def add_images(writer: StoreWriter, vectors: Tensor, thumbnail: bytes) -> None:
    """Adds images of these vectors and commits them."""
    first_id = writer.progress.images
    row = ImageRow(
        id=0,
        position=0,
        path="",
        sha256="",
        label=-1,
        height=8,
        width=8,
        best_labels=np.array([0]),
        best_probabilities=np.array([1.0], np.float32),
        thumbnail=thumbnail,
        vectors=(),
    )
    rows = [
        replace(
            row,
            id=id,
            position=id,
            path=f"{id}.png",
            vectors=(np.zeros(4, np.float32), vector),
        )
        for id, vector in enumerate(vectors.numpy(), first_id)
    ]
    writer.add_rows(rows, [])
    count = first_id + len(vectors)
    writer.commit({}, ScanProgress(done=count, images=count, complete=True))


def make_clouds(count: int, seed: int = 0) -> Tensor:
    """Vectors in twenty clouds."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, SIZE, generator=generator)
    centres = 3 * torch.randn(20, SIZE, generator=generator)
    return noise + centres[torch.arange(count) % 20]


def fill_store(store: ScanStore, folder: Path) -> sl.Scan:
    """A store of 1,200 images with vectors in clouds."""
    sl.write(torch.zeros(1, 3, 8, 8), folder / "small.jpg")
    with store.open_writer(DESCRIPTION) as writer:
        add_images(writer, make_clouds(COUNT), (folder / "small.jpg").read_bytes())
    return sl.Scan.open(store)


@pytest.fixture(autouse=True)
def few_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recall is measured with fewer queries; each is a search of its own."""
    monkeypatch.setattr(index, "RECALL_QUERIES", 40)


@pytest.fixture
def stored(tmp_path: Path) -> sl.Scan:
    """Such a store on disk."""
    return fill_store(LanceStore(tmp_path / "many.scan"), tmp_path)


def test_lists_and_codes_go_by_number_and_length() -> None:
    assert index.choose_index_sizes(100_000, 512) == (316, 64)
    assert index.choose_index_sizes(10_000, 2048) == (39, 256)  # 256 vectors a list
    assert index.choose_index_sizes(300, 50) == (1, 5)
    assert index.choose_index_sizes(1_000_000, 7) == (1000, 1)
    for size in range(1, 200):
        assert size % index.choose_index_sizes(5000, size)[1] == 0


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_recall_is_what_it_says(stored: sl.Scan, metric: Metric) -> None:
    vectors = make_clouds(COUNT)
    built_index = index.ensure_vector_index(stored, "last", metric)
    query_ids = torch.linspace(0, COUNT - 1, index.RECALL_QUERIES).round().long()
    exact_distances, exact_ids = find_nearest(vectors, vectors[query_ids], 10, metric, query_ids)
    _, all_ids = index.search_all_vectors(
        stored, "penultimate", vectors[query_ids], k=10, metric=metric, exclude=query_ids
    )
    assert all_ids.tolist() == exact_ids.tolist()

    distances, ids = index.search_vector_index(
        stored, "penultimate", built_index, vectors[query_ids], k=10, exclude=query_ids
    )
    shares = [
        len(set(row) & set(exact_row)) / 10
        for row, exact_row in zip(ids.tolist(), exact_ids.tolist(), strict=True)
    ]
    assert built_index.recall == pytest.approx(sum(shares) / len(shares))
    assert built_index.recall >= index.TARGET_RECALL
    is_same = ids == exact_ids
    assert torch.allclose(distances[is_same], exact_distances[is_same], atol=1e-4)
    assert (distances[:, 1:] >= distances[:, :-1]).all()
    assert (ids != query_ids[:, None]).all()


def test_the_cheapest_settings_that_reach_the_recall(
    stored: sl.Scan, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ((1, 1), (1, 2), (2, 16), (3, 32), (4, 64))
    monkeypatch.setattr(index, "PROBES_AND_REFINES", settings)
    built_index = index.build_vector_index(stored, "last", "l2")
    vectors = make_clouds(COUNT)
    query_ids = torch.linspace(0, COUNT - 1, index.RECALL_QUERIES).round().long()
    _, exact_ids = find_nearest(vectors, vectors[query_ids], 10, "l2", query_ids)
    recalls: list[float] = []
    for probes, refine in settings:
        candidate = replace(built_index, probes=probes, refine=refine)
        _, ids = index.search_vector_index(
            stored, "last", candidate, vectors[query_ids], k=10, exclude=query_ids
        )
        recalls.append(float((ids[:, :, None] == exact_ids[:, None]).any(2).float().mean()))
    assert recalls[0] < index.TARGET_RECALL <= recalls[-2]
    chosen = next(number for number, recall in enumerate(recalls) if recall >= 0.95)
    assert (built_index.probes, built_index.refine) == settings[chosen]
    assert built_index.recall == pytest.approx(recalls[chosen])


def test_exact_search_in_chunks(stored: sl.Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of which the last is smaller than k."""
    vectors = make_clouds(COUNT)
    query_ids = torch.tensor([3, 700, 1199])
    monkeypatch.setattr(index, "EXACT_CHUNK_VECTORS", 399)
    distances, ids = index.search_all_vectors(
        stored, "penultimate", vectors[query_ids], k=7, metric="l2", exclude=query_ids
    )
    exact_distances, exact_ids = find_nearest(vectors, vectors[query_ids], 7, "l2", query_ids)
    assert ids.tolist() == exact_ids.tolist()
    torch.testing.assert_close(distances, exact_distances)


def test_rows_are_read_in_the_order_of_the_ids(stored: sl.Scan) -> None:
    vectors = index.read_vector_rows(stored, "last", [900, 3, 900])
    assert torch.equal(vectors, make_clouds(COUNT)[[900, 3, 900]])


def test_it_is_built_once_and_again_where_it_has_to(stored: sl.Scan) -> None:
    first_index = index.ensure_vector_index(stored, "penultimate", "cosine")
    assert index.ensure_vector_index(stored, "penultimate", "cosine") == first_index
    assert index.find_current_index(stored, "penultimate", "l2") is None
    with stored.store.open_writer(DESCRIPTION) as writer:
        add_images(writer, make_clouds(60, seed=1), b"")
    grown = sl.Scan.open(stored.path)
    assert index.find_current_index(grown, "penultimate", "cosine") is None
    assert index.ensure_vector_index(grown, "penultimate", "cosine").images == COUNT + 60

    stored.path.joinpath(INDEX_FILE).write_text("{", encoding="utf-8")
    assert grown.reader.read_indexes() == {}
    with stored.store.open_writer(DESCRIPTION) as writer:
        writer.compact()
    assert index.ensure_vector_index(grown, "penultimate", "cosine").images == COUNT + 60


def test_merging_leaves_no_index(stored: sl.Scan) -> None:
    """The rows are others then, though `index.json` still tells of it."""
    with stored.store.open_writer(DESCRIPTION) as writer:
        add_images(writer, make_clouds(60, seed=1), b"")
    grown = sl.Scan.open(stored.path)
    index.ensure_vector_index(grown, "penultimate", "cosine")
    with stored.store.open_writer(DESCRIPTION) as writer:
        writer.compact()
    assert grown.reader.read_indexes()["penultimate"].images == COUNT + 60
    assert index.find_current_index(grown, "penultimate", "cosine") is None


def test_a_store_in_memory_searches_exactly(tmp_path: Path) -> None:
    scan = fill_store(MemoryStore(), tmp_path)
    built_index = index.ensure_vector_index(scan, "last", "l2")
    assert built_index.recall == 1
    assert index.find_current_index(scan, "last", "cosine") is None
    reopened = sl.Scan.open(scan.store)
    assert index.find_current_index(reopened, "last", "l2") == built_index
    vectors = make_clouds(COUNT)
    query_ids = torch.tensor([3, 700])
    distances, ids = index.search_vector_index(
        reopened, "last", built_index, vectors[query_ids], k=6, exclude=query_ids
    )
    exact_distances, exact_ids = find_nearest(vectors, vectors[query_ids], 6, "l2", query_ids)
    assert ids.tolist() == exact_ids.tolist()
    torch.testing.assert_close(distances, exact_distances)


def test_neighbors_search_by_it(stored: sl.Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = sl.neighbors(stored, id=7, k=5)
    assert exact.values["recall"] == 1
    assert exact.captions["neighbors"].endswith("Searched exactly.")
    approximate = sl.neighbors(stored, id=7, k=5, search="approximate")
    exact_ids = set(exact.values["ids"][0].tolist())
    assert len(set(approximate.values["ids"][0].tolist()) & exact_ids) >= 4
    recall = approximate.values["recall"]
    assert f"recall@10 {recall:.1%} of 40 stored vectors" in (approximate.captions["neighbors"])
    monkeypatch.setattr(method, "MIN_APPROXIMATE_IMAGES", COUNT)
    automatic = sl.neighbors(stored, id=7, k=5)
    assert automatic.values["ids"].tolist() == approximate.values["ids"].tolist()
    assert "pixel_ids" not in automatic.values

    stored.path.joinpath(INDEX_FILE).unlink()
    with lock_folder(stored.path):  # by this thread, which would wait for itself
        fallback = sl.neighbors(stored, id=7, k=5)
        reason = f"{stored.path} is being written by this thread already"
        assert f"Searched exactly: {reason}" in fallback.captions["neighbors"]
        with pytest.raises(sl.SightlineError, match="is being written by this thread already"):
            sl.neighbors(stored, id=7, k=5, search="approximate")


def test_the_command_line_tells_recall(stored: sl.Scan, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "index", str(stored.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recall"] >= index.TARGET_RECALL
    assert main(["store", "info", str(stored.path)]) == 0
    assert re.search(
        r"index of penultimate \(cosine\): IVF-PQ with 4 lists and 3 codes.*recall@10",
        capsys.readouterr().out,
    )
    assert main(["store", "index", str(stored.path), "--layer", "conv1"]) == 1
    assert "conv1" in capsys.readouterr().err


def test_few_images_need_none(stored: sl.Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "MIN_INDEX_IMAGES", COUNT + 1)
    with pytest.raises(
        sl.SightlineError, match="an index needs at least 1,201 images; the store many"
    ):
        sl.neighbors(stored, id=7, search="approximate")
    monkeypatch.setattr(index, "MIN_INDEX_IMAGES", COUNT)
    assert sl.neighbors(stored, id=7, search="approximate").values["recall"] > 0.9


def test_vectors_of_zeros_have_no_neighbours_by_an_index(tmp_path: Path) -> None:
    store = LanceStore(tmp_path / "zeros.scan")
    vectors = make_clouds(COUNT)
    vectors[600:] = 0
    with store.open_writer(DESCRIPTION) as writer:
        add_images(writer, vectors, b"")
    scan = sl.Scan.open(store)
    with pytest.raises(sl.SightlineError, match=r"only 0 of 10 neighbours.*: search exactly"):
        index.ensure_vector_index(scan, "last", "cosine")
    assert index.find_current_index(scan, "last", "cosine") is None
