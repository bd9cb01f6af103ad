"""A scan, read: how it shows itself, what it names, and originals that have changed."""

from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import smooth

import sightline as sl
from sightline.data.store import reader
from sightline.data.store.lance_reader import open_table
from sightline.data.store.memory import MemoryStore


@pytest.fixture(scope="module")
def stored(wide: sl.Model, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> sl.Scan:
    """A scan of the photographs."""
    path = tmp_path_factory.mktemp("stores") / "a.scan"
    return sl.scan(wide, photos, store=path, batch=8, k=5, vectors=("penultimate", "conv2"))


class CellParser(HTMLParser):
    """Collects the text of the cells of a table, and refuses what a plain table does not need."""

    def __init__(self) -> None:
        super().__init__()
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ("table", "tr", "th", "td")
        assert attrs == []
        if tag in ("th", "td"):
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        self.cells[-1] += data


def read_table(html: str) -> dict[str, str]:
    """The rows of a table of two columns."""
    parser = CellParser()
    parser.feed(html)
    return dict(zip(parser.cells[::2], parser.cells[1::2], strict=True))


def test_repr_is_one_line(stored: sl.Scan) -> None:
    assert repr(stored) == f"Scan({str(stored.path)!r}, 43 images, Sequential)"


def test_html_shows_the_facts(stored: sl.Scan) -> None:
    assert read_table(stored._repr_html_()) == {
        "images": "43",
        "errors": "1",
        "network": "Sequential at 32 pixels",
        "layers": "conv1 (6 units), conv2 (10 units)",
        "responses": "max",
        "classes": "even, odd",
        "path": str(stored.path),
    }


def test_html_is_escaped_and_an_unfinished_scan_says_so(
    tiny: sl.Model, tmp_path: Path, write_photos: Callable[..., Path]
) -> None:
    folder = write_photos(tmp_path / "photos", 12)
    (folder / "odd").rename(folder / "<b>odd&amp;")
    store = MemoryStore("<script>&\n.scan")
    scan = sl.scan(tiny, folder, store=store, batch=4, callback=lambda _: True)
    html = scan._repr_html_()
    assert "<script>" not in html
    assert "<b>" not in html
    table = read_table(html)
    assert table["images"] == "4 (4 of 12 files so far)"
    assert table["classes"] == "<b>odd&amp;, even"
    assert table["path"] == r"<script>&\n.scan"  # the line end is shown escaped
    assert "\n" not in repr(scan)


def test_layers_have_their_names(stored: sl.Scan) -> None:
    assert stored.layers == ["conv1", "conv2"]
    assert stored.vector_layers == ["fc:in", "conv2"]
    assert stored.layer("penultimate") == "fc:in"
    assert torch.equal(stored.vectors("fc:in"), stored.vectors("penultimate"))
    assert stored.find_vector_column("conv2") == "vector_1"
    with pytest.raises(sl.SightlineError, match=r"no vectors of layer in the store a\.scan named"):
        stored.vectors("conv1")
    assert stored.network["short"] == stored.short_side == 32
    assert stored.facts["collection"]["count"] == 44


def test_many_thumbnails_are_the_few(stored: sl.Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [40, 3, 17, 3]
    by_id = stored.thumbnail_bytes(ids)
    monkeypatch.setattr(reader, "MAX_ROWS_BY_ID", 3)
    assert stored.thumbnail_bytes(ids) == by_id
    assert by_id[1] == by_id[3] != by_id[0]


def test_without_classes_there_is_nothing_of_them(
    wide: sl.Model, photos: Path, tmp_path: Path
) -> None:
    scan = sl.scan(wide, photos / "odd", store=tmp_path / "a.scan", k=2)
    assert scan.classes is None
    assert scan.class_names == []
    for read in (scan.class_top, scan.class_means):
        with pytest.raises(sl.SightlineError, match=r"a\.scan knows no classes"):
            read("conv1")
    assert read_table(scan._repr_html_())["classes"] == "not known"


def test_a_layer_without_a_map_has_no_positions(
    wide: sl.Model, photos: Path, tmp_path: Path
) -> None:
    scan = sl.scan(wide, photos, store=tmp_path / "a.scan", layers=("logits", "conv2"))
    assert scan.top("logits").positions is None
    assert scan.sample("logits").positions is None
    assert scan.class_top("logits").positions is None
    with torch.no_grad():
        logits = wide.logits(torch.cat([scan.image(id) for id in range(scan.images)]))
    torch.testing.assert_close(scan.top("logits").values, logits.sort(0, descending=True)[0][:25])
    positions = scan.top("conv2").positions
    assert positions is not None
    assert positions[..., 0].max() < 8
    assert 8 <= positions[..., 1].max() < 10


def test_fewer_images_than_k(wide: sl.Model, photos: Path, tmp_path: Path) -> None:
    """Of a pass that was stopped early, a unit has as many entries as there are images."""
    scan = sl.scan(wide, photos, store=tmp_path / "a.scan", batch=3, k=20, callback=lambda _: True)
    assert scan.images == 2
    assert scan.top("conv1").values.shape == (2, 6)
    assert (scan.top("conv1").ids >= 0).all()
    assert scan.sample("conv1").values.shape == (2, 6)
    assert scan.sample("conv1").quantiles.shape == (11, 6)


def test_originals_that_changed(
    wide: sl.Model, tmp_path: Path, write_photos: Callable[..., Path]
) -> None:
    folder = write_photos(tmp_path / "photos", 8)
    scan = sl.scan(wide, folder, store=tmp_path / "a.scan")
    sl.write(smooth(side=24, seed=3), scan.paths[0])
    Path(scan.paths[1]).unlink()
    with pytest.raises(sl.SightlineError, match="has changed since the pass"):
        scan.image(0)
    with pytest.raises(sl.SightlineError, match="can't be read any more \\(No such file"):
        scan.image(1)


def test_another_network_is_refused(wide: sl.Model, tiny: sl.Model, stored: sl.Scan) -> None:
    stored.require(wide)
    with pytest.raises(sl.SightlineError, match="made with other weights of Sequential"):
        stored.require(tiny)


# ── responses ──


def test_responses_are_read_by_unit_and_by_image(
    stored: sl.Scan, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = stored.responses("conv2")
    assert whole.shape == (43, 10)
    monkeypatch.setattr(reader, "RESPONSE_BLOCK_IMAGES", 8)
    np.testing.assert_array_equal(stored.responses("conv2"), whole)
    np.testing.assert_array_equal(stored.responses("conv2", units=[7]), whole[:, [7]])
    # In the order that was asked for, twice if need be.
    units = [9, 0, 3, 0]
    images = [42, 7, 8, 0, 8]
    part = stored.responses("conv2", units=units, images=images)
    np.testing.assert_array_equal(part, whole[np.ix_(images, units)])
    np.testing.assert_array_equal(stored.responses("conv2", images=range(5, 20)), whole[5:20])
    assert stored.responses("conv2", units=[], images=[3]).shape == (1, 0)
    assert stored.responses("conv2", images=[]).shape == (0, 10)


def test_responses_by_blocks(stored: sl.Scan) -> None:
    whole = stored.responses("conv1")
    blocks = list(stored.iterate_responses("conv1", 8))
    assert [len(block) for block in blocks] == [8, 8, 8, 8, 8, 3]
    np.testing.assert_array_equal(np.concatenate(blocks), whole)
    [block] = stored.iterate_responses("conv1")
    np.testing.assert_array_equal(block, whole)


def test_what_responses_refuse(stored: sl.Scan) -> None:
    for options, message in (
        ({"units": [10]}, "unit is 10; it must lie between 0 and 9"),
        ({"units": [-1]}, "unit is -1; it must lie between 0 and 9"),
        ({"images": [0, 43]}, "id is 43; it must lie between 0 and 42"),
        ({"kind": "mean"}, "made without mean responses: scan again with --mean-responses"),
    ):
        with pytest.raises(sl.SightlineError, match=message):
            stored.responses("conv2", **options)  # type: ignore[arg-type]
    with pytest.raises(sl.SightlineError, match=r"no layer in the store a\.scan named 'conv3'"):
        stored.responses("conv3")
    with pytest.raises(sl.SightlineError, match=r"no layer in the store a\.scan named 'conv3'"):
        stored.iterate_responses("conv3")
    with pytest.raises(sl.SightlineError, match="images_per_block is 0; it must be at least 1"):
        stored.iterate_responses("conv2", 0)


def test_missing_rows_are_no_responses(wide: sl.Model, photos: Path, tmp_path: Path) -> None:
    scan = sl.scan(wide, photos, store=tmp_path / "a.scan", batch=8, k=5)
    open_table(scan.path, "images").delete("id = 7")
    assert scan.responses("conv2", images=[8]).shape == (1, 10)
    with pytest.raises(sl.SightlineError, match="is damaged: it lacks responses to the images 0"):
        scan.responses("conv2")
