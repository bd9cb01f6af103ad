"""Occlusion as someone meets it: the first call in a new process, against captum's.

`python bench/first_call.py [--windows WINDOW/STRIDE] [--rounds N] [--names NAME ...]`: random
weights, one image of 224 px, two threads. Each round starts a process for us and one for each of
captum's numbers of images at once; both have imported torch and made the network, and have run
nothing yet. Both libraries are compiled to bytecode, as an installed package is. Timed are the
import of the library with what it makes of the network, a first call and a second one. The best
round of each counts, by the clock, and captum's best number.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torchvision
from torch import nn

NETWORKS = (
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
AT_ONCE = (4, 8)
SIDE = 224


def make_run(library: str, network: nn.Module, window: int, stride: int) -> Callable[[], object]:
    """A call of one library, with everything before it done. `library` is "sightline" or a number
    of images at once for captum.
    """
    image = torch.rand(1, 3, SIDE, SIDE)
    if library == "sightline":
        import sightline as sl

        model = sl.load(network)
        return lambda: sl.occlusion(model, image, label="0", window=window, stride=stride)

    from captum.attr import Occlusion

    occlusion = Occlusion(network)
    return torch.no_grad()(
        lambda: occlusion.attribute(
            image,
            target=0,
            sliding_window_shapes=(3, window, window),
            strides=(3, stride, stride),
            baselines=0.5,
            perturbations_per_eval=int(library),
        )
    )


def time_calls(library: str, name: str, window: int, stride: int) -> list[float]:
    """Seconds by the clock: of everything to the end of the first call, of that call alone, and of
    the one after it.
    """
    torch.manual_seed(0)
    network = torchvision.models.get_model(name, weights=None).eval()
    moments = [time.perf_counter()]
    run = make_run(library, network, window, stride)
    moments.append(time.perf_counter())
    for _ in range(2):
        run()
        moments.append(time.perf_counter())
    started, ready, first_done, second_done = moments
    return [first_done - started, first_done - ready, second_done - first_done]


def time_in_new_process(library: str, name: str, setting: str) -> list[float]:
    """`time_calls` in a process of its own."""
    command = [sys.executable, __file__, "--one", library, "--names", name, "--windows", setting]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": ""}
    finished = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return [float(word) for word in finished.stdout.split()]


def compare(name: str, setting: str, rounds: int) -> None:
    """Prints a network's times, the best of the rounds."""
    own: list[list[float]] = []
    theirs: list[list[float]] = []
    for _ in range(rounds):
        own.append(time_in_new_process("sightline", name, setting))
        theirs += [time_in_new_process(str(count), name, setting) for count in AT_ONCE]
    parts: list[str] = []
    for number, title in enumerate(("first call with import", "first call", "second")):
        own_time = min(times[number] for times in own)
        their_time = min(times[number] for times in theirs)
        ratio = their_time / own_time
        parts.append(f"{title} {own_time:.2f} s, captum {their_time:.2f}, {ratio:.2f} times")
    print(f"{name} {setting}: {'; '.join(parts)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--windows", default="32/16", help="WINDOW/STRIDE in pixels")
    parser.add_argument("--rounds", type=int, default=2)
    known = torchvision.models.list_models()
    parser.add_argument("--names", nargs="+", default=NETWORKS, choices=known, metavar="NAME")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    window, stride = map(int, arguments.windows.split("/"))
    if arguments.one:
        print(*time_calls(arguments.one, arguments.names[0], window, stride))
        return
    for name in arguments.names:
        compare(name, arguments.windows, arguments.rounds)


if __name__ == "__main__":
    main()
