"""The store in memory gives what the store on disk gives: one interface, two stores."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import sightline as sl
from sightline.data.scan import run
from sightline.data.store.interface import ScanProgress, ScanStore
from sightline.data.store.lance_store import LanceStore
from sightline.data.store.maintenance import compact_store, summarize_store, verify_store
from sightline.data.store.memory import MemoryStore

OPTIONS: dict[str, Any] = {"batch": 8, "k": 5, "vectors": ("penultimate", "conv2")}


def describe_scan_fully(scan: sl.Scan) -> dict[str, Any]:
    """Everything that a `Scan` gives, by name; tensors as they are."""
    ids = [3, 0, scan.images - 1, 3]
    content: dict[str, Any] = {
        name: getattr(scan, name)
        for name in (
            "images",
            "done",
            "complete",
            "layers",
            "vector_layers",
            "class_names",
            "model_labels",
            "recipe",
            "network",
            "facts",
            "description",
            "size",
            "short_side",
            "paths",
            "errors",
            "sizes",
            "classes",
            "top5",
            "has_responses",
        )
    }
    content["image"] = scan.image(2)
    content["thumbnail"] = scan.thumbnail(2)
    content["thumbnails"] = scan.thumbnails(ids)
    content["thumbnail_bytes"] = scan.thumbnail_bytes(ids)
    content["rows"] = scan.read_rows(ids, ["sha256", "position", "class", "labels"])
    for layer in scan.vector_layers:
        content[f"vectors {layer}"] = scan.vectors(layer)
    for layer in scan.layers:
        content[f"top {layer}"] = tuple(scan.top(layer))
        content[f"sample {layer}"] = tuple(scan.sample(layer))
        content[f"class_top {layer}"] = tuple(scan.class_top(layer))
        content[f"class_means {layer}"] = scan.class_means(layer)
        content[f"responses {layer}"] = torch.from_numpy(scan.responses(layer))
        blocks = [torch.from_numpy(block) for block in scan.iterate_responses(layer, 6)]
        content[f"blocks {layer}"] = tuple(blocks)
    for name in ("id", "position", "sha256", "height", "probabilities", "vector_1"):
        content[f"column {name}"] = scan.read_column(name).to_pylist()
    names = [name for name in dir(scan) if not name.startswith("_")]
    assert len(names) > 30, "a new attribute of Scan belongs into this list"
    return content


def assert_same(value: object, expected: object, name: str) -> None:
    """Asserts equality to the last bit, in tuples of tensors too."""
    if isinstance(expected, torch.Tensor):
        # The mean response to a class of which there is no image yet is NaN.
        torch.testing.assert_close(value, expected, rtol=0, atol=0, equal_nan=True, msg=name)
    elif isinstance(expected, tuple):
        assert isinstance(value, Sequence), name
        for item, expected_item in zip(value, expected, strict=True):
            assert_same(item, expected_item, name)
    else:
        assert value == expected, name


def assert_same_scans(scan: sl.Scan, expected: sl.Scan) -> None:
    """Asserts that two scans give the same."""
    content = describe_scan_fully(scan)
    expected_content = describe_scan_fully(expected)
    assert content.keys() == expected_content.keys()
    for name, value in content.items():
        assert_same(value, expected_content[name], name)


@pytest.mark.parametrize("network", ["tiny", "wide"])
def test_both_stores_give_the_same(
    network: str, photos: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model: sl.Model = request.getfixturevalue(network)
    stores: list[ScanStore] = [MemoryStore(), LanceStore(tmp_path / "a.scan")]
    memory, disk = [sl.scan(model, photos, store=store, **OPTIONS) for store in stores]
    assert memory.images == 43
    assert_same_scans(memory, disk)
    memory_summary, disk_summary = [summarize_store(store) for store in stores]
    assert memory_summary.pop("bytes") > 0
    assert disk_summary.pop("bytes") > 0
    assert memory_summary == disk_summary
    assert [verify_store(store) for store in stores] == [[], []]
    for ids in (range(5, 9), range(40, 43), range(40, 99), range(7, 7)):
        memory_rows, disk_rows = [
            scan.reader.read_images(["id", "path", "vector_0"], ids) for scan in (memory, disk)
        ]
        assert memory_rows.equals(disk_rows.sort_by("id"))


def test_a_stopped_scan_continues_in_both(wide: sl.Model, photos: Path, tmp_path: Path) -> None:
    stores: list[ScanStore] = [MemoryStore(), LanceStore(tmp_path / "a.scan")]
    for store in stores:
        sl.scan(wide, photos, store=store, callback=lambda event: event.done >= 16, **OPTIONS)
    memory, disk = [sl.Scan.open(store) for store in stores]
    assert (memory.images, memory.complete) == (15, False)
    assert_same_scans(memory, disk)

    continued = [sl.scan(wide, photos, store=store, **{**OPTIONS, "batch": 3}) for store in stores]
    assert_same_scans(*continued)
    assert memory.images == 15  # a reader does not see later commits
    assert memory.top("conv1").ids.max() < 15
    uninterrupted = sl.scan(wide, photos, store=MemoryStore(), **OPTIONS)
    assert_same_scans(continued[0], uninterrupted)
    compact_store(stores[0])
    assert_same_scans(sl.Scan.open(stores[0]), uninterrupted)


def test_a_reader_is_not_changed_by_the_pass(
    wide: sl.Model, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pass changes its tensors in place, between commits and after them."""
    monkeypatch.setattr(run, "MIN_COMMIT_SECONDS", 0.0)
    monkeypatch.setattr(run, "MAX_COMMIT_SHARE", 1e9)
    store = MemoryStore()
    opened: list[tuple[sl.Scan, torch.Tensor]] = []

    def open_scan(event: run.Passing) -> None:
        if event.done == 24:
            scan = sl.Scan.open(store)
            opened.append((scan, scan.top("conv1").values.clone()))

    scan = sl.scan(wide, photos, store=store, callback=open_scan, **OPTIONS)
    [(early_scan, early_values)] = opened
    assert early_scan.images == 15
    assert torch.equal(early_scan.top("conv1").values, early_values)
    assert not torch.equal(scan.top("conv1").values, early_values)


def test_methods_read_it(wide: sl.Model, photos: Path) -> None:
    scan = sl.scan(wide, photos, store=MemoryStore(), **OPTIONS)
    # The store's network was built in code, so a method that runs it needs the Model.
    neighbors = sl.neighbors(scan, id=7, k=3)
    vectors = torch.nn.functional.normalize(scan.vectors().double())
    similarities = vectors @ vectors[7]
    similarities[7] = -2
    assert neighbors.values["ids"][0].tolist() == similarities.topk(3).indices.tolist()


def test_refusals(wide: sl.Model, tiny: sl.Model, photos: Path) -> None:
    store = MemoryStore("mine")
    with pytest.raises(sl.SightlineError, match="mine is no store yet: scan into it first"):
        sl.Scan.open(store)
    scan = sl.scan(wide, photos, store=store, **OPTIONS)
    with pytest.raises(sl.SightlineError, match="the store mine was made with another k"):
        sl.scan(wide, photos, store=store, **{**OPTIONS, "k": 6})
    with pytest.raises(sl.SightlineError, match="the store mine was made with other weights"):
        sl.scan(tiny, photos, store=store, **OPTIONS)
    with store.open_writer(scan.description) as writer:
        with (
            pytest.raises(sl.SightlineError, match="mine is being written by this thread already"),
            store.open_writer(scan.description),
        ):
            pass
        with pytest.raises(sl.SightlineError, match="a cluster can't write into a store in memory"):
            writer.make_fragment_writer()
        with pytest.raises(sl.SightlineError, match="a cluster can't write into a store in memory"):
            writer.add_rows([], [], ["fragment"])


def test_rows_without_a_commit_are_not_seen(wide: sl.Model, photos: Path) -> None:
    store = MemoryStore()

    def interrupt(event: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sl.scan(wide, photos, store=store, callback=interrupt, **OPTIONS)
    assert store.open_reader().progress == ScanProgress()
    assert_same_scans(
        sl.scan(wide, photos, store=store, **OPTIONS),
        sl.scan(wide, photos, store=MemoryStore(), **OPTIONS),
    )
