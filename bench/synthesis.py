"""One step of gradient ascent: against the bare truncated forward and backward pass of the same
batch, and against lucent's step.

`python bench/synthesis.py [ROUNDS]`: GoogLeNet with random weights, 8 units, pictures of 128 px;
medians of processor time in steady state, one step of each in turn. The bare pass is the plain
modules up to the layer, frozen, on a leaf that is already normalized and laid out as is fastest.
lucent runs as a user gets it: one image of its default 128 px, its own transforms, its resize to
224 px, the whole network, weight gradients.
"""

import statistics
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial

import torch
from lucent.optvis import objectives, render
from torch import Tensor, nn
from torchvision.models import googlenet

import sightline as sl
from sightline.images.transforms import make_random_affine
from sightline.optim.ascent import REDIRECTED_RELU_STEPS, maximize_objective
from sightline.optim.optimizers import Adam
from sightline.optim.parameterizations.fourier import FourierSpectrum

LAYERS = ("inception3a", "inception4c", "inception5b")
UNITS, SIDE = 8, 128
WARM = 2  # lucent's steps before the one that counts


def seconds(run: Callable[[], object]) -> float:
    begun = time.process_time()
    run()
    return time.process_time() - begun


def bare(network: nn.Module, layer: str) -> Callable[[], object]:
    """The plain pass: modules one after the other, and the gradient of one mean for each image."""
    modules = dict(network.named_children())
    trunk = nn.Sequential(*list(modules.values())[: list(modules).index(layer) + 1])
    picture = torch.randn(UNITS, 3, SIDE, SIDE).contiguous(memory_format=torch.channels_last)

    def run() -> Tensor:
        leaf = picture.detach().requires_grad_()
        found = trunk(leaf)[range(UNITS), range(UNITS)].mean((1, 2)).sum()
        return torch.autograd.grad(found, leaf)[0]

    return run


class Timed(torch.optim.Adam):
    """lucent's optimizer, which notes how long each of its steps took."""

    taken: list[float]

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        begun = time.process_time()
        result = super().step(closure)
        self.taken.append(time.process_time() - begun)
        return result


def theirs(network: nn.Module, layer: str) -> float:
    """Seconds of one of lucent's steps, after some that do not count."""
    taken: list[float] = []

    def optimizer(parameters: list[Tensor]) -> Timed:
        made = Timed(parameters, lr=0.05)
        made.taken = taken
        return made

    render.render_vis(
        network,
        objectives.channel(layer, 0),
        optimizer=optimizer,
        thresholds=(WARM + 1,),
        progress=False,
        show_image=False,
    )
    return taken[-1]


def compared(layer: str, rounds: int) -> tuple[float, float, float]:
    """Seconds of the bare pass, of our step and of lucent's, interleaved: the others run between
    two steps of one ascent.
    """
    torch.manual_seed(0)
    network = googlenet(weights=None, init_weights=False, aux_logits=False).eval()
    model = sl.load(network, size=SIDE)
    frozen = (
        googlenet(weights=None, init_weights=False, aux_logits=False).eval().requires_grad_(False)
    )
    plain, taken, begun = bare(frozen, layer), list[tuple[float, float, float]](), 0.0

    def between(index: int) -> None:
        nonlocal begun
        own = time.process_time() - begun
        if index > REDIRECTED_RELU_STEPS:  # one step without redirection has run before
            other = theirs(network, layer)
            # Ours and the one that counts both come after a bare pass, with the same memory warm.
            plain()
            taken.append((seconds(plain), own, other))
        begun = time.process_time()

    warp = make_random_affine(
        SIDE / 12, 0.2, 10, torch.Generator().manual_seed(0), same_for_batch=True
    )
    start, aim = (
        FourierSpectrum(UNITS, SIDE, SIDE, shared_start=True),
        sl.channel(layer, tuple(range(UNITS))),
    )
    maximize_objective(
        model,
        aim,
        start,
        partial(Adam, lr=0.05),
        REDIRECTED_RELU_STEPS + 1 + rounds,
        transform=warp,
        regularize=between,
    )
    one, own, other = zip(*taken, strict=True)
    return statistics.median(one), statistics.median(own), statistics.median(other)


def main() -> None:
    warnings.simplefilter("ignore")
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    for layer in LAYERS:
        one, own, other = compared(layer, rounds)
        print(
            f"{layer}: bare pass {one / UNITS * 1000:.1f} ms, our step {own / UNITS * 1000:.1f} "
            f"ms per image ({own / one:.2f} times), "
            f"lucent's {other * 1000:.0f} ms per image, {other / own * UNITS:.1f} times as long",
            flush=True,
        )


if __name__ == "__main__":
    main()
