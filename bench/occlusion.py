"""Occlusion: incremental against captum's, and against the bound that the multiply-adds set.

`python bench/occlusion.py [--quick | --small] [NAME ...]`: random weights, one image of 224 px;
captum at the best of several numbers of images at once, tried on a part of the windows. The two
take turns, and each has its best of the rounds. The ratios are of processor time, which other work
on the machine disturbs less than the time by the clock, also shown.
"""

import argparse
import resource
import time
from collections.abc import Callable
from typing import Any

import torch
from captum.attr import Occlusion
from torch import Tensor

import sightline as sl
from sightline.models.tracing.incremental import score_occluded_windows
from sightline.models.tracing.windows import OcclusionWindows

SETTINGS = ((32, 16), (16, 8))  # window, stride
AT_ONCE = (1, 8, 16)
SIDE = 224


def seconds(run: Callable[[], Any]) -> tuple[float, float, Any]:
    """Processor time, time by the clock, and what the run gives."""
    processor, clock = time.process_time(), time.perf_counter()
    found = run()
    return time.process_time() - processor, time.perf_counter() - clock, found


def peer(model: sl.Model, image: Tensor, window: int, stride: int, at_once: int) -> Tensor:
    """captum's map; only the places where it has windows differ from ours, none for these sizes."""
    with torch.no_grad():
        return Occlusion(model.network).attribute(
            model.normalize(image).contiguous(),
            target=0,
            sliding_window_shapes=(3, window, window),
            strides=(3, stride, stride),
            baselines=model.normalize(torch.full_like(image[:, :, :1, :1], 0.5)).expand(
                -1, -1, SIDE, SIDE
            ),
            perturbations_per_eval=at_once,
        )


def best_at_once(model: sl.Model, image: Tensor) -> int:
    """How many images at once captum is fastest with, on 9 large windows."""
    times = {
        n: min(seconds(lambda n=n: peer(model, image, 96, 64, n))[0] for _ in range(2))
        for n in AT_ONCE
    }
    return min(times, key=lambda n: times[n])


def peak() -> float:
    """Most memory that this process has held, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def compare(name: str, window: int, stride: int, rounds: int) -> None:
    model = sl.load(name, weights="random", device="cpu")
    image = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    places = [
        (y, x)
        for y in range(0, SIDE - window + 1, stride)
        for x in range(0, SIDE - window + 1, stride)
    ]
    windows = OcclusionWindows(image, torch.full_like(image, 0.5), places, window)
    before, ours, theirs = peak(), list[tuple[float, float]](), list[tuple[float, float]]()
    found = score_occluded_windows(model, windows, torch.tensor([0]))
    own_peak = peak()
    at_once = best_at_once(model, image)
    for _ in range(rounds):
        ours.append(seconds(lambda: score_occluded_windows(model, windows, torch.tensor([0])))[:2])
        theirs.append(seconds(lambda: peer(model, image, window, stride, at_once))[:2])
    (own, own_clock), (other, other_clock) = min(ours), min(theirs)
    print(
        f"{name} {window}/{stride}, {len(places)} windows: sightline {own:.2f} s of processor "
        f"time ({own_clock:.2f} by the clock), "
        f"captum {other:.2f} ({other_clock:.2f}; {at_once} at once), {other / own:.2f} times as "
        f"long; multiply-adds {found.speedup_bound:.2f} times "
        f"fewer ({found.localized_share:.0%} of them localized), "
        f"{other / own / found.speedup_bound:.0%} of that reached; "
        f"peak {own_peak:.2f} GB ({before:.2f} before), {peak():.2f} GB with captum",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="only the larger windows, one round")
    parser.add_argument("--small", action="store_true", help="only the smaller windows, one round")
    parser.add_argument(
        "names", nargs="*", default=["vgg16", "resnet18", "squeezenet1_0", "googlenet"]
    )
    asked = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for window, stride in (
        SETTINGS[:1] if asked.quick else SETTINGS[1:] if asked.small else SETTINGS
    ):
        for name in asked.names:
            compare(name, window, stride, 1 if asked.quick or asked.small else 2)


if __name__ == "__main__":
    main()
