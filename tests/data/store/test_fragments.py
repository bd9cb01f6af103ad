"""Fragments that a cluster's workers write and the driver commits, without a cluster."""

import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import sightline as sl
from sightline.data.datasets.open import open_dataset
from sightline.data.scan.run import describe_scan
from sightline.data.scan.unit_statistics import UnitStatistics
from sightline.data.scan.worker import ScanWorker
from sightline.data.store.fragments import append_fragments, write_image_fragments
from sightline.data.store.lance_reader import IMAGES_TABLE, open_table
from sightline.data.store.lance_store import LanceStore

BATCH_SIZE = 4
PHOTO_COUNT = 44
CHUNK = 3 * BATCH_SIZE


def write_chunks(model: sl.Model, folder: Path, store: Path) -> list[str]:
    """A new store, and the fragments that workers write beside it."""
    dataset = open_dataset(folder)
    description = describe_scan(
        model, dataset, None, ("penultimate",), 5, size=model.image_size, batch_size=BATCH_SIZE
    )
    description = replace(description, response_kinds=("max",))
    with LanceStore(store).open_writer(description) as writer:
        # As a cluster's processes get it.
        fragment_writer = pickle.loads(pickle.dumps(writer.make_fragment_writer()))
    fragments: list[str] = []
    for start in range(0, PHOTO_COUNT, CHUNK):
        statistics = UnitStatistics.from_description(description)
        worker = ScanWorker(model, dataset, description, statistics)
        segments = list(worker.scan_range(start, min(start + CHUNK, PHOTO_COUNT), 0))
        rows = [row for segment in segments for row in segment.image_rows]
        fragments += fragment_writer.write_rows(rows)
    return fragments


def test_fragments_are_numbered_and_committed_once(
    wide: sl.Model, photos: Path, tmp_path: Path
) -> None:
    store = tmp_path / "a.scan"
    fragments = write_chunks(wide, photos, store)
    assert open_table(store, IMAGES_TABLE).count_rows() == 0
    version_before = open_table(store, IMAGES_TABLE).version
    assert append_fragments(store, fragments, 0) == PHOTO_COUNT - 1
    images = open_table(store, IMAGES_TABLE)
    assert images.version == version_before + 1

    local = sl.scan(wide, photos, store=tmp_path / "b.scan", batch=BATCH_SIZE, k=5)
    assert images.to_arrow().equals(open_table(local.path, IMAGES_TABLE).to_arrow())

    lost = write_image_fragments(store, images.to_arrow())
    shutil.rmtree(store / "images.lance" / "data")
    with pytest.raises(
        sl.SightlineError, match="the store must lie on a file system that all nodes share"
    ):
        append_fragments(store, lost, PHOTO_COUNT)
