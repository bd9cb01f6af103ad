"""A scan against the bare pipeline, and how both grow with the number of images.

`python bench/scan.py [--rounds 2] [--images 1000] [--grow 1000 10000 100000]`: ResNet-18 with
random weights at 224 px, batches of 32, synthetic JPEGs of 500×375. The bare pipeline decodes,
resizes and runs the network in channels_last under inference_mode, decoding ahead in as many
threads, and keeps nothing. The scan keeps every unit's response to every image, and once more it
does not. They take turns; medians, and the median ratio of pairs, by the clock
and in processor time, which other work on the machine disturbs less. Growth is measured on a small
network at 64 px, so that the pass's own work counts, over JPEGs of 96×72 cut from the sample
photographs, each size in a process of its own; exponents are fitted by least squares to the
logarithms.
"""

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import sightline as sl
from sightline.data.scan.worker import PREFETCH_BATCHES
from sightline.images.decode.center_crop import CenterCrop, fit_center_crop, stack_crops
from sightline.images.io import pictures as images

SIDE, SHORT, BATCH = 224, 256, 32


def photographs(folder: Path, count: int, width: int, height: int) -> Path:
    """JPEG files of smooth noise, 500 different ones, the rest links to them under other names."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for number in range(min(count, 500)):
        coarse = generator.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(
            folder / f"{number:06}.jpg", quality=90
        )
    for number in range(500, count):
        (folder / f"{number:06}.jpg").hardlink_to(folder / f"{number % 500:06}.jpg")
    return folder


def crops(folder: Path, count: int) -> Path:
    """JPEG files of 96×72, each another part of a sample photograph."""
    folder.mkdir(parents=True, exist_ok=True)
    photos = [
        Image.fromarray(
            (images.sample(name)[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        )
        for name in images.samples()
    ]
    generator = np.random.default_rng(0)
    for number in range(count):
        photo = photos[number % len(photos)]
        left, top = (
            generator.integers(0, photo.width - 96),
            generator.integers(0, photo.height - 72),
        )
        photo.crop((left, top, left + 96, top + 72)).save(folder / f"{number:06}.jpg", quality=85)
    return folder


def view(path: Path) -> CenterCrop:
    return fit_center_crop(path.read_bytes(), SIDE, SHORT)


def decode(paths: list[Path]) -> None:
    """Reads, decodes and resizes all, alone."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(view, paths))


def bare(model: sl.Model, paths: list[Path]) -> None:
    """Decode, resize and forward with nothing kept; as many batches ahead as in the scan."""
    starts = iter(range(0, len(paths), BATCH))
    waiting: deque[list[Future[CenterCrop]]] = deque()
    with ThreadPoolExecutor(os.cpu_count()) as pool, torch.inference_mode():
        while True:
            while len(waiting) <= PREFETCH_BATCHES and (start := next(starts, None)) is not None:
                waiting.append([pool.submit(view, path) for path in paths[start : start + BATCH]])
            if not waiting:
                return
            model.network(
                model.normalize(stack_crops([future.result() for future in waiting.popleft()]))
            )


def full(model: sl.Model, folder: Path, store: Path, *, responses: bool) -> None:
    """A scan with everything on, store and compaction included."""
    sl.scan(model, folder, store=store, batch=BATCH, responses=responses)
    shutil.rmtree(store)


def count_bytes(model: sl.Model, folder: list[Path], store: Path, *, responses: bool) -> float:
    """Bytes of a store for each image."""
    scan = sl.scan(model, folder, store=store, batch=BATCH, responses=responses)
    stored = sum(file.stat().st_size for file in store.glob("images.lance/**/*") if file.is_file())
    shutil.rmtree(store)
    return stored / scan.images


def timed(work: Callable[[], None]) -> tuple[float, float]:
    """Seconds by the clock and of processor time."""
    began, worked = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - worked


def compare(root: Path, count: int, rounds: int) -> None:
    model = sl.load("resnet18", weights="random", device="cpu")
    folder = photographs(root / "photos", count, 500, 375)
    paths = sorted(folder.iterdir())
    works = (
        lambda: bare(model, paths),
        lambda: full(model, folder, root / "a.scan", responses=True),
        lambda: full(model, folder, root / "b.scan", responses=False),
        lambda: decode(paths),
    )
    bare(model, paths[:BATCH])
    sl.scan(model, paths[:BATCH], store=root / "warm.scan")
    rows = [[timed(work) for work in works] for _ in range(rounds)]
    print(f"resnet18 {SIDE} px, {count} images, {rounds} rounds")
    for clock, name in enumerate(("by the clock", "processor time")):
        plain, kept, lean, alone = (
            statistics.median(row[column][clock] for row in rows) for column in range(4)
        )
        ratios = [
            statistics.median(row[0][clock] / row[column][clock] for row in rows)
            for column in (1, 2)
        ]
        print(
            f"{name}: bare {count / plain:.1f} images/s, scan {count / kept:.1f} images/s, "
            f"{ratios[0]:.1%} of bare; without responses {count / lean:.1f} images/s, "
            f"{ratios[1]:.1%} of bare;",
            end=" ",
        )
        print(
            f"decode and resize alone {count / alone:.0f} images/s, {alone / plain:.1%} of the "
            "bare pipeline's time"
        )
    sizes = [
        count_bytes(model, paths[:100], root / "c.scan", responses=responses)
        for responses in (True, False)
    ]
    print(
        f"table of images, 100 images: {sizes[0] / 1e3:.2f} kB an image, without responses "
        f"{sizes[1] / 1e3:.2f}"
    )


CHILD = """
import sys, time
import sightline as sl
from torch import nn
layers = [nn.Conv2d(3, 32, 5, 4), nn.ReLU(), nn.Conv2d(32, 64, 3, 2), nn.ReLU()]
head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
model = sl.load(nn.Sequential(*layers, *head), size=64)
import lancedb
began, clock = time.process_time(), time.perf_counter()
sl.scan(model, sys.argv[1], store=sys.argv[2])
# getrusage would tell the parent's.
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(time.process_time() - began, time.perf_counter() - clock, int(peak) / 1e3)
"""


def grow(root: Path, sizes: list[int]) -> None:
    told: list[tuple[int, float, float]] = []
    for size in sizes:
        folder, store = crops(root / f"grow{size}", size), root / f"grow{size}.scan"
        done = subprocess.run(
            [sys.executable, "-c", CHILD, str(folder), str(store)],
            check=True,
            capture_output=True,
            text=True,
        )
        seconds, clock, memory = map(float, done.stdout.split())
        told.append((size, seconds, memory))
        stored = (
            sum(file.stat().st_size for file in store.rglob("*") if file.is_file()) / size / 1e3
        )
        print(
            f"{size} images: {seconds:.1f} s of processor time ({clock:.1f} s by the clock),",
            end=" ",
        )
        print(
            f"{size / seconds:.0f} images/s of it, peak {memory:.0f} MB, store {stored:.1f} kB an "
            "image",
            flush=True,
        )
        shutil.rmtree(folder)
        shutil.rmtree(store)
    if len(told) > 1:
        counts, seconds, memory = np.log(np.array(told)).T
        print(
            f"time grows as n^{np.polyfit(counts, seconds, 1)[0]:.2f}, memory as "
            f"n^{np.polyfit(counts, memory, 1)[0]:.3f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--only-grow", action="store_true")
    parser.add_argument("--grow", type=int, nargs="*", default=[1000, 10_000, 100_000])
    given = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as root:
        if not given.only_grow:
            compare(Path(root), given.images, given.rounds)
        grow(Path(root), given.grow)
    print(f"peak of this process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f} MB")


if __name__ == "__main__":
    main()
