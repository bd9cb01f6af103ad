"""The same work by two versions of the code, in turns.

`python bench/before_after.py CHECKOUT [--rounds N] [--only WORD ...]`: CHECKOUT is a folder with
the other version (`git worktree add CHECKOUT COMMIT`). Each piece of work has a process for each
version in each round, and a process repeats it for some seconds; processor time of one call, the
shortest of all, with one thread. The shortest of many repetitions is what a disturbed machine
changes least. Random weights and one image of 224 px; a scan of the images in
`$SIGHTLINE_DATA/imagenet_samples`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
NETWORKS = ("squeezenet1_0", "resnet18", "mobilenet_v2")
ATTRIBUTIONS = ("saliency", "gradcam", "smoothgrad", "guided", "occlusion")
WORK = (*(f"{network} {kind}" for network in NETWORKS for kind in ATTRIBUTIONS), "style", "scan")
SECONDS = 3  # for which a process repeats its work
SCANNED_IMAGES = 64


def prepare_work(name: str) -> Callable[[], object]:
    """The call that is timed."""
    import torch

    import sightline as sl

    torch.set_num_threads(1)
    if name == "scan":
        return prepare_scan()
    image = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    if name == "style":
        model = sl.load("squeezenet1_0", weights="random", device="cpu")
        painting = torch.rand(1, 3, 160, 192, generator=torch.Generator().manual_seed(1))
        photograph = image[..., :128, :144]
        return lambda: sl.style(model, photograph, styles=(painting,), steps=8)
    network, kind = name.split()
    model = sl.load(network, weights="random", device="cpu")
    calls: dict[str, Callable[[], object]] = {
        "saliency": lambda: sl.saliency(model, image, label=0),
        "gradcam": lambda: sl.cam(model, image, label=0, kind="gradcam"),
        "smoothgrad": lambda: sl.saliency(
            model, image, label=0, kind="smoothgrad", samples=16, batch=4
        ),
        "guided": lambda: sl.guided(model, image, layer="logits", unit=0),
        # The windows fit the image, so that every version has the same.
        "occlusion": lambda: sl.occlusion(model, image, label=0, window=32, stride=32, batch=8),
    }
    return calls[kind]


def prepare_scan() -> Callable[[], object]:
    """A scan of some photographs into a new store."""
    import sightline as sl

    data = Path(os.environ.get("SIGHTLINE_DATA", HERE.parent / "shared/data"))
    photographs = sorted((data / "imagenet_samples").iterdir())[:SCANNED_IMAGES]
    folder = Path(tempfile.mkdtemp())
    images = folder / "images"
    images.mkdir()
    for photograph in photographs:
        (images / photograph.name).symlink_to(photograph)
    model = sl.load("resnet18", weights="random", device="cpu")
    stores = iter(range(1000))
    return lambda: sl.scan(model, images, store=folder / f"{next(stores)}.scan", batch=16)


def time_work(name: str) -> float:
    """The shortest processor time of one call, in seconds."""
    run = prepare_work(name)
    run()
    times: list[float] = []
    end = time.monotonic() + SECONDS
    while len(times) < 3 or time.monotonic() < end:
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times)


def time_in_process(checkout: Path, name: str) -> float:
    """`time_work` by the code of a checkout."""
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--time", name]
    output = subprocess.check_output(command, env=environment, text=True)
    return float(json.loads(output.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkout", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=[""])
    parser.add_argument("--time", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.time:
        print(json.dumps(time_work(asked.time)))
        return
    print("| | before | after | after / before |\n|---|---|---|---|")
    for name in WORK:
        if not any(word in name for word in asked.only):
            continue
        before, after = float("inf"), float("inf")
        for _ in range(asked.rounds):
            before = min(before, time_in_process(asked.checkout.resolve(), name))
            after = min(after, time_in_process(HERE, name))
        print(f"| {name} | {before:.4f} | {after:.4f} | {after / before:.2f} |", flush=True)


if __name__ == "__main__":
    main()
