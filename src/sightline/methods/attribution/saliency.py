"""Saliency by backpropagation (Simonyan 2013, section 3), and what later papers average over many gradients.

SmoothGrad (Smilkov 2017), VarGrad (Adebayo 2018), integrated gradients (Sundararajan 2017), blur integrated gradients
(Xu 2020), expected gradients (Erion 2021).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from sightline.images.library import read_random_images
from sightline.images.plotting.maps import (
    arrange_in_row,
    compute_quantile,
    overlay_heatmap,
    render_heatmap,
    render_signed_map,
)
from sightline.methods.attribution.gradients import (
    BaselineKind,
    GradientProbe,
    blur_image_by_share,
    compute_class_scores,
    compute_score_gradient,
    make_baseline,
    sample_baseline_lines,
    sample_blur_path,
    sample_noisy_copies,
    sample_quarter_crops,
    sample_straight_path,
    sum_gradient_powers,
)
from sightline.models.model import Model
from sightline.models.tracing.batch_size import choose_batch_size
from sightline.registry.method import AttributionSpec, register_method
from sightline.registry.parameter import ValueRange
from sightline.registry.result import Result

SaliencyKind = Literal[
    "gradient",
    "gradient_input",
    "smoothgrad",
    "vargrad",
    "smoothgrad_squared",
    "integrated",
    "blur_ig",
    "expected",
]

SALIENCY_DESCRIPTIONS = {
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
MAGNITUDE_KINDS = ("gradient", "vargrad", "smoothgrad_squared")


@dataclass(frozen=True)
class GradientAverage:
    """How many gradients become one attribution, and how many of them (`batch`) are run at once."""

    kind: SaliencyKind
    samples: int
    sigma: float
    baseline: BaselineKind
    folder: str | None
    batch: int
    seed: int

    def compute_attribution(
        self, model: Model, image: Tensor, index: int
    ) -> tuple[Tensor, Tensor | None]:
        """Attribution 3×H×W of one image's score of one class; along a path, how far that score lies above the baseline's."""
        if self.kind in ("smoothgrad", "vargrad", "smoothgrad_squared"):
            powers = {"smoothgrad": (1,), "vargrad": (2, 1), "smoothgrad_squared": (2,)}[self.kind]
            noisy = sample_noisy_copies(image, self.sigma, self.samples, self.seed)
            first, *mean = sum_gradient_powers(model, noisy, index, self.batch, powers)
            return ((first - mean[0].square()).clamp_min(0) if mean else first).float(), None
        probes, baselines = self.build_probe_path(image)
        (attribution,) = sum_gradient_powers(model, probes, index, self.batch)
        scores = compute_class_scores(model, [image, *baselines], index, self.batch)
        return attribution.float(), scores[0] - scores[1:].mean()

    def build_probe_path(self, image: Tensor) -> tuple[Iterator[GradientProbe], list[Tensor]]:
        """The probes from baseline to image, and the baseline or, for expected gradients, all of them."""
        if self.kind == "integrated":
            start = make_baseline(image, self.baseline, self.seed)
            return sample_straight_path(image, start, self.samples), [start]
        if self.kind == "blur_ig":
            return sample_blur_path(image, self.samples), [blur_image_by_share(image)]
        if self.folder:
            baselines = read_random_images(self.folder, self.samples, self.seed, *image.shape[-2:])
        else:
            baselines = list(sample_quarter_crops(image, self.samples, self.seed))
        return sample_baseline_lines(image, baselines, self.seed), baselines


@register_method(
    chapter="analytical",
    title="Saliency by backpropagation",
    question="Which pixels, changed a little, would change the class score most?",
    reading="Bright pixels have a large gradient of the score before the softmax. They gather on the object when the network looks at it.",
    caution="It is the slope at this image, not a share of the score. Single pixels are noisy; the bright region matters, not its texture.",
    attribution=AttributionSpec(
        "attribution",
        "kind",
        gradient_kinds=("gradient", "smoothgrad"),
        magnitude_kinds=MAGNITUDE_KINDS,
        costly_kinds=(
            "smoothgrad",
            "vargrad",
            "smoothgrad_squared",
            "integrated",
            "blur_ig",
            "expected",
        ),
    ),
)
def saliency(
    model: Model,
    image: Tensor,
    *,
    label: int | str = "top",
    kind: SaliencyKind = "gradient",
    samples: Annotated[int, ValueRange(1, 1000)] = 32,
    sigma: Annotated[float, ValueRange(0, 1)] = 0.15,
    baseline: BaselineKind = "black",
    folder: str | None = None,
    batch: Annotated[int | None, ValueRange(1, 4096)] = None,
    memory: Annotated[float, ValueRange(0.001, 1024)] = 1.0,
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
    at_once = batch or choose_batch_size(model, image, memory)
    told: dict[str, Tensor] = {}
    if kind in ("gradient", "gradient_input"):
        slope, index = (
            torch.cat(parts)
            for parts in zip(
                *(compute_score_gradient(model, some, label) for some in image.split(at_once)),
                strict=True,
            )
        )
        attribution = slope if kind == "gradient" else image.cpu() * slope
    else:
        index, average = (
            model.choose(label, image),
            GradientAverage(kind, samples, sigma, baseline, folder, at_once, seed),
        )
        found = [
            average.compute_attribution(model, one.cpu(), int(i))
            for one, i in zip(image, index, strict=True)
        ]
        attribution = torch.stack([part for part, _ in found])
        changes = [change for _, change in found if change is not None]
        if changes:
            told["difference"] = torch.stack(changes)
            told["gap"] = (attribution.double().sum((1, 2, 3)) - told["difference"]).float()
    size = attribution.abs().amax(1)
    map_ = size if kind in MAGNITUDE_KINDS else attribution.sum(1)
    panel, scale = draw_saliency_panel(image, map_, signed=kind not in MAGNITUDE_KINDS)
    words = {
        "score": f"the score of {', '.join(model.labels[i] for i in index.tolist())}",
        "source": f"pictures of {folder}" if folder else "random quarters of the image itself",
    }
    what = SALIENCY_DESCRIPTIONS[kind].format(samples=samples, baseline=baseline, **words)
    caption = f"Image, {what} {scale}, and both.{describe_completeness(told)}"
    values = {"attribution": attribution, "saliency": size, "label": index, **told}
    if kind == "gradient":
        values["gradient"] = attribution
    return Result({"saliency": panel}, values, {"saliency": caption})


def draw_saliency_panel(image: Tensor, attribution: Tensor, signed: bool) -> tuple[Tensor, str]:
    """The image, the map N×H×W and both, and the map's scale in words."""
    # A few pixels hold the largest values; the scale ends at the 99th percentile so that the rest can be seen.
    limit = compute_quantile(attribution.abs().flatten(1), 0.99)
    shown = render_signed_map(attribution, limit) if signed else render_heatmap(attribution, limit)
    panel = arrange_in_row(image, shown, overlay_heatmap(image, attribution.clamp_min(0), limit))
    if signed:
        return (
            panel,
            f"summed over the colours (white 0, full colour is the 99th percentile, ±{float(limit[0]):.3g})",
        )
    return panel, f"(black is 0, brightest is the 99th percentile, {float(limit[0]):.3g})"


def describe_completeness(path_values: Mapping[str, Tensor]) -> str:
    """How far the attribution's sum misses what it divides up, for the first image."""
    if not path_values:
        return ""
    change, gap = float(path_values["difference"][0]), float(path_values["gap"][0])
    return f" It sums to {change + gap:.3g}; the score lies {change:.3g} above the baseline's: a gap of {gap:.2g}."
