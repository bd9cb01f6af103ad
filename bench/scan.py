"""A scan against the bare pipeline, and how both grow with the number of images.

`python bench/scan.py [--rounds 5] [--images 128] [--grow 1000 10000]`: ResNet-18 with random weights at 224 px, batches of
32, synthetic JPEGs of 500×375. The bare pipeline decodes, resizes and runs the network in channels_last under
inference_mode, decoding ahead in as many threads, and keeps nothing. They take turns; medians and the ratio of each pair.
Growth is measured on a small network at 64 px, so that the pass's own work counts, each size in a process of its own.
"""

import argparse
import math
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import sightline as sl
from sightline.fitted import fitted, stacked

SIDE, SHORT, BATCH = 224, 256, 32


def photographs(folder: Path, count: int, width: int, height: int) -> Path:
    """JPEG files of smooth noise, 500 different ones, the rest links to them under other names."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for number in range(min(count, 500)):
        coarse = generator.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{number:06}.jpg", quality=90)
    for number in range(500, count):
        (folder / f"{number:06}.jpg").hardlink_to(folder / f"{number % 500:06}.jpg")
    return folder


def view(path: Path) -> object:
    return fitted(path.read_bytes(), SIDE, SHORT)


def decode(paths: list[Path]) -> float:
    """Seconds to read, decode and resize all, alone."""
    began = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(view, paths))
    return time.perf_counter() - began


def bare(model: sl.Model, paths: list[Path]) -> float:
    """Seconds of decode, resize and forward with nothing kept."""
    began = time.perf_counter()
    with ThreadPoolExecutor(2) as pool, torch.inference_mode():
        waiting = [[pool.submit(view, path) for path in paths[start : start + BATCH]] for start in range(0, len(paths), BATCH)]
        for batch in waiting:
            model.body(model.normalize(stacked([future.result() for future in batch])))  # type: ignore[misc]
    return time.perf_counter() - began


def full(model: sl.Model, folder: Path, store: Path) -> float:
    """Seconds of a scan with everything on, store and compaction included."""
    shutil.rmtree(store, ignore_errors=True)
    began = time.perf_counter()
    sl.scan(model, folder, store=store, batch=BATCH)
    return time.perf_counter() - began


def compare(root: Path, images: int, rounds: int) -> None:
    model = sl.load("resnet18", weights="random", device="cpu")
    folder = photographs(root / "photos", images, 500, 375)
    paths = sorted(folder.iterdir())
    bare(model, paths[:BATCH]), full(model, folder, root / "warm.scan")
    rows = [(bare(model, paths), full(model, folder, root / "a.scan"), decode(paths)) for _ in range(rounds)]
    plain, kept, alone = (statistics.median(column) for column in zip(*rows, strict=True))
    ratio = statistics.median(row[0] / row[1] for row in rows)
    print(
        f"resnet18 {SIDE} px, {images} images: bare {images / plain:.1f} images/s, scan {images / kept:.1f} images/s, {ratio:.0%} of bare"
    )
    print(f"decode and resize alone {images / alone:.0f} images/s, {alone / plain:.0%} of the bare pipeline's time")


CHILD = """
import resource, sys, time
import sightline as sl
from torch import nn
model = sl.load(nn.Sequential(nn.Conv2d(3, 32, 5, 4), nn.ReLU(), nn.Conv2d(32, 64, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)), size=64)
began = time.perf_counter()
sl.scan(model, sys.argv[1], store=sys.argv[2])
print(time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)
"""


def grow(root: Path, sizes: list[int]) -> None:
    told: list[tuple[int, float, float]] = []
    for size in sizes:
        folder = photographs(root / f"grow{size}", size, 96, 72)
        command = [sys.executable, "-c", CHILD, str(folder), str(root / f"grow{size}.scan")]
        seconds, memory = map(float, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
        told.append((size, seconds, memory))
        stored = sum(file.stat().st_size for file in (root / f"grow{size}.scan").rglob("*") if file.is_file())
        print(
            f"{size} images: {seconds:.1f} s, {size / seconds:.0f} images/s, peak {memory:.0f} MB, store {stored / size / 1e3:.1f} kB an image"
        )
    if len(told) > 1:
        first, last = told[0], told[-1]
        exponent = math.log(last[1] / first[1]) / math.log(last[0] / first[0])
        print(f"time grows as n^{exponent:.2f}; memory from {first[2]:.0f} to {last[2]:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--grow", type=int, nargs="*", default=[1000, 10_000])
    given = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as root:
        compare(Path(root), given.images, given.rounds)
        grow(Path(root), given.grow)
    print(f"peak of this process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f} MB")


if __name__ == "__main__":
    main()
