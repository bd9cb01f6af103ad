"""Occlusion: incremental against captum's, and against the bound that the multiply-adds set.

`python bench/occlusion.py [--windows WINDOW/STRIDE ...] [--threads N ...] [--rounds N]
[--names NAME ...]`: random weights, one image of 224 px; captum at the best of several numbers of
images at once, tried on a part of the windows. The two take turns, and each has its best of the
rounds. With one thread the ratios are of processor time, which other work on the machine disturbs
less than the time by the clock; with more they are by the clock.
"""

import argparse
import resource
import time
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from captum.attr import Occlusion
from torch import Tensor, nn

import sightline as sl
from sightline.models.tracing.incremental import score_occluded_windows
from sightline.models.tracing.windows import OcclusionWindows

SETTINGS = ("32/16", "16/8")  # window/stride
AT_ONCE = (1, 2, 4, 8, 16, 32)
SIDE = 224
NETWORKS = (
    "vgg16",
    "resnet18",
    "squeezenet1_0",
    "googlenet",
    "resnet50",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "densenet121",
    "efficientnet_b0",
    "convnext_tiny",
    "regnet_y_400mf",
    "vit_b_16",
    "swin_t",
)


def seconds(run: Callable[[], Any]) -> tuple[float, float, Any]:
    """Processor time, time by the clock, and what the run gives."""
    processor, clock = time.process_time(), time.perf_counter()
    found = run()
    return time.process_time() - processor, time.perf_counter() - clock, found


def make_plain_network(name: str, model: sl.Model) -> nn.Module:
    """torchvision's network as its user has it, with the same weights."""
    options = {"init_weights": False} if name == "googlenet" else {}
    network = torchvision.models.get_model(name, weights=None, **options)
    network.load_state_dict(model.network.state_dict(), strict=False)
    return network.eval()


def peer(
    network: nn.Module, model: sl.Model, image: Tensor, setting: tuple[int, int], at_once: int
) -> Tensor:
    """captum's map; only the places where it has windows differ from ours, none for these sizes."""
    window, stride = setting
    with torch.no_grad():
        return Occlusion(network).attribute(
            model.normalize(image).contiguous(),
            target=0,
            sliding_window_shapes=(3, window, window),
            strides=(3, stride, stride),
            baselines=model.normalize(torch.full_like(image[:, :, :1, :1], 0.5)).expand(
                -1, -1, SIDE, SIDE
            ),
            perturbations_per_eval=at_once,
        )


def pick_time(times: tuple[float, ...]) -> float:
    """Which of processor time and time by the clock counts."""
    return times[0] if torch.get_num_threads() == 1 else times[1]


def best_at_once(network: nn.Module, model: sl.Model, image: Tensor) -> int:
    """How many images at once captum is fastest with, on 36 large windows."""
    times: dict[int, float] = {}
    for n in AT_ONCE:
        runs = [seconds(lambda n=n: peer(network, model, image, (64, 32), n)) for _ in range(2)]
        times[n] = min(pick_time(run[:2]) for run in runs)
    return min(times, key=lambda n: times[n])


def peak() -> float:
    """Most memory that this process has held, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def choose_first(_: torch.Tensor) -> torch.Tensor:
    """The first label."""
    return torch.tensor([0])


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
    found = score_occluded_windows(model, windows, choose_first)
    own_peak = peak()
    network = make_plain_network(name, model)
    at_once = best_at_once(network, model, image)
    for _ in range(rounds):
        ours.append(seconds(lambda: score_occluded_windows(model, windows, choose_first))[:2])
        theirs.append(seconds(lambda: peer(network, model, image, (window, stride), at_once))[:2])
    own_times, other_times = min(ours, key=pick_time), min(theirs, key=pick_time)
    (own, own_clock), (other, other_clock) = own_times, other_times
    ratio = pick_time(other_times) / pick_time(own_times)
    fallback = f"{found.fallback}; " if found.fallback else ""
    print(
        f"{name} {window}/{stride}, {len(places)} windows: sightline {own:.2f} s of processor "
        f"time ({own_clock:.2f} by the clock), "
        f"captum {other:.2f} ({other_clock:.2f}; {at_once} at once), {ratio:.2f} times as "
        f"long; multiply-adds {found.speedup_bound:.2f} times "
        f"fewer ({found.localized_share:.0%} of them localized), "
        f"{ratio / found.speedup_bound:.0%} of that reached; {fallback}"
        f"peak {own_peak:.2f} GB ({before:.2f} before), {peak():.2f} GB with captum",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--windows", nargs="+", default=SETTINGS, help="WINDOW/STRIDE in pixels")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=2)
    known = torchvision.models.list_models()
    parser.add_argument("--names", nargs="+", default=NETWORKS, choices=known, metavar="NAME")
    asked = parser.parse_args()
    for threads in asked.threads:
        torch.set_num_threads(threads)
        print(f"torch {torch.__version__}, {threads} threads")
        for setting in asked.windows:
            window, stride = (int(number) for number in setting.split("/"))
            for name in asked.names:
                compare(name, window, stride, asked.rounds)


if __name__ == "__main__":
    main()
