"""Feed-forward style networks: pictures per second against one optimization, and our instance norm
against torch's.

`python bench/stylizer.py [--sides 256 512 1024]`: one process; the two of each pair take turns,
medians. The optimization is Gatys' with 500 evaluations of VGG-19 up to relu5_1 (its weights don't
change the time): a few evaluations are timed, times 500.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import sightline as sl
from sightline.generators.apply import restyle_images
from sightline.generators.architectures.style import ConditionalInstanceNorm
from sightline.generators.checkpoint import read_fixed_style_network
from sightline.methods.style.setup import StyleLossBuilder
from sightline.optim.perceptual.layers import choose_perceptual_layers
from sightline.optim.perceptual.presets import STYLE_PRESETS

EVALUATIONS = 500
SHAPES = ((4, 24, 128, 128), (4, 48, 64, 64), (4, 96, 32, 32), (1, 32, 512, 512))


def seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def evaluation(model: sl.Model, image: Tensor) -> Callable[[], object]:
    """One evaluation of Gatys' loss and its gradient at the pixels."""
    aim = StyleLossBuilder(
        model,
        image,
        [image.flip(3)],
        choose_perceptual_layers(model),
        STYLE_PRESETS["gatys"],
        [1.0],
    ).build_objective((image.shape[2], image.shape[3]))
    score, names = aim.bind(model), [model.layer(name) for name in aim.layers]
    leaf = image.clone().requires_grad_()
    return lambda: torch.autograd.grad(score(leaf, model.run(leaf, names)).sum(), leaf)


def norms(shape: tuple[int, ...], grad: bool, rounds: int = 15) -> tuple[float, float]:
    """Milliseconds of our norm and torch's in channels_last, followed by the copy that the next
    convolution needs if the layout is lost.
    """
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last).requires_grad_(grad)
    own, other, mix = (
        ConditionalInstanceNorm(shape[1]),
        nn.InstanceNorm2d(shape[1], affine=True),
        torch.ones(shape[0], 1),
    )

    def run(norm: Callable[[Tensor], Tensor]) -> None:
        with torch.set_grad_enabled(grad):
            made = norm(x).contiguous(memory_format=torch.channels_last)
            if grad:
                torch.autograd.grad(made, x, torch.ones_like(made))

    pairs = [
        (seconds(lambda: run(lambda y: own(y, mix))), seconds(lambda: run(other)))
        for _ in range(rounds + 2)
    ][2:]
    return tuple(statistics.median(times) * 1000 for times in zip(*pairs, strict=True))  # type: ignore[return-value]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 512, 1024])
    asked = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for shape in SHAPES:
        for grad in (False, True):
            own, other = norms(shape, grad)
            what = "forward and backward" if grad else "forward"
            print(
                f"instance norm {'×'.join(map(str, shape))} {what}: ours {own:.2f} ms, torch's "
                f"{other:.2f} ms, ratio {other / own:.1f}"
            )
    painters, vgg = (
        read_fixed_style_network("painters"),
        sl.load("vgg19", weights="random", device="cpu"),
    )
    for side in asked.sides:
        image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
        mix, gatys = painters.make_mix(painters.names[0]), evaluation(vgg, image)
        restyle_images(painters, image, mix)
        pairs = [
            (seconds(lambda: restyle_images(painters, image, mix)), seconds(gatys))
            for _ in range(3 if side < 1024 else 1)
        ]
        once, one = (statistics.median(times) for times in zip(*pairs, strict=True))
        print(
            f"{side} px: {1 / once:.2f} pictures per second; one evaluation of Gatys' loss "
            f"{one:.2f} s, {EVALUATIONS} of them "
            f"{EVALUATIONS * one:.0f} s: {EVALUATIONS * one / once:.0f} times as long",
            flush=True,
        )


if __name__ == "__main__":
    main()
