"""The index of a store: what it finds against the exact neighbours, and when it is built anew or refused."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sightline as sl
from sightline.app.cli.main import main
from sightline.data.search.nearest import Metric, find_nearest
from sightline.data.store import index
from sightline.data.store import schema as layout
from sightline.data.store.reader import Scan
from sightline.data.store.writer import StoreWriter, lock_store, open_store_writer
from sightline.methods.retrieval import neighbors as method

COUNT, SIZE = 1200, 24


def appended(writer: StoreWriter, vectors: Tensor, thumbnail: bytes) -> None:
    """Images of these vectors, committed."""
    plain = {
        "sha256": "",
        "class": -1,
        "height": 8,
        "width": 8,
        "labels": [0],
        "probabilities": [1.0],
        "thumbnail": thumbnail,
    }
    first = writer.counters["images"]
    writer.add_rows(
        [
            {"id": i, "position": i, "path": f"{i}.png", **plain, "vector_0": row}
            for i, row in enumerate(vectors.numpy(), first)
        ],
        [],
    )
    done = first + len(vectors)
    writer.commit_state({}, {"done": done, "images": done, "errors": 0, "complete": 1})


FACTS: dict[str, Any] = {
    "format": layout.STORE_FORMAT,
    "version": layout.STORE_VERSION,
    "model": {"model": "none"},
    "network": {"side": 8, "short": 8, "weights": "0" * 64},
    "collection": {"source": "none", "kind": "folder"},
    "names": {"last": "penultimate"},
    "layers": {},
    "k": 5,
    "vectors": {"penultimate": SIZE},
    "class_names": [],
    "labels": ["thing"],
}


def clouds(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(count, SIZE, generator=generator)
        + 3 * torch.randn(20, SIZE, generator=generator)[torch.arange(count) % 20]
    )


@pytest.fixture
def kept(tmp_path: Path) -> Scan:
    """A store of 1,200 images with vectors in twenty clouds."""
    sl.write(torch.zeros(1, 3, 8, 8), tmp_path / "small.jpg")
    with open_store_writer(tmp_path / "many.scan", FACTS) as writer:
        appended(writer, clouds(COUNT), (tmp_path / "small.jpg").read_bytes())
    return Scan.open(tmp_path / "many.scan")


def test_lists_and_codes_go_by_number_and_length() -> None:
    assert index.choose_index_sizes(100_000, 512) == (316, 64)
    assert index.choose_index_sizes(10_000, 2048) == (39, 256)  # 256 vectors a list
    assert index.choose_index_sizes(300, 50) == (1, 5)
    assert index.choose_index_sizes(1_000_000, 7) == (1000, 1)
    for size in range(1, 200):
        assert size % index.choose_index_sizes(5000, size)[1] == 0


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_recall_is_what_it_says(kept: Scan, metric: Metric) -> None:
    built = index.ensure_vector_index(kept, "last", metric)
    own = torch.linspace(0, COUNT - 1, index.RECALL_QUERIES).round().long()
    distance, true = find_nearest(clouds(COUNT), clouds(COUNT)[own], 10, metric, own)
    assert (
        index.search_all_vectors(
            kept, "penultimate", clouds(COUNT)[own], k=10, metric=metric, exclude=own
        )[1].tolist()
        == true.tolist()
    )
    away, ids = index.search_vector_index(
        kept, "penultimate", built, clouds(COUNT)[own], k=10, exclude=own
    )
    shares = [
        len(set(one) & set(other)) / 10
        for one, other in zip(ids.tolist(), true.tolist(), strict=True)
    ]
    assert built.recall == pytest.approx(sum(shares) / len(shares))
    assert built.recall >= index.TARGET_RECALL
    same = ids == true
    assert torch.allclose(away[same], distance[same], atol=1e-4)
    assert (away[:, 1:] >= away[:, :-1]).all()
    assert (ids != own[:, None]).all()


def test_it_is_built_once_and_anew_where_it_has_to(kept: Scan) -> None:
    first = index.ensure_vector_index(kept, "penultimate", "cosine")
    assert index.ensure_vector_index(kept, "penultimate", "cosine") == first
    assert index.find_current_index(kept, "penultimate", "l2") is None
    with open_store_writer(kept.path, FACTS) as writer:
        appended(writer, clouds(60, seed=1), b"")
    more = Scan.open(kept.path)
    assert index.find_current_index(more, "penultimate", "cosine") is None
    assert index.ensure_vector_index(more, "penultimate", "cosine").images == COUNT + 60
    kept.path.joinpath(layout.INDEX_FILE).write_text("{", encoding="utf-8")
    assert index.read_store_indexes(more) == {}
    with lock_store(kept.path):
        StoreWriter(kept.path, FACTS).compact_tables()
    assert index.ensure_vector_index(more, "penultimate", "cosine").images == COUNT + 60


def test_neighbors_search_by_it(kept: Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = sl.neighbors(kept, id=7, k=5)
    assert exact.values["recall"] == 1
    assert exact.captions["neighbors"].endswith("Searched exactly.")
    near = sl.neighbors(kept, id=7, k=5, search="approximate")
    assert len(set(near.values["ids"][0].tolist()) & set(exact.values["ids"][0].tolist())) >= 4
    assert (
        f"recall@10 {near.values['recall']:.1%} of 100 stored vectors" in near.captions["neighbors"]
    )
    monkeypatch.setattr(method, "MIN_APPROXIMATE_IMAGES", COUNT)
    large = sl.neighbors(kept, id=7, k=5)
    assert large.values["ids"].tolist() == near.values["ids"].tolist()
    assert "pixel_ids" not in large.values
    kept.path.joinpath(layout.INDEX_FILE).unlink()
    with lock_store(kept.path):
        told = sl.neighbors(kept, id=7, k=5)
        assert "Searched exactly: another scan is writing" in told.captions["neighbors"]
        with pytest.raises(sl.SightlineError, match="another scan is writing"):
            sl.neighbors(kept, id=7, k=5, search="approximate")


def test_the_command_line_tells_recall(kept: Scan, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "index", str(kept.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recall"] >= index.TARGET_RECALL
    assert main(["store", "info", str(kept.path)]) == 0
    assert re.search(
        r"index of penultimate \(cosine\): IVF-PQ with 4 lists and 3 codes.*recall@10",
        capsys.readouterr().out,
    )
    assert main(["store", "index", str(kept.path), "--layer", "conv1"]) == 1
    assert "conv1" in capsys.readouterr().err


def test_few_images_need_none(kept: Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "MIN_INDEX_IMAGES", COUNT + 1)
    with pytest.raises(
        sl.SightlineError, match="an index needs at least 1,201 images; the store many"
    ):
        sl.neighbors(kept, id=7, search="approximate")
