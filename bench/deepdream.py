"""DeepDream by size: memory is bounded by the tile, cost is linear in pixels.

`python bench/deepdream.py`: the embedded network, relu4_2, one size, two steps; each run in a process of its own. Processor
seconds, and the peak memory beyond what the network, the libraries and a 64-pixel dream take.
"""

import resource
import subprocess
import sys
import time

import torch

import sightline as sl

WHOLE = 4096


def peak() -> float:
    """Largest memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(side: int, tile: int) -> None:
    """Prints processor seconds and extra memory of one dream."""
    model, image = sl.load(), torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    knobs = {"layer": "relu4_2", "octaves": 1, "tile": tile}
    sl.deepdream(model, image[..., :64, :64], steps=1, **knobs)
    before, began = peak(), time.process_time()
    sl.deepdream(model, image, steps=2, **knobs)
    print(time.process_time() - began, peak() - before)


def main() -> None:
    print(f"torch {torch.__version__}; processor seconds per megapixel (two steps), MB beyond the start")
    for side in (512, 1024, 2048, 4096):
        for tile in (512, WHOLE) if side <= 2048 else (512,):
            told = subprocess.run([sys.executable, __file__, str(side), str(tile)], check=True, capture_output=True, text=True).stdout
            seconds, memory = map(float, told.split())
            name = f"tiles of {tile} px" if tile < side else "in one piece"
            print(f"{side} px, {name}: {seconds / (side * side / 2**20):.1f} s, {memory:.0f} MB", flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        measure(int(sys.argv[1]), int(sys.argv[2]))
    else:
        main()
