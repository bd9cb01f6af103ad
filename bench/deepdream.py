"""DeepDream by size: memory is bounded by the tile, cost is linear in pixels.

`python bench/deepdream.py [--rounds N]`: the embedded network, relu4_2, one size, two steps; each
run in a process of its own. Processor seconds, and the peak memory beyond what the network, the
libraries, the given image and a 64-pixel dream take: all of it, and without the result's own bytes,
which are the caller's.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

import sightline as sl

WHOLE = 4096
MEGA = 2**20


def anonymous() -> float:
    """Memory that this process alone must hold, in MB."""
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) / 1024


def watched(run: Callable[[], sl.Result]) -> tuple[sl.Result, float]:
    """What a run gives, and the largest memory meanwhile, asked for every 2 ms."""
    seen, over = [anonymous()], threading.Event()

    def watch() -> None:
        while not over.wait(0.002):
            seen.append(anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        return run(), max(seen)
    finally:
        over.set()
        watcher.join()


def measure(side: int, tile: int, octaves: int) -> None:
    """Prints processor seconds, extra memory (as the kernel's high-water mark and as sampled) and
    the result's own bytes of one dream.
    """
    model, image = (
        sl.load(),
        torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)),
    )
    knobs = {"layer": "relu4_2", "octaves": octaves, "tile": tile}
    sl.deepdream(model, image[..., :64, :64], steps=1, **{**knobs, "octaves": 1})
    before, mark, began = (
        anonymous(),
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        time.process_time(),
    )
    result, most = watched(lambda: sl.deepdream(model, image, steps=2, **knobs))
    seconds = time.process_time() - began
    marked = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - mark) / 1024
    own = (
        sum(tensor.nbytes for tensor in (*result.panels.values(), *result.tensors.values())) / MEGA
    )
    print(seconds, marked, most - before, own)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--octaves", type=int, default=1)
    asked = parser.parse_args()
    print(
        f"torch {torch.__version__}, medians of {asked.rounds}, {asked.octaves} sizes; processor "
        "seconds per megapixel (two steps), MB beyond the start"
    )
    for side in (512, 1024, 2048, 4096):
        for tile in (512, WHOLE) if side in {1024, 2048} else (512,):
            command = [sys.executable, __file__, "--one", str(side), str(tile), str(asked.octaves)]
            runs = [
                subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
                for _ in range(asked.rounds)
            ]
            seconds, marked, most, own = (
                statistics.median(map(float, column)) for column in zip(*runs, strict=True)
            )
            name = f"tiles of {tile} px" if tile < side else "in one piece"
            print(
                f"{side} px, {name}: {seconds / (side * side / MEGA):.1f} s; high-water mark "
                f"{marked:.0f} MB, anonymous {most:.0f} MB, "
                f"of it the result {own:.0f} MB, beyond it {most - own:.0f} MB",
                flush=True,
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        measure(*map(int, sys.argv[2:]))
    else:
        main()
