"""Facts of all units of a network: time and memory, and against the same by numpy alone.

`python bench/units.py [--images 10000] [--units 4800]`: a store with random responses of 20 layers
(half of each unit's variance is of 64 shared directions), written as a scan writes it; then the
facts of each layer, in a process of its own, as `sightline units` computes them. The correlations
of one layer are compared with `numpy.corrcoef` of all responses in double precision.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import sightline as sl
from sightline.data.scan.unit_statistics import UnitStatistics
from sightline.data.store.description import (
    DatasetDescription,
    LayerDescription,
    NetworkDescription,
    ScanDescription,
)
from sightline.data.store.interface import ImageRow, ScanProgress
from sightline.data.store.lance_store import LanceStore
from sightline.data.units.facts import read_unit_facts

LAYERS, CLASSES, DIRECTIONS, CHUNK = 20, 10, 64, 2000


def describe(images: int, units: int) -> ScanDescription:
    """A scan of so many images that follows so many units in layers of growing size."""
    shares = np.arange(1, LAYERS + 1)
    ends = (units * shares.cumsum() / shares.sum()).round().astype(int)
    sizes = np.diff(ends, prepend=0).tolist()
    return ScanDescription(
        recipe={"model": "random"},
        network=NetworkDescription("0" * 64, (0.5,), (0.5,), side=32, short_side=32),
        model_labels=("a", "b"),
        aliases={},
        layers={f"layer{n}": LayerDescription(size, (7, 7)) for n, size in enumerate(sizes)},
        vector_lengths={},
        k=25,
        class_k=5,
        sample_size=256,
        batch_size=32,
        dataset=DatasetDescription("Files", None, images, "0" * 64),
        class_names=tuple(f"class {number}" for number in range(CLASSES)),
        response_kinds=("max",),
    )


def write_store(path: Path, images: int, units: int) -> None:
    """A complete store with random responses, a chunk of images at a time."""
    generator = np.random.default_rng(0)
    mixing = generator.standard_normal((DIRECTIONS, units)).astype(np.float32) / DIRECTIONS**0.5
    description = describe(images, units)
    with LanceStore(path).open_writer(description) as writer:
        for start in range(0, images, CHUNK):
            count = min(CHUNK, images - start)
            shared = generator.standard_normal((count, DIRECTIONS)).astype(np.float32)
            noise = generator.standard_normal((count, units)).astype(np.float32)
            responses = (shared @ mixing + noise + 1).astype(np.float16)
            rows = [
                ImageRow(
                    id=start + row,
                    position=start + row,
                    path=f"{start + row}.jpg",
                    sha256="",
                    label=(start + row) % CLASSES,
                    height=1,
                    width=1,
                    best_labels=np.array([0, 1]),
                    best_probabilities=np.array([0.5, 0.5], np.float32),
                    thumbnail=b"",
                    vectors=(),
                    responses=(responses[row],),
                )
                for row in range(count)
            ]
            writer.add_rows(rows, [])
        statistics = UnitStatistics.from_description(description)
        writer.commit(statistics.name_tensors(), ScanProgress(images, images, 0, complete=True))
        writer.compact()


CHILD = """
import sys, time
import sightline as sl
from sightline.data.units.facts import read_unit_facts
scan = sl.Scan.open(sys.argv[1])
def read_memory(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith(name))
before = read_memory("VmRSS")
began, worked = time.perf_counter(), time.process_time()
for layer in scan.layers:
    read_unit_facts(scan, layer)
print(time.perf_counter() - began, time.process_time() - worked, before, read_memory("VmHWM"))
began = time.perf_counter()
for layer in scan.layers:
    read_unit_facts(scan, layer)
print(time.perf_counter() - began)
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--units", type=int, default=4_800)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        store = Path(root) / "a.scan"
        began = time.perf_counter()
        write_store(store, options.images, options.units)
        size = sum(file.stat().st_size for file in store.rglob("*") if file.is_file())
        print(
            f"{options.images} images × {options.units} units written in "
            f"{time.perf_counter() - began:.1f} s, {size / options.images / 1e3:.2f} kB an image"
        )
        done = subprocess.run(
            [sys.executable, "-c", CHILD, str(store)], check=True, capture_output=True, text=True
        )
        clock, seconds, before, peak, again = map(float, done.stdout.split())
        print(
            f"facts of {LAYERS} layers: {clock:.1f} s by the clock, {seconds:.1f} s of processor "
            f"time, peak {peak:.0f} MB ({before:.0f} before); read again {again:.2f} s"
        )
        kept = sum(file.stat().st_size for file in store.glob("units/*"))
        print(f"kept: {kept / options.units:.0f} bytes a unit")
        compare(sl.Scan.open(store))


def compare(scan: sl.Scan) -> None:
    """The largest difference of a layer's correlations from those of numpy in double precision."""
    layer = scan.layers[3]
    own = scan.description.unit_slices[layer]
    began = time.perf_counter()
    everything = np.concatenate(
        [scan.responses(name).astype(np.float64) for name in scan.layers], 1
    )
    expected = np.corrcoef(everything.T)[own]
    seconds = time.perf_counter() - began
    starts = [units.start for units in scan.description.unit_slices.values()]
    facts = read_unit_facts(scan, layer)
    columns = np.array(starts)[facts.neighbor_layers] + facts.neighbor_units
    rows = np.arange(len(expected))[:, None]
    difference = np.abs(expected[rows, columns] - facts.neighbor_correlations).max()
    print(f"numpy in double precision {seconds:.1f} s; largest difference {difference:.1e}")


if __name__ == "__main__":
    main()
