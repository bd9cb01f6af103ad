"""Gradient, guided backpropagation, Grad-CAM, SmoothGrad and integrated gradients: what they cost beyond the bare passes, and against captum.

`python bench/attribution.py [--rounds N] [--kinds KIND ...] [NAME ...]`: random weights, one image of 224 px, one process, ours,
the bare forward and backward passes (channels_last, frozen weights, the same number at once) and captum in turns. Medians of
processor time, which other work on the machine disturbs less than the time by the clock. captum runs as many noisy copies or path
points at once as we do, and, as it comes, all of them. Grad-CAM's bare cost is a whole
forward and backward pass too, of which it needs only a part. Peak memory is the process's high-water mark.
"""

import argparse
import resource
import statistics
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from captum.attr import GuidedBackprop, IntegratedGradients, LayerGradCam, NoiseTunnel, Saliency
from torch import Tensor

import sightline as sl
from sightline import rules
from sightline.memory import worthwhile
from sightline.methods.analytical.cam import maps_and_slopes, weighted
from sightline.methods.analytical.paths import score_gradient

SIDE, LABEL = 224, 0
COUNTS = {"smoothgrad": 25, "integrated": 50}
KINDS = ("gradient", "guided", "gradcam", *COUNTS)


def seconds(run: Callable[[], Any]) -> float:
    """Processor time of a run."""
    began = time.process_time()
    run()
    return time.process_time() - began


def bare(model: sl.Model, image: Tensor, count: int, at_once: int) -> None:
    """Forward and backward passes of `count` copies and nothing else."""
    for copies in image.expand(count, -1, -1, -1).split(at_once):
        leaf = copies.contiguous(memory_format=torch.channels_last).requires_grad_()
        torch.autograd.grad(model.body(leaf)[:, LABEL].sum(), leaf)


def engine(model: sl.Model, image: Tensor, kind: str) -> Any:
    """Our method's numbers without its picture, which is what captum gives."""
    index = torch.tensor([LABEL])
    if kind == "gradcam":
        return weighted("gradcam", *maps_and_slopes(model, image, model.layer("last_conv"), index)).relu()
    with rules.backward("guided") if kind == "guided" else nullcontext():
        return score_gradient(model, image, index)


def own(model: sl.Model, image: Tensor, kind: str) -> Any:
    """Our method as a user calls it, picture and recipe included; guided is of a class score here, as captum's."""
    if kind == "guided":
        return engine(model, image, kind)
    if kind == "gradcam":
        return sl.gradcam(model, image, label=LABEL)
    return sl.saliency(model, image, label=LABEL, kind=kind, samples=COUNTS.get(kind, 1))


def peer(model: sl.Model, image: Tensor, kind: str, at_once: int) -> Any:
    """captum doing the same work."""
    body, layer = model.body, model.module(model.layer("last_conv"))
    if kind == "gradient":
        return Saliency(body).attribute(image, target=LABEL, abs=False)
    if kind == "guided":
        return GuidedBackprop(body).attribute(image, target=LABEL)
    if kind == "gradcam":
        return LayerGradCam(body, layer).attribute(image, target=LABEL, relu_attributions=True)
    if kind == "integrated":
        return IntegratedGradients(body).attribute(image, target=LABEL, n_steps=COUNTS[kind], internal_batch_size=at_once)
    tunnel, count = NoiseTunnel(Saliency(body)), COUNTS[kind]
    return tunnel.attribute(image, target=LABEL, nt_samples=count, nt_samples_batch_size=min(count, at_once), stdevs=0.15, abs=False)


def compare(name: str, kind: str, rounds: int) -> None:
    """Prints one line."""
    model = sl.load(name, weights="random", device="cpu")
    image = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    normal, count = model.normalize(image), COUNTS.get(kind, 1)
    at_once = min(count, worthwhile(model, image))
    runs: dict[str, Callable[[], Any]] = {
        "sightline": lambda: own(model, image, kind),
        "bare": lambda: bare(model, normal, count, at_once),
        "captum": lambda: peer(model, normal, kind, at_once),
    }
    if count > 1:
        runs["captum as it comes"] = lambda: peer(model, normal, kind, count)
    else:
        runs["sightline without the picture"] = lambda: engine(model, image, kind)
    for run in runs.values() if count == 1 else [lambda: bare(model, normal, at_once, at_once)]:
        run()
    times = [[seconds(run) for run in runs.values()] for _ in range(rounds)]
    medians = {name: 1000 * statistics.median(column) for name, column in zip(runs, zip(*times, strict=True), strict=True)}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    ours = medians["sightline"]
    print(
        f"{name} {kind}, {at_once} at once: "
        + ", ".join(f"{run} {time:.0f} ms ({time / ours:.2f} times ours)" for run, time in medians.items())
        + f"; sightline {ours / medians['bare']:.2f} times bare; peak {peak:.2f} GB",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--kinds", nargs="*", default=KINDS, choices=KINDS)
    parser.add_argument("names", nargs="*", default=["resnet18", "vgg16", "squeezenet1_0"])
    asked = parser.parse_args()
    warnings.filterwarnings("ignore", module="captum")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name in asked.names:
        for kind in asked.kinds:
            compare(name, kind, asked.rounds if kind not in COUNTS else max(1, asked.rounds // 3))


if __name__ == "__main__":
    main()
