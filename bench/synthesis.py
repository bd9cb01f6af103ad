"""One step of gradient ascent: against the bare truncated forward and backward pass of the same batch, and against lucent's step.

`python bench/synthesis.py [ROUNDS]`: GoogLeNet with random weights, 8 units, 224 px; interleaved, medians, processor time. lucent runs as a
user gets it: one image, its own transforms and resize, the whole network.
"""

import statistics
import sys
import time
import warnings
from collections.abc import Callable

import torch
from lucent.optvis import objectives, render
from torchvision.models import googlenet

import sightline as sl
from sightline.ascend import ascend
from sightline.optimizers import Adam
from sightline.parameterize import Fourier
from sightline.transform import wobble

LAYERS = ("inception3a", "inception4c", "inception5b")
UNITS, SIDE = 8, 224


def seconds(run: Callable[[], object]) -> float:
    begun = time.process_time()
    run()
    return time.process_time() - begun


def main() -> None:
    warnings.simplefilter("ignore")
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    torch.manual_seed(0)
    network = googlenet(weights=None, init_weights=False, aux_logits=False).eval()
    model = sl.load(network, size=SIDE)
    for layer in LAYERS:
        aim = sl.channel(layer, tuple(range(UNITS)))
        score = aim.bind(model)

        def bare(aim_of: object = score, name: str = layer) -> None:
            leaf = torch.rand(UNITS, 3, SIDE, SIDE).requires_grad_()
            torch.autograd.grad(aim_of(leaf, model.run(leaf, [name])).sum(), leaf)  # type: ignore[operator]

        def ours(steps: int, objective: sl.Objective = aim) -> None:
            warp = wobble(18, 0.2, 10, torch.Generator().manual_seed(0), alike=True)
            ascend(model, objective, Fourier(UNITS, SIDE, SIDE), lambda p: Adam(p, 0.05), steps, transform=warp)

        def theirs(steps: int, name: str = layer) -> None:
            render.render_vis(network, objectives.channel(name, 0), thresholds=(steps,), progress=False, show_image=False)

        bare()
        ours(1)
        theirs(1)
        found = [(seconds(bare), seconds(lambda: ours(2)) / 2, seconds(lambda: theirs(2)) / 2) for _ in range(rounds)]
        one, own, other = (statistics.median(column) for column in zip(*found, strict=True))
        print(
            f"{layer}: bare pass {one / UNITS * 1000:.0f} ms, our step {own / UNITS * 1000:.0f} ms per image ({own / one:.2f} times), "
            f"lucent's {other * 1000:.0f} ms per image, {other / own * UNITS:.1f} times as long",
            flush=True,
        )


if __name__ == "__main__":
    main()
