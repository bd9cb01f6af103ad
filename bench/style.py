"""Style transfer and quilting: one step beyond the bare pass, time to a loss, coarse to fine, and growth. Processor time, one thread.

The loss network is VGG-19 with random weights (cost is the same as with trained ones), or SqueezeNet's trained weights where
pictures matter: python bench/style.py [--weights squeezenet1_0.safetensors]
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

import sightline as sl
from sightline.exemplar.quilting import quilt
from sightline.methods.artistic.easel import Easel
from sightline.paint import Brush, paint, resized, stages
from sightline.perceptual import layers_of
from sightline.presets import PRESETS


def timed(call: Callable[[], object]) -> float:
    """Processor seconds of a call."""
    began = time.process_time()
    call()
    return time.process_time() - began


def easel_of(model: sl.Model, photo: Tensor, painting: Tensor) -> Easel:
    """The default loss between a photograph and a painting."""
    return Easel(model, photo, [painting], layers_of(model), PRESETS["relative"], [1.0])


def step_beyond_bare(model: sl.Model, side: int, rounds: int) -> None:
    """One step of L-BFGS on the whole loss over one forward and backward pass to the deepest layer."""
    photo, painting = (sl.image.center_crop(sl.image.short_side(sl.sample(name), side), side, side) for name in ("coffee", "ihc"))
    easel = easel_of(model, photo, painting)
    aim = easel.objective((side, side))
    layers = [model.layer(name) for name in aim.layers]
    bare, ours = list[float](), list[float]()

    def passes() -> None:
        image = photo.clone().requires_grad_()
        found = model.run(image, layers)
        torch.autograd.grad([found[layers[-1]].sum()], image)

    steps = 3
    for _ in range(rounds):
        bare.append(timed(passes))
        ours.append(
            timed(lambda: paint(model, lambda _: aim, photo, stages((side, side), steps, least=side), Brush("lbfgs", 1.0))) / (steps + 0.4)
        )
    ratio = statistics.median(ours) / statistics.median(bare)
    print(
        f"{model.name} {side} px: bare {statistics.median(bare) * 1e3:.0f} ms, one step {statistics.median(ours) * 1e3:.0f} ms, ratio {ratio:.2f}"
    )


def tutorial(model: sl.Model, easel: Easel, photo: Tensor, evaluations: int) -> tuple[list[float], float]:
    """The PyTorch tutorial's way: torch's L-BFGS with its history of 100, clamping in the closure, at one size."""
    size = (photo.shape[2], photo.shape[3])
    aim = easel.objective(size)
    score, layers = aim.bind(model), [model.layer(name) for name in aim.layers]
    image, losses = photo.clone().requires_grad_(), list[float]()
    optimizer = torch.optim.LBFGS([image], max_iter=20, history_size=100)

    def closure() -> Tensor:
        with torch.no_grad():
            image.clamp_(0, 1)
        optimizer.zero_grad()
        loss = -score(image, model.run(image, layers)).sum()
        loss.backward()
        losses.append(loss.item())
        return loss

    began = time.process_time()
    while len(losses) < evaluations:
        optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    return losses, time.process_time() - began


def time_to_a_loss(model: sl.Model, side: int, evaluations: int) -> None:
    """How long ours takes to the loss that the tutorial's way ends with, and by how many evaluations at full size."""
    photo = sl.image.short_side(sl.sample("coffee"), side)
    easel = easel_of(model, photo, sl.sample("ihc"))
    size = (photo.shape[2], photo.shape[3])
    losses, theirs = tutorial(model, easel, photo, evaluations)
    aim = min(loss for loss in losses if math.isfinite(loss))
    for name, plan in (("one size", stages(size, evaluations, least=max(size))), ("coarse to fine", stages(size, evaluations))):
        final, reached = plan[-1], list[float]()

        def watch(step: sl.Step, final: object = final, reached: list[float] = reached) -> bool:
            at_end = step.image.shape[-2:] == final.size  # type: ignore[attr-defined]
            reached.append(float(step.scores.sum()))
            return at_end and -reached[-1] <= aim

        began = time.process_time()
        short = [stage if stage is plan[-1] else type(stage)(stage.size, evaluations // 3) for stage in plan]
        done = paint(model, easel.objective, resized(photo, plan[0].size), short, Brush("lbfgs", 1.0), callback=watch)
        ours = time.process_time() - began
        print(
            f"{name}: loss {-done.scores[-1]:.3f} (tutorial {aim:.3f} after {len(losses)} evaluations, {theirs:.1f} s) in {ours:.1f} s, "
            f"{done.work:.0f} evaluations' worth of pixels; {theirs / ours:.1f} × as fast, {done.work / len(losses):.2f} of its pixel-evaluations"
        )


def literal_quilt(exemplar: Tensor, blocks: int, block: int, overlap: int) -> float:
    """Seconds that a plain search takes: every window's distance by itself."""
    windows = exemplar.unfold(1, block, 1).unfold(2, block, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
    began = time.process_time()
    for number in range(blocks):
        piece = windows[number % len(windows)]
        (windows[..., :overlap] - piece[..., :overlap]).square().flatten(1).sum(1).argmin()
        (windows[..., :overlap, :] - piece[..., :overlap, :]).square().flatten(1).sum(1).argmin()
    return time.process_time() - began


def quilting() -> None:
    """Quilting's growth with the output, and a plain search beside it."""
    exemplar = sl.image.short_side(sl.sample("gravel"), 192)[0]
    sides = (256, 512, 1024)
    times = [timed(lambda side=side: quilt(exemplar, (side, side), block=48, generator=torch.Generator().manual_seed(0))) for side in sides]
    slope = math.log(times[-1] / times[0]) / math.log(sides[-1] ** 2 / sides[0] ** 2)
    plain = literal_quilt(exemplar, math.ceil((512 - 48) / 40 + 1) ** 2, 48, 8)
    print(
        f"quilting {dict(zip(sides, (round(t, 2) for t in times), strict=True))} s, grows as pixels^{slope:.2f}; plain search at 512: {plain:.2f} s, {plain / times[1]:.1f} ×"
    )


def main() -> None:
    """Runs all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", help="trained weights of squeezenet1_0")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    vgg = sl.load("vgg19", weights="random", device="cpu")
    step_beyond_bare(vgg, 256, options.rounds)
    if options.weights:
        squeeze = sl.load("squeezenet1_0", weights=options.weights, device="cpu")
        step_beyond_bare(squeeze, 256, options.rounds)
        time_to_a_loss(squeeze, 256, 120)
    quilting()


if __name__ == "__main__":
    main()
