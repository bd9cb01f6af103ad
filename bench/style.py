"""Style transfer and classical textures: one step beyond the bare pass, time to a loss, coarse to
fine, and growth. Processor time, one thread.

The loss network is VGG-19 with random weights (cost is the same as with trained ones), or
SqueezeNet's trained weights where pictures matter: python bench/style.py [--data FOLDER] [--curves
docs/pictures/style_curves.png]. Only what VGG-16's trained weights take, at one size:
python bench/style.py --data FOLDER --vgg 96

pystiche and style-transfer-pytorch could not be installed beside this torch; the tutorial's
algorithm is written out below.
"""

import argparse
import contextlib
import copy
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

import sightline as sl
from sightline.images.transforms import crop_center, resize_short_side
from sightline.methods.style.setup import StyleLossBuilder
from sightline.methods.style.style import FIRST_SIDES, make_gray_noise
from sightline.methods.texture.efros_leung import grow_texture, make_gaussian_window
from sightline.methods.texture.quilting import quilt_texture
from sightline.optim.multiscale import (
    FREQUENCY_FALLOFF,
    Stage,
    StageOptimizer,
    optimize_coarse_to_fine,
    plan_stages,
)
from sightline.optim.perceptual.layers import choose_perceptual_layers
from sightline.optim.perceptual.presets import STYLE_PRESETS

PAIRS = {
    "tubingen": "van_gogh_starry_night",
    "golden_gate": "munch_the_scream",
    "cornell": "hokusai_great_wave",
}


def timed(call: Callable[[], object]) -> float:
    """Processor seconds of a call."""
    began = time.process_time()
    call()
    return time.process_time() - began


def easel_of(
    model: sl.Model, photo: Tensor, painting: Tensor, preset: str = "relative"
) -> StyleLossBuilder:
    """The loss between a photograph and a painting, the default one unless told otherwise."""
    return StyleLossBuilder(
        model, photo, [painting], choose_perceptual_layers(model), STYLE_PRESETS[preset], [1.0]
    )


def brush_of(
    easel: StyleLossBuilder, size: tuple[int, int], falloff: float = FREQUENCY_FALLOFF
) -> StageOptimizer:
    """L-BFGS as `style` has it."""
    return StageOptimizer("lbfgs", 1.0, easel.choose_pair_count(size), falloff)


def pictures(side: int) -> tuple[Tensor, Tensor]:
    """A photograph and a painting, square."""
    photo, painting = (
        crop_center(resize_short_side(sl.sample(name), side), side, side)
        for name in ("coffee", "ihc")
    )
    return photo, painting


def step_beyond_bare(model: sl.Model, deepest: str, side: int, rounds: int) -> None:
    """One step of L-BFGS on the whole loss over one forward and backward pass to the deepest layer,
    whose gradient is all ones.
    """
    photo, painting = pictures(side)
    easel = easel_of(model, photo, painting)
    aim = easel.build_objective((side, side))
    layer, bare, ours = model.layer(deepest), list[float](), list[float]()

    def passes() -> None:
        image = photo.clone().requires_grad_()
        torch.autograd.grad(model.run(image, [layer])[layer].sum(), image)

    def watch(step: sl.Step) -> None:
        marks.append(time.process_time())
        bare.append(timed(passes))
        marks[-1] += bare[-1]  # the pass is not part of the step
        ours.extend([marks[-1] - bare[-1] - marks[-2]] if len(marks) > 1 else [])

    marks = list[float]()
    brush = brush_of(easel, (side, side))
    optimize_coarse_to_fine(
        model,
        lambda _: aim,
        photo,
        [Stage((side, side), rounds + brush.history_size + 2)],
        brush,
        callback=watch,
    )  # only then is it full
    one, step = statistics.median(bare[-rounds:]), statistics.median(ours[-rounds:])
    print(
        f"{model.name} {side} px: bare {one * 1e3:.0f} ms, one step {step * 1e3:.0f} ms, ratio "
        f"{step / one:.2f}",
        flush=True,
    )


def peak(network: str, side: int) -> None:
    """Bytes per pixel that painting adds to the process: its peak over what it held with the
    network loaded.
    """
    torch.set_num_threads(1)
    model = sl.load(network, weights="random", device="cpu")
    photo, painting = pictures(side)
    before = resident()
    easel = easel_of(model, photo, painting)
    aim = easel.build_objective((side, side))
    brush = brush_of(easel, (side, side))
    optimize_coarse_to_fine(
        model, lambda _: aim, photo, [Stage((side, side), brush.history_size + 2)], brush
    )
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        f"{network} {side} px: peak {(most - before) / 1e6:.0f} MB beyond the loaded network, "
        f"{(most - before) / side**2 / 1e3:.2f} kB per pixel"
    )


def resident() -> int:
    """Bytes of the process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def tutorial(
    model: sl.Model, easel: StyleLossBuilder, photo: Tensor, evaluations: int
) -> tuple[list[float], list[float]]:
    """The PyTorch tutorial's way, losses and processor times: torch's L-BFGS with its history of
    100, clamping in the closure, Gram matrices by `mm` under autograd, the network in torch's
    default layout. The weights of the terms are ours: one loss for both.
    """
    painting = easel.get_loss((photo.shape[2], photo.shape[3]))
    image, losses, times = photo.clone().requires_grad_(), list[float](), list[float]()
    optimizer = torch.optim.LBFGS([image], history_size=100)
    names = {name: model.layer(name) for name in painting.layers}
    body, normalize = copy.deepcopy(model.network), model.normalize
    seen: dict[str, Tensor] = {}
    for name, path in names.items():
        body.get_submodule(path).register_forward_hook(
            lambda _m, _i, out, name=name: seen.update({name: out})
        )
    deepest = max(names.values(), key=list(model.layers).index)
    body.get_submodule(deepest).register_forward_hook(stop)

    def closure() -> Tensor:
        with torch.no_grad():
            image.clamp_(0, 1)
        optimizer.zero_grad()
        with contextlib.suppress(StopIteration):
            body(normalize(image).contiguous())
        loss = torch.zeros(())
        for name, weight in painting.style_weights.items():
            flat = seen[name][0].flatten(1)
            loss = loss + weight / 4 * F.mse_loss(
                torch.mm(flat, flat.t()) / flat.shape[1], painting.regions[0].targets[name].gram[0]
            )
        for name, (weight, wanted) in painting.content_targets.items():
            loss = loss + weight * F.mse_loss(seen[name], wanted)
        loss.backward()
        losses.append(loss.item())
        times.append(time.process_time() - began)
        return loss

    began = time.process_time()
    while len(losses) < evaluations:
        optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    return losses, times


def stop(*_: object) -> None:
    """Ends a pass."""
    raise StopIteration


def time_to_a_loss(
    model: sl.Model, photo: Tensor, painting: Tensor, evaluations: int
) -> dict[str, tuple[list[float], list[float]]]:
    """Losses and processor times of the tutorial's way and of ours, at one size; prints how long
    ours takes to the tutorial's losses.
    """
    easel = easel_of(model, photo, painting)
    size = (photo.shape[2], photo.shape[3])
    curves = {"tutorial": tutorial(model, easel, photo, evaluations)}
    losses, times, began = list[float](), list[float](), time.process_time()

    def watch(step: sl.Step) -> None:
        losses.append(-float(step.scores.sum()))
        times.append(time.process_time() - began)

    plan = plan_stages(size, evaluations, min_side=max(size))
    optimize_coarse_to_fine(
        model, easel.build_objective, photo, plan, brush_of(easel, size), callback=watch
    )
    curves["ours"] = losses, times
    for step in (50, 100, evaluations):
        aim, theirs = min(curves["tutorial"][0][:step]), curves["tutorial"][1][step - 1]
        when = next((index for index, loss in enumerate(losses) if loss <= aim), None)
        found = (
            f"{when + 1} evaluations, {times[when] / theirs:.2f} of its time"
            if when is not None
            else f"not reached ({min(losses):.3f})"
        )
        print(
            f"{model.name} {size}: the tutorial's loss after {step} evaluations, {aim:.3f}, "
            f"{theirs:.1f} s: {found}",
            flush=True,
        )
    return curves


def coarse_to_fine(model: sl.Model, photo: Tensor, painting: Tensor, evaluations: int) -> None:
    """From noise: how many evaluations at one size give the losses that growing sizes reach, by
    L-BFGS as in textbooks (no filter) and by ours.

    Evaluations at smaller sizes count by their share of the pixels. Every size has 20 or 30; the
    rows follow the last one.
    """
    easel, size = easel_of(model, photo, painting), (photo.shape[2], photo.shape[3])

    def losses(plan: Sequence[Stage], falloff: float) -> list[tuple[float, float]]:
        """Evaluations so far, in pictures of the full size, and the least loss, of those at the
        full size.
        """
        found, spent = list[tuple[float, float]](), 0.0

        def watch(step: sl.Step) -> None:
            nonlocal spent
            height, width = step.image.shape[-2:]
            spent += height * width / math.prod(size)
            if (height, width) == size:
                found.append(
                    (spent, min([-float(step.scores.sum()), *(loss for _, loss in found[-1:])]))
                )

        optimize_coarse_to_fine(
            model,
            easel.build_objective,
            make_gray_noise(plan[0].size, 0),
            plan,
            brush_of(easel, size, falloff),
            callback=watch,
        )
        return found

    whole = plan_stages(size, evaluations, min_side=max(size))
    single = {"textbook": losses(whole, 0.0), "ours": losses(whole, FREQUENCY_FALLOFF)}
    for steps in (20, 30):
        for spent, loss in losses(
            plan_stages(size, steps, min_side=FIRST_SIDES["noise"]), FREQUENCY_FALLOFF
        )[9::10]:
            same = {
                name: next((count for count, one in curve if one <= loss), None)
                for name, curve in single.items()
            }
            told = ", ".join(
                f"{name} {count:.0f} ({spent / count:.2f})"
                if count
                else f"{name} more than {evaluations} (below {spent / evaluations:.2f})"
                for name, count in same.items()
            )
            print(
                f"{model.name} {size}, {steps} steps a size: {spent:.0f} reach {loss:.3f}, at one "
                f"size {told}",
                flush=True,
            )


def print_preset_losses(
    model: sl.Model, photo: Tensor, painting: Tensor, preset: str, evaluations: int
) -> None:
    """How far the loss of a preset falls from the photograph's, by ours at one size."""
    easel = easel_of(model, photo, painting, preset)
    size = (photo.shape[2], photo.shape[3])
    losses: list[float] = []

    def record(step: sl.Step) -> None:
        losses.append(-float(step.scores.sum()))

    plan = plan_stages(size, evaluations, min_side=max(size))
    began = time.process_time()
    optimize_coarse_to_fine(
        model, easel.build_objective, photo, plan, brush_of(easel, size), callback=record
    )
    seconds = time.process_time() - began
    shares = ", ".join(
        f"{count}: {min(losses[:count]) / losses[0]:.4f}"
        for count in (25, 50, 100, 300)
        if count <= evaluations
    )
    print(
        f"{model.name} {size} preset {preset}: loss over the photograph's after {shares}; "
        f"{seconds / len(losses) * 1e3:.0f} ms an evaluation",
        flush=True,
    )


def run_with_vgg(options: argparse.Namespace) -> None:
    """Time to a loss, coarse to fine and presets with VGG-16's trained weights at one size."""
    torch.set_num_threads(1)
    weights = options.data / "nets" / "vgg16_features.safetensors"
    vgg = sl.load("vgg16", weights=weights, device="cpu")
    photo_name, painting_name = next(iter(PAIRS.items()))
    photo = resize_short_side(sl.read(options.data / "content" / f"{photo_name}.jpg"), options.vgg)
    painting = sl.read(options.data / "paintings" / f"{painting_name}.jpg")
    time_to_a_loss(vgg, photo, painting, options.evaluations)
    for preset in STYLE_PRESETS:
        print_preset_losses(vgg, photo, painting, preset, 100)
    coarse_to_fine(vgg, photo, painting, options.evaluations)


def drawn(curves: Sequence[dict[str, tuple[list[float], list[float]]]], path: str) -> None:
    """The curves, a panel for each pair of pictures."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(curves), 3), layout="constrained")
    for panel, pair in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves, strict=True):
        for name, (losses, times) in pair.items():
            panel.loglog(times, losses, label=name)
        panel.set(xlabel="seconds of processor time", ylabel="loss")
        panel.legend()
    figure.savefig(path, dpi=90)


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
    exemplar = resize_short_side(sl.sample("gravel"), 192)[0]
    sides = (256, 512, 1024)
    times = [
        timed(
            lambda side=side: quilt_texture(
                exemplar, (side, side), block=48, generator=torch.Generator().manual_seed(0)
            )
        )
        for side in sides
    ]
    slope = math.log(times[-1] / times[0]) / math.log(sides[-1] ** 2 / sides[0] ** 2)
    plain = literal_quilt(exemplar, math.ceil((512 - 48) / 40 + 1) ** 2, 48, 8)
    print(
        f"quilting {dict(zip(sides, (round(t, 2) for t in times), strict=True))} s, grows as "
        f"pixels^{slope:.2f}; plain search at 512: {plain:.2f} s, {plain / times[1]:.1f} ×"
    )


def literal_growing(exemplar: Tensor, pixels: int, window: int) -> float:
    """Seconds that a plain search takes for some pixels: for each all windows' weighted distances,
    one pixel after the other.
    """
    windows = (
        exemplar.unfold(1, window, 1).unfold(2, window, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
    )
    weight = make_gaussian_window(window).view(window, window)
    known = weight * (torch.arange(window * window).view(window, window) < window * window // 2)
    began = time.process_time()
    for number in range(pixels):
        distance = ((windows - windows[number % len(windows)]).square() * known).flatten(1).sum(
            1
        ) / known.sum()
        near = (distance <= 1.1 * distance.min()).nonzero()
        near[number % len(near)]
    return time.process_time() - began


def growing() -> None:
    """Efros and Leung's growth with the output, and a plain search beside it."""
    exemplar, window, sides = (
        resize_short_side(sl.sample("gravel"), 64)[0],
        11,
        (64, 128, 256),
    )
    times = [
        timed(
            lambda side=side: grow_texture(
                exemplar, (side, side), window=window, generator=torch.Generator().manual_seed(0)
            )
        )
        for side in sides
    ]
    slope = math.log(times[-1] / times[0]) / math.log(sides[-1] ** 2 / sides[0] ** 2)
    plain = literal_growing(exemplar, 200, window) / 200 * sides[-1] ** 2
    print(
        f"Efros-Leung {dict(zip(sides, (round(t, 2) for t in times), strict=True))} s, grows as "
        f"pixels^{slope:.2f}; plain search at 256: {plain:.1f} s, {plain / times[-1]:.1f} ×"
    )


def main() -> None:
    """Runs all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data",
        type=Path,
        help="folder with nets, content and paintings; without it random weights and samples only",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--evaluations", type=int, default=300)
    parser.add_argument(
        "--sides",
        type=int,
        nargs="+",
        default=[128, 256, 512],
        help="short sides for the time to a loss",
    )
    parser.add_argument("--coarse", type=int, default=512, help="short side for coarse to fine")
    parser.add_argument(
        "--curves", help="where to write the picture of the curves, of the second side"
    )
    parser.add_argument(
        "--peak",
        nargs=2,
        metavar=("NETWORK", "SIDE"),
        help="only the peak memory, which needs a process of its own",
    )
    parser.add_argument(
        "--vgg", type=int, help="only with VGG-16's trained weights, at this short side"
    )
    options = parser.parse_args()
    if options.vgg:
        run_with_vgg(options)
        return
    if options.peak:
        peak(options.peak[0], int(options.peak[1]))
        return
    for side in (256, 512, 1024):  # first: a new process begins with the peak of this one
        subprocess.run([sys.executable, __file__, "--peak", "vgg19", str(side)], check=True)
    torch.set_num_threads(1)
    vgg = sl.load("vgg19", weights="random", device="cpu")
    step_beyond_bare(vgg, "relu5_1", 256, options.rounds)
    step_beyond_bare(vgg, "relu5_1", 512, options.rounds)
    if options.data:
        painted(options)
    quilting()
    growing()


def painted(options: argparse.Namespace) -> None:
    """What wants trained weights and pictures: the time to a loss, and coarse to fine."""
    squeeze = sl.load(
        "squeezenet1_0", weights=options.data / "nets" / "squeezenet1_0.safetensors", device="cpu"
    )
    step_beyond_bare(squeeze, "fire9", 256, options.rounds)
    pairs = [
        (
            sl.read(options.data / "content" / f"{photo}.jpg"),
            sl.read(options.data / "paintings" / f"{art}.jpg"),
        )
        for photo, art in PAIRS.items()
    ]
    for number, side in enumerate(options.sides):
        curves = [
            time_to_a_loss(squeeze, resize_short_side(photo, side), painting, options.evaluations)
            for photo, painting in pairs
        ]
        if options.curves and number == min(1, len(options.sides) - 1):
            drawn(curves, options.curves)
    for photo, painting in pairs if options.coarse else ():
        coarse_to_fine(
            squeeze,
            resize_short_side(photo, options.coarse),
            painting,
            options.evaluations,
        )


if __name__ == "__main__":
    main()
