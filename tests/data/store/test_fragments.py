"""What the workers of a cluster write and tell, without a cluster."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from helpers import COUNT, folder_of
from safetensors.torch import load

import sightline as sl
from sightline.data.datasets.open import open_dataset
from sightline.data.scan import ray as cluster
from sightline.data.scan import run as stream
from sightline.data.scan.topk import UnitStatistics
from sightline.data.scan.worker import ScanWorker
from sightline.data.store import schema as layout
from sightline.data.store import writer as writing
from sightline.data.store.fragments import append_fragments, write_image_fragments
from sightline.data.store.reader import open_store_table

BATCH = 4


def branches(
    tiny: sl.Model, folder: Path, store: Path, step: int
) -> tuple[dict[str, object], list[object]]:
    """A new store, and what workers tell of its stretches."""
    found = open_dataset(folder)
    facts = stream.make_scan_facts(
        tiny, found, None, ("penultimate",), 5, side=tiny.size, batch=BATCH
    )
    with writing.open_store_writer(store, facts):
        pass
    worker = cluster.RayScanWorker([])
    worker.context = (tiny, found, {**facts, "store": str(store)})
    bounds = [(first, min(first + step, COUNT)) for first in range(0, COUNT, step)]
    return facts, [worker(pa.table({"first": [first], "end": [end]})) for first, end in bounds]


def test_a_tree_of_parts_equals_one_pass(tiny: sl.Model, tmp_path: Path) -> None:
    facts, told = branches(tiny, folder_of(tmp_path / "photos"), tmp_path / "a.scan", 2 * BATCH)
    whole = UnitStatistics.from_facts(facts)
    list(ScanWorker(tiny, open_dataset(tmp_path / "photos"), facts, whole).scan_range(0, COUNT, 0))
    pairs = [
        cluster.merge_branches(pa.concat_tables(told[i : i + 2]), facts)
        for i in range(0, len(told), 2)
    ]
    root = cluster.merge_branches(pa.concat_tables(pairs), facts)
    one = json.loads(root["told"][0].as_py())
    assert (one["first"], one["end"], one["count"], len(one["errors"]), len(one["fragments"])) == (
        0,
        COUNT,
        COUNT - 1,
        1,
        len(told),
    )
    joined = UnitStatistics.from_facts(facts)
    joined.merge_partial(load(root["units"][0].as_py()), 0)
    for field, wanted in whole.name_tensors().items():
        if not field.startswith("sample."):
            torch.testing.assert_close(joined.name_tensors()[field], wanted, rtol=1e-12, atol=0)
    order, other = (tally.sample.positions.argsort() for tally in (joined, whole))
    for got, wanted in zip(joined.sample, whole.sample, strict=True):
        assert torch.equal(got[order], wanted[other])
    with pytest.raises(sl.SightlineError, match="gave position 16 where 8 was due"):
        cluster.merge_branches(pa.concat_tables([told[0], told[2]]), facts)


def test_fragments_are_numbered_and_committed_once(tiny: sl.Model, tmp_path: Path) -> None:
    store = tmp_path / "a.scan"
    _, told = branches(tiny, folder_of(tmp_path / "photos"), store, 3 * BATCH)
    found = [name for part in told for name in json.loads(part["told"][0].as_py())["fragments"]]
    assert open_store_table(store, layout.IMAGES_TABLE).count_rows() == 0
    before = open_store_table(store, layout.IMAGES_TABLE).version
    assert append_fragments(store, found, 0) == COUNT - 1
    images = open_store_table(store, layout.IMAGES_TABLE)
    assert images.version == before + 1
    here = sl.scan(tiny, tmp_path / "photos", store=tmp_path / "b.scan", batch=BATCH, k=5)
    assert images.to_arrow().equals(open_store_table(here.path, layout.IMAGES_TABLE).to_arrow())
    lost = write_image_fragments(store, images.to_arrow())
    shutil.rmtree(store / "images.lance" / "data")
    with pytest.raises(
        sl.SightlineError, match="the store must lie on a file system that all nodes share"
    ):
        append_fragments(store, lost, COUNT)
