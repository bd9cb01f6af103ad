"""What the maps by gradients cost: ours, the bare passes, captum and pytorch-grad-cam in turns.

`python bench/attribution.py [--rounds N] [--threads N ...] [--kinds KIND ...] [--names NAME ...]`:
random weights, one image of the network's own size, one process, the shortest of the rounds, in
which all take turns; averages of many gradients (25 or 50) have a third of the rounds. With one
thread the times are processor time, which other work on the machine disturbs less than the time by
the clock; with more they are by the clock. pytorch-grad-cam is left out where it is not installed.
Prints a row of a table for each number of threads, network and method:

- ours with the picture, caption and recipe, and in brackets the numbers alone, which is what the
  others give;
- the bare forward and backward passes, as many at once, of the frozen network in channels_last by
  torch's own operations: all of them for Grad-CAM too, which needs a part;
- the peers on the network as torchvision gives it, which their user has, and in brackets on the one
  that we prepare (frozen, in channels_last, not in place); averages as many at once as ours, and on
  torchvision's network all at once, as captum comes, if two gigabytes hold them;
- megabytes that the first run takes at its peak above what was there before, ours with the packed
  weights that it leaves, and in brackets the last peer's on our network (Linux).
"""

import argparse
import copy
import ctypes
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torchvision
from captum.attr import GuidedBackprop, IntegratedGradients, LayerGradCam, NoiseTunnel, Saliency
from occlusion import NETWORKS as OCCLUSION_NETWORKS
from occlusion import make_plain_network
from torch import Tensor, nn

import sightline as sl
from sightline.methods.attribution import cam_maps
from sightline.methods.attribution.gradients import compute_score_gradient
from sightline.models.overrides import relu as rules
from sightline.models.tracing.batch_size import choose_batch_size, estimate_max_batch

LABEL = 0
COUNTS = {"smoothgrad": 25, "integrated": 50}
CAMS = {
    "gradcam": "GradCAM",
    "gradcam++": "GradCAMPlusPlus",
    "layercam": "LayerCAM",
    "eigencam": "EigenCAM",
    "scorecam": "ScoreCAM",
}
KINDS = ("gradient", "guided", *COUNTS, *CAMS)
SHORT = {"gradient", "guided", *COUNTS, "gradcam"}  # of every network
OTHERS = {"resnet18": {"gradcam++", "layercam", "eigencam"}, "sightnet": {"scorecam"}}
NETWORKS = ("sightnet", *OCCLUSION_NETWORKS)
# Grad-CAM of the last convolution, and rules for ReLU, say nothing about these.
WITHOUT_MAPS = {"vit_b_16", "swin_t"}
WITHOUT_RELU = {"efficientnet_b0", "convnext_tiny"} | WITHOUT_MAPS
Runs = dict[str, Callable[[], Any]]


def ours(model: sl.Model, image: Tensor, kind: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Our method as a user calls it (guided of a class score, as captum's); and its numbers."""
    if kind == "guided":

        def guided() -> Any:
            with rules.backward("guided"):
                return compute_score_gradient(model, image, LABEL)

        return lambda: sl.guided(model, image, layer="logits", unit=LABEL), guided
    if kind in ("eigencam", "scorecam"):
        return (lambda: sl.cam(model, image, label=LABEL, kind=kind),) * 2
    if kind in CAMS:
        name: Any = model.layer("last_conv")

        def weighed() -> Any:
            maps, slopes, _ = cam_maps.compute_maps_and_gradients(model, image, name, LABEL)
            return cam_maps.combine_channels(kind, maps, slopes).relu()

        return lambda: sl.cam(model, image, label=LABEL, kind=kind), weighed
    whole = lambda: sl.saliency(model, image, label=LABEL, kind=kind, samples=COUNTS.get(kind, 1))  # noqa: E731
    return whole, whole if kind in COUNTS else lambda: compute_score_gradient(model, image, LABEL)


def bare(body: nn.Module, image: Tensor, count: int, at_once: int) -> None:
    """Forward and backward passes of `count` copies and nothing else."""
    for copies in image.expand(count, -1, -1, -1).split(at_once):
        leaf = copies.contiguous(memory_format=torch.channels_last).requires_grad_()
        torch.autograd.grad(body(leaf)[:, LABEL].sum(), leaf)


def by_captum(network: nn.Module, layer: str, image: Tensor, kind: str, at_once: int) -> Any:
    """captum doing the same work."""
    if kind == "gradient":
        return Saliency(network).attribute(image, target=LABEL, abs=False)
    if kind == "guided":
        return GuidedBackprop(network).attribute(image, target=LABEL)
    if kind == "gradcam":
        return LayerGradCam(network, network.get_submodule(layer)).attribute(
            image, target=LABEL, relu_attributions=True
        )
    if kind == "integrated":
        return IntegratedGradients(network).attribute(
            image, target=LABEL, n_steps=COUNTS[kind], internal_batch_size=at_once
        )
    tunnel, count = NoiseTunnel(Saliency(network)), COUNTS[kind]
    return tunnel.attribute(
        image, target=LABEL, nt_samples=count, nt_samples_batch_size=at_once, stdevs=0.15, abs=False
    )


def by_grad_cam(network: nn.Module, layer: str, image: Tensor, kind: str) -> Any:
    """pytorch-grad-cam doing the same work."""
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    with getattr(pytorch_grad_cam, CAMS[kind])(
        model=network, target_layers=[network.get_submodule(layer)]
    ) as method:
        method.batch_size = 4  # Score-CAM's, for which we have as many
        # A frozen network has a gradient of the image's alone.
        leaf = image.clone().requires_grad_(not next(network.parameters()).requires_grad)
        return method(input_tensor=leaf, targets=[ClassifierOutputTarget(LABEL)])


def plain(name: str, model: sl.Model) -> nn.Module:
    """The network as its user has it, with the same weights."""
    if name == "sightnet":
        return copy.deepcopy(model.network).requires_grad_()
    return make_plain_network(name, model)


def peers(name: str, model: sl.Model, image: Tensor, kind: str, at_once: int) -> Runs:
    """The peers' runs, on the network as it comes and on ours."""
    network, layer, ready = plain(name, model), model.layer("last_conv"), model.normalize(image)
    fed = ready.contiguous()
    runs: Runs = {}
    if kind in ("gradient", "guided", "gradcam", *COUNTS):
        many = min(COUNTS.get(kind, 1), estimate_max_batch(model, image, 2))
        runs["captum"] = lambda: by_captum(network, layer, fed, kind, many)
        runs["captum, ours"] = lambda: by_captum(model.network, layer, ready, kind, at_once)
    if kind in CAMS and find_spec("pytorch_grad_cam"):
        runs["grad-cam"] = lambda: by_grad_cam(network, layer, fed, kind)
        runs["grad-cam, ours"] = lambda: by_grad_cam(model.network, layer, ready, kind)
    return runs


def milliseconds(run: Callable[[], Any]) -> float:
    """Time of a run: the processor's for one thread, by the clock for more."""
    read_clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    began = read_clock()
    run()
    return 1000 * (read_clock() - began)


def taken(run: Callable[[], Any]) -> float:
    """Megabytes that a run takes at its peak above what is there."""

    def status(name: str) -> float:
        return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0]) / 1000

    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    run()
    return max(0.0, status("VmHWM") - before)


def compare(name: str, kind: str, rounds: int) -> None:
    """Prints one row."""
    model = sl.load(
        *([] if name == "sightnet" else [name]),
        **({} if name == "sightnet" else {"weights": "random"}),
        device="cpu",
    )
    image = torch.rand(1, 3, model.size, model.size, generator=torch.Generator().manual_seed(0))
    count = COUNTS.get(kind, 1)
    at_once = choose_batch_size(model, image, image_count=count)
    whole, numbers = ours(model, image, kind)
    ready = model.normalize(image)
    runs: Runs = {
        "whole": whole,
        "bare": lambda: bare(model.network, ready, count, at_once),
        **peers(name, model, image, kind, at_once),
    }
    if numbers is not whole:
        runs["numbers"] = numbers
    once: Runs = {
        key: runs[key] for key in runs if key in ("whole", "captum, ours", "grad-cam, ours")
    }
    memory = {key: taken(run) for key, run in once.items()}  # a warm-up as well
    times = [{key: milliseconds(run) for key, run in runs.items()} for _ in range(rounds)]
    told = {key: min(row[key] for row in times) for key in runs}
    mine = told.get("numbers", told["whole"])

    def against(peer: str) -> str:
        if peer not in told:
            return "– | –"
        other, prepared = told[peer], told[f"{peer}, ours"]
        return f"{other:.0f} ({prepared:.0f}) | {other / mine:.2f} ({prepared / mine:.2f})"

    if numbers is whole:
        own, ratio = f"{mine:.0f}", "–" if kind == "scorecam" else f"{mine / told['bare']:.2f}"
    else:
        own, ratio = (
            f"{told['whole']:.0f} ({mine:.0f})",
            f"{told['whole'] / told['bare']:.2f} ({mine / told['bare']:.2f})",
        )
    first, *rest = memory.values()
    print(
        f"| {name} | {kind}{f', {count} by {at_once}' if count > 1 else ''} | {own} | "
        f"{told['bare']:.0f} | {ratio} | {against('captum')} | "
        f"{against('grad-cam')} | {first:.0f} ({rest[-1]:.0f}) |",
        flush=True,
    )


HEAD = (
    "| network | method | ours ms (numbers) | bare ms | ours / bare | captum ms (on ours) | "
    "captum / ours | grad-cam ms (on ours) "
    "| grad-cam / ours | MB (peer) |\n|---|---|---|---|---|---|---|---|---|---|"
)


def choose_kinds(name: str) -> set[str]:
    """The methods that are compared on a network."""
    kinds = SHORT | OTHERS.get(name, set())
    if name in WITHOUT_RELU:
        kinds = kinds - {"guided"}
    if name in WITHOUT_MAPS:
        kinds = kinds - {"gradcam"}
    return kinds


def choose_rounds(kind: str, rounds: int) -> int:
    """Fewer rounds for what takes longer."""
    if kind == "scorecam":
        return 1
    return max(1, rounds // 3) if kind in COUNTS else rounds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    known = ["sightnet", *torchvision.models.list_models()]
    parser.add_argument("--names", nargs="+", default=NETWORKS, choices=known, metavar="NAME")
    asked = parser.parse_args()
    warnings.filterwarnings("ignore")
    for threads in asked.threads:
        torch.set_num_threads(threads)
        print(f"\ntorch {torch.__version__}, {threads} threads\n\n{HEAD}")
        for name in asked.names:
            compared = choose_kinds(name)
            for kind in asked.kinds:
                if kind in compared:
                    compare(name, kind, choose_rounds(kind, asked.rounds))


if __name__ == "__main__":
    main()
