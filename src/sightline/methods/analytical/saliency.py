"""Saliency by backpropagation (Simonyan 2013, section 3), and what later papers average over many gradients.

SmoothGrad (Smilkov 2017), VarGrad (Adebayo 2018), integrated gradients (Sundararajan 2017), blur integrated gradients
(Xu 2020), expected gradients (Erion 2021).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from ... import render
from ...catalog import Map, method
from ...knobs import Between
from ...memory import worthwhile
from ...model import Model
from ...result import Result
from . import paths
from .paths import Baseline, Probe, score_gradient

Kind = Literal["gradient", "gradient_input", "smoothgrad", "vargrad", "smoothgrad_squared", "integrated", "blur_ig", "expected"]

SHOWN = {
    "gradient": "|gradient| of {score}",
    "gradient_input": "image × gradient of {score}",
    "smoothgrad": "mean gradient of {score} over {samples} noisy copies",
    "vargrad": "variance of the gradient of {score} over {samples} noisy copies",
    "smoothgrad_squared": "mean squared gradient of {score} over {samples} noisy copies",
    "integrated": "integrated gradients of {score} from a baseline ({baseline}) at {samples} nodes",
    "blur_ig": "blur integrated gradients of {score} in {samples} pieces",
    "expected": "expected gradients of {score} over {samples} baselines ({source})",
}
# Shown by their size, largest over the colours; the others by their sum over the colours, with its sign.
MAGNITUDES = ("gradient", "vargrad", "smoothgrad_squared")


@dataclass(frozen=True)
class Average:
    """How many gradients become one attribution, and how many of them (`batch`) are run at once."""

    kind: Kind
    samples: int
    sigma: float
    baseline: Baseline
    folder: str | None
    batch: int
    seed: int

    def of(self, model: Model, image: Tensor, index: int) -> tuple[Tensor, Tensor | None]:
        """Attribution 3×H×W of one image's score of one class; along a path, how far that score lies above the baseline's."""
        if self.kind in ("smoothgrad", "vargrad", "smoothgrad_squared"):
            powers = {"smoothgrad": (1,), "vargrad": (2, 1), "smoothgrad_squared": (2,)}[self.kind]
            noisy = paths.cloud(image, self.sigma, self.samples, self.seed)
            first, *mean = paths.moments(model, noisy, index, self.batch, powers)
            return ((first - mean[0].square()).clamp_min(0) if mean else first).float(), None
        probes, baselines = self.path(image)
        (attribution,) = paths.moments(model, probes, index, self.batch)
        scores = paths.class_scores(model, [image, *baselines], index, self.batch)
        return attribution.float(), scores[0] - scores[1:].mean()

    def path(self, image: Tensor) -> tuple[Iterator[Probe], list[Tensor]]:
        """The probes from baseline to image, and the baseline or, for expected gradients, all of them."""
        if self.kind == "integrated":
            start = paths.baseline_of(image, self.baseline, self.seed)
            return paths.straight(image, start, self.samples), [start]
        if self.kind == "blur_ig":
            return paths.sharpening(image, self.samples), [paths.blurred(image)]
        if self.folder:
            baselines = paths.drawn(self.folder, self.samples, self.seed, *image.shape[-2:])
        else:
            baselines = list(paths.crops(image, self.samples, self.seed))
        return paths.references(image, baselines, self.seed), baselines


@method(
    title="Saliency by backpropagation",
    question="Which pixels, changed a little, would change the class score most?",
    reading="Bright pixels have a large gradient of the score before the softmax. They gather on the object when the network looks at it.",
    caution="It is the slope at this image, not a share of the score. Single pixels are noisy; the bright region matters, not its texture.",
    map=Map(
        "attribution",
        "kind",
        slopes=("gradient", "smoothgrad"),
        sizes=MAGNITUDES,
        costly=("smoothgrad", "vargrad", "smoothgrad_squared", "integrated", "blur_ig", "expected"),
    ),
)
def saliency(
    model: Model,
    image: Tensor,
    *,
    label: int | str = "top",
    kind: Kind = "gradient",
    samples: Annotated[int, Between(1, 1000)] = 32,
    sigma: Annotated[float, Between(0, 1)] = 0.15,
    baseline: Baseline = "black",
    folder: str | None = None,
    batch: Annotated[int | None, Between(1, 4096)] = None,
    memory: Annotated[float, Between(0.001, 1024)] = 1.0,
    seed: int = 0,
) -> Result:
    """Gradient of a class score with respect to the image, or what is averaged from many such gradients.

    `values["attribution"]` is signed and unscaled, N×3×H×W: for gradients and their means per unit of [0, 1] pixel value, for
    vargrad and smoothgrad_squared that squared, for the others in units of the score. `values["saliency"]` N×H×W is its
    magnitude, largest over the colours. "gradient" also has `values["gradient"]`. The kinds along a path from a baseline have
    `values["difference"]`, the score less the baseline's (mean) score, and `values["gap"]`, the sum of the attribution less that, N each.

    Args:
        kind: "gradient", "gradient_input" (times the pixel), "smoothgrad" (mean over noisy copies), "vargrad" (their variance),
            "smoothgrad_squared", "integrated" (from a baseline), "blur_ig" (from the blurred image), "expected" (from many baselines).
        samples: Number of noisy copies, of nodes or pieces of the path, or of baselines.
        sigma: Standard deviation of the noise as a share of the image's value range, for the noisy kinds.
        baseline: Where "integrated" starts: "black", "white", "gray", "blur" (the image blurred) or "random" (noise).
        folder: Folder of pictures that are the baselines of "expected"; None for random quarters of the image itself.
        batch: How many gradients are run at once; None for as many as are fastest on a processor, or as `memory` allows.
    """
    at_once = batch or worthwhile(model, image, memory)
    told: dict[str, Tensor] = {}
    if kind in ("gradient", "gradient_input"):
        slope, index = (
            torch.cat(parts) for parts in zip(*(score_gradient(model, some, label) for some in image.split(at_once)), strict=True)
        )
        attribution = slope if kind == "gradient" else image.cpu() * slope
    else:
        index, average = model.choose(label, image), Average(kind, samples, sigma, baseline, folder, at_once, seed)
        found = [average.of(model, one.cpu(), int(i)) for one, i in zip(image, index, strict=True)]
        attribution = torch.stack([part for part, _ in found])
        changes = [change for _, change in found if change is not None]
        if changes:
            told["difference"] = torch.stack(changes)
            told["gap"] = (attribution.double().sum((1, 2, 3)) - told["difference"]).float()
    size = attribution.abs().amax(1)
    map_ = size if kind in MAGNITUDES else attribution.sum(1)
    panel, scale = pictured(image, map_, signed=kind not in MAGNITUDES)
    words = {
        "score": f"the score of {', '.join(model.labels[i] for i in index.tolist())}",
        "source": f"pictures of {folder}" if folder else "random quarters of the image itself",
    }
    what = SHOWN[kind].format(samples=samples, baseline=baseline, **words)
    caption = f"Image, {what} {scale}, and both.{completeness(told)}"
    values = {"attribution": attribution, "saliency": size, "label": index, **told}
    if kind == "gradient":
        values["gradient"] = attribution
    return Result({"saliency": panel}, values, {"saliency": caption})


def pictured(image: Tensor, map_: Tensor, signed: bool) -> tuple[Tensor, str]:
    """The image, the map N×H×W and both, and the map's scale in words."""
    # A few pixels hold the largest values; the scale ends at the 99th percentile so that the rest can be seen.
    limit = render.quantile(map_.abs().flatten(1), 0.99)
    shown = render.signed(map_, limit) if signed else render.heat(map_, limit)
    panel = render.beside(image, shown, render.over(image, map_.clamp_min(0), limit))
    if signed:
        return panel, f"summed over the colours (white 0, full colour is the 99th percentile, ±{float(limit[0]):.3g})"
    return panel, f"(black is 0, brightest is the 99th percentile, {float(limit[0]):.3g})"


def completeness(told: Mapping[str, Tensor]) -> str:
    """How far the attribution's sum misses what it divides up, for the first image."""
    if not told:
        return ""
    change, gap = float(told["difference"][0]), float(told["gap"][0])
    return f" It sums to {change + gap:.3g}; the score lies {change:.3g} above the baseline's: a gap of {gap:.2g}."
