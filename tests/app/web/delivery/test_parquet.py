"""The table of images that embedding-atlas opens: one row for each image, right in each column."""

import io
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import sightline as sl
from sightline.app.web.delivery import parquet
from sightline.app.web.delivery.parquet import place_images, write_image_table
from sightline.app.web.explorer.explorer import Explorer
from sightline.app.web.pages.content.facts import read_unit_table
from sightline.data.store.reader import Scan
from sightline.errors import SightlineError


def test_the_table(explorer: Explorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "ROWS_PER_GROUP", 5)
    scan = explorer.scan
    path = write_image_table(explorer, tmp_path / "images.parquet")
    rows = pq.read_table(path).to_pylist()
    assert [row["id"] for row in rows] == list(range(14))
    assert pq.ParquetFile(path).num_row_groups == 3

    labels, probabilities = scan.top5
    assert scan.classes is not None
    for id, row in enumerate(rows):
        assert row["class"] == scan.class_names[int(scan.classes[id])]
        assert row["predicted"] == scan.model_labels[int(labels[id, 0])]
        assert row["probability"] == pytest.approx(float(probabilities[id, 0]))
        assert row["is_right"] == (row["class"] == row["predicted"])
        assert row["class"] in row["text"]
        assert row["image"]["bytes"] == scan.thumbnail_bytes([id])[0]
        Image.open(io.BytesIO(row["image"]["bytes"])).load()
    assert len({(row["x"], row["y"]) for row in rows}) == 14


def test_neighbors_are_the_nearest_others(explorer: Explorer, tmp_path: Path) -> None:
    rows = pq.read_table(write_image_table(explorer, tmp_path / "a.parquet")).to_pylist()
    vectors = torch.nn.functional.normalize(explorer.scan.vectors().double())
    distances = 1 - vectors @ vectors.T
    for id, row in enumerate(rows):
        neighbors = row["neighbors"]
        expected = [other for other in distances[id].argsort().tolist() if other != id][:10]
        assert neighbors["ids"] == expected
        torch.testing.assert_close(
            torch.tensor(neighbors["distances"]).double(),
            distances[id][expected],
            atol=1e-4,
            rtol=0,
        )


def test_units_of_which_an_image_is_the_strongest(explorer: Explorer, tmp_path: Path) -> None:
    rows = pq.read_table(write_image_table(explorer, tmp_path / "a.parquet")).to_pylist()
    scan = explorer.scan
    for id, row in enumerate(rows):
        ranks: list[int] = []
        for name in row["units"]:
            layer, _, rest = name.partition(" unit ")
            unit, _, title = rest.partition(": ")
            assert title == read_unit_table(explorer, layer).names[int(unit)]
            ids = scan.top(layer).ids[:, int(unit)].tolist()
            ranks.append(ids.index(id))
        assert ranks == sorted(ranks)
        assert len(ranks) <= 3


def test_one_image_has_no_map(tmp_path: Path, tiny: sl.Model) -> None:
    sl.write(torch.rand(1, 3, 40, 40), tmp_path / "photos" / "0.png")
    scan = sl.scan(tiny, tmp_path / "photos", store=tmp_path / "a.scan")
    assert place_images(scan) == [[0.0, 0.0]]
    rows = pq.read_table(write_image_table(Explorer(scan), tmp_path / "a.parquet")).to_pylist()
    assert rows[0]["neighbors"] == {"ids": [], "distances": []}
    assert rows[0]["class"] is None
    assert rows[0]["is_right"] is None


def test_a_full_disk_leaves_no_table(
    explorer: Explorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(_scan: Scan, _ids: range) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(parquet, "read_thumbnail_structs", run_out)
    with pytest.raises(SightlineError, match="No space left"):
        write_image_table(explorer, tmp_path / "a.parquet")
    assert list(tmp_path.glob("*.parquet")) == []


def test_a_class_that_a_folder_writes_otherwise_is_right_all_the_same(
    tmp_path: Path, tiny: sl.Model
) -> None:
    label = tiny.labels[int(tiny.logits(tiny.blank())[0].argmax())]
    folders = [label.upper(), "unheard of"]
    for folder in folders:
        sl.write(torch.full((1, 3, 40, 40), 0.5), tmp_path / "photos" / folder / "0.png")
    scan = sl.scan(tiny, tmp_path / "photos", store=tmp_path / "a.scan")
    rows = pq.read_table(write_image_table(Explorer(scan), tmp_path / "a.parquet")).to_pylist()
    assert {row["class"]: row["is_right"] for row in rows} == {folders[0]: True, folders[1]: False}
