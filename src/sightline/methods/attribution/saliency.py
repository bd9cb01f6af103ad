"""Saliency by backpropagation (Simonyan 2013, section 3) and methods that average gradients.

SmoothGrad (Smilkov 2017), VarGrad (Adebayo 2018), integrated gradients (Sundararajan 2017), blur
integrated gradients (Xu 2020), expected gradients (Erion 2021).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from sightline.images.io.library import read_random_images
from sightline.images.plotting.figures import Heatmap
from sightline.images.plotting.maps import (
    arrange_in_row,
    compute_quantile,
    overlay_heatmap,
    overlay_signed_map,
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
from sightline.models.heads.labels import ClassChoice
from sightline.models.heads.target_text import TargetChoice
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
    "blur_ig": "blur integrated gradients of {score} in {samples} segments",
    "expected": "expected gradients of {score} over {samples} baselines ({source})",
}

# Shown by their largest magnitude over the channels; the other kinds by their signed sum over the
# channels.
MAGNITUDE_KINDS = ("gradient", "vargrad", "smoothgrad_squared")

# The moments of the gradient, over noisy copies, that a kind is computed from.
NOISE_POWERS = {"smoothgrad": (1,), "vargrad": (2, 1), "smoothgrad_squared": (2,)}


@register_method(
    chapter="analytical",
    title="Saliency by backpropagation",
    question="Which pixels, changed a little, would change the class score most?",
    reading="Bright pixels have a large gradient of the class score (before the softmax). They "
    "cluster on the object when the network relies on it.",
    caution="A gradient holds for small changes of this image; it is not a share of the score. "
    "Single pixels are noisy: read the bright regions, not their texture.",
    attribution=AttributionSpec(
        "per_channel",
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
    label: ClassChoice = "top",
    target: TargetChoice | None = None,
    kind: SaliencyKind = "gradient",
    samples: Annotated[int, ValueRange(1, 1000)] = 32,
    sigma: Annotated[float, ValueRange(0, 1)] = 0.15,
    baseline: BaselineKind = "black",
    folder: str | None = None,
    batch: Annotated[int | None, ValueRange(1, 4096)] = None,
    memory: Annotated[float, ValueRange(0.001, 1024)] = 1.0,
    seed: int = 0,
) -> Result:
    """Gradient of a class score with respect to the image, or an average of many such gradients.

    `values["attribution"]`, N×H×W, is what the picture shows. For "gradient", "vargrad" and
    "smoothgrad_squared" it is the largest magnitude over the channels, at least 0; for the other
    kinds the sum over the channels, signed.

    `values["per_channel"]`, N×3×H×W, is the same before that reduction, unscaled. Its unit is score
    per pixel value in [0, 1] for gradients and their means, the square of that for "vargrad" and
    "smoothgrad_squared", and score for the other kinds. `values["saliency"]`, N×H×W, is its largest
    magnitude over the channels, for every kind. `values["label"]`, N, holds the class indices.
    "gradient" also has `values["gradient"]`, equal to `per_channel`.

    The kinds along a path from a baseline also have, N each, `values["difference"]`, the score
    minus the (mean) score of the baseline, and `values["gap"]`, the sum of the attribution minus
    that difference.

    Args:
        kind: "gradient", "gradient_input" (times the pixel), "smoothgrad" (mean over noisy copies),
            "vargrad" (their variance), "smoothgrad_squared", "integrated" (from a baseline),
            "blur_ig" (from the blurred image), "expected" (from many baselines).
        samples: Number of noisy copies, of nodes or segments of the path, or of baselines.
        sigma: Standard deviation of the noise as a share of the range of the image's values, for
            the noisy kinds.
        baseline: Where "integrated" starts: "black", "white", "gray", "blur" (the blurred image) or
            "random" (noise).
        folder: Folder of images that are the baselines of "expected"; None for random quarters of
            the image itself.
        batch: How many gradients are computed at once; None for the fastest number that `memory`
            allows.
    """
    is_average = kind not in ("gradient", "gradient_input")
    image_count = samples * len(image) if is_average else len(image)
    model = model.with_target(target)
    at_once = batch or choose_batch_size(model, image, memory, image_count=image_count)
    path_values: dict[str, Tensor] = {}
    if not is_average:
        gradient, index = compute_gradients_in_batches(model, image, label, at_once)
        per_channel = gradient if kind == "gradient" else image.cpu() * gradient
    else:
        index = model.choose(label, image)
        average = GradientAverage(kind, samples, sigma, baseline, folder, at_once, seed)
        per_channel, path_values = compute_averages(model, image, index, average)

    signed = kind not in MAGNITUDE_KINDS
    magnitude = per_channel.abs().amax(1)
    attribution = per_channel.sum(1) if signed else magnitude
    values = {
        "attribution": attribution,
        "per_channel": per_channel,
        "saliency": magnitude,
        "label": index,
        **path_values,
    }
    if kind == "gradient":
        values["gradient"] = per_channel

    panel, scale = draw_saliency_panel(model.to_picture(image), attribution, signed=signed)
    label_names = ", ".join(model.labels[i] for i in index.tolist())
    description = SALIENCY_DESCRIPTIONS[kind].format(
        score=f"the score of {label_names}",
        samples=samples,
        baseline=baseline,
        source=f"images of {folder}" if folder else "random quarters of the image itself",
    )
    completeness = describe_completeness(path_values)
    caption = f"Image, {description} {scale}, and their overlay.{completeness}"
    heatmap = Heatmap(
        attribution[0].cpu(),
        float(find_attribution_limit(attribution)[0]),
        signed,
        f"{description[0].upper()}{description[1:]}.{completeness}",
    )
    return Result(
        {"saliency": panel},
        values,
        {"saliency": caption},
        figures={"saliency": heatmap},
        chosen={"batch": at_once},
    )


# ── attribution ──


def compute_gradients_in_batches(
    model: Model, image: Tensor, label: ClassChoice, batch: int
) -> tuple[Tensor, Tensor]:
    """The gradient of the class score, N×3×H×W, and the class indices, N."""
    gradients: list[Tensor] = []
    indices: list[Tensor] = []
    if isinstance(label, (tuple, list)):
        label = tuple(model.choose(label, image).tolist())
    for start in range(0, len(image), batch):
        labels = label[start : start + batch] if isinstance(label, tuple) else label
        gradient, index = compute_score_gradient(model, image[start : start + batch], labels)
        gradients.append(gradient)
        indices.append(index)
    return torch.cat(gradients), torch.cat(indices)


@dataclass(frozen=True)
class GradientAverage:
    """Which gradients are averaged to one attribution; `batch` of them are computed at once."""

    kind: SaliencyKind
    samples: int
    sigma: float
    baseline: BaselineKind
    folder: str | None
    batch: int
    seed: int

    def average_noisy_gradients(self, model: Model, image: Tensor, index: int) -> Tensor:
        """A moment of the gradient over noisy copies of one image, 3×H×W."""
        copies = sample_noisy_copies(image, self.sigma, self.samples, self.seed)
        powers = NOISE_POWERS[self.kind]
        moments = sum_gradient_powers(model, copies, index, self.batch, powers)
        if self.kind == "vargrad":
            mean_square, mean = moments
            return (mean_square - mean.square()).clamp_min(0).float()
        return moments[0].float()

    def integrate_path(self, model: Model, image: Tensor, index: int) -> tuple[Tensor, Tensor]:
        """The attribution 3×H×W along a path, and the score minus the baselines' mean score."""
        probes, baselines = self.build_path(image)
        (attribution,) = sum_gradient_powers(model, probes, index, self.batch)

        scores = compute_class_scores(model, [image, *baselines], index, self.batch)
        image_score = scores[0]
        baseline_score = scores[1:].mean()
        return attribution.float(), image_score - baseline_score

    def build_path(self, image: Tensor) -> tuple[Iterator[GradientProbe], list[Tensor]]:
        """The probes from baseline to image, and the baselines.

        There is one baseline, except for "expected", which has `samples` of them.
        """
        if self.kind == "integrated":
            start = make_baseline(image, self.baseline, self.seed)
            return sample_straight_path(image, start, self.samples), [start]

        if self.kind == "blur_ig":
            start = blur_image_by_share(image)
            return sample_blur_path(image, self.samples), [start]

        if self.folder:
            height, width = image.shape[-2:]
            baselines = read_random_images(self.folder, self.samples, self.seed, height, width)
        else:
            baselines = list(sample_quarter_crops(image, self.samples, self.seed))
        return sample_baseline_lines(image, baselines, self.seed), baselines


def compute_averages(
    model: Model, image: Tensor, index: Tensor, average: GradientAverage
) -> tuple[Tensor, dict[str, Tensor]]:
    """The attributions N×3×H×W, and for a path the values `difference` and `gap`, N each."""
    attributions: list[Tensor] = []
    differences: list[Tensor] = []
    for single_image, i in zip(image.cpu(), index.tolist(), strict=True):
        if average.kind in NOISE_POWERS:
            attributions.append(average.average_noisy_gradients(model, single_image, i))
        else:
            attribution, difference = average.integrate_path(model, single_image, i)
            attributions.append(attribution)
            differences.append(difference)

    per_channel = torch.stack(attributions)
    if not differences:
        return per_channel, {}
    difference = torch.stack(differences)
    total = per_channel.double().sum((1, 2, 3))
    gap = (total - difference).float()
    return per_channel, {"difference": difference, "gap": gap}


# ── figure ──


def draw_saliency_panel(image: Tensor, attribution: Tensor, signed: bool) -> tuple[Tensor, str]:
    """Image, attribution N×H×W and overlay in a row; and the colour scale in words."""
    limit = find_attribution_limit(attribution)
    first_limit = float(limit[0])
    if signed:
        heatmap = render_signed_map(attribution, limit)
        overlay = overlay_signed_map(image, attribution, limit)
        scale = (
            "summed over the channels "
            f"(white 0, full colour is the 99th percentile, ±{first_limit:.3g})"
        )
    else:
        heatmap = render_heatmap(attribution, limit)
        overlay = overlay_heatmap(image, attribution, limit)
        scale = f"(black is 0, brightest is the 99th percentile, {first_limit:.3g})"
    return arrange_in_row(image, heatmap, overlay), scale


def find_attribution_limit(attribution: Tensor) -> Tensor:
    """Where the colour scale of each attribution of N×H×W ends: the 99th percentile.

    A few pixels hold the largest values; this keeps the remaining ones visible.
    """
    return compute_quantile(attribution.abs().flatten(1), 0.99)


def describe_completeness(path_values: Mapping[str, Tensor]) -> str:
    """How far the first image's attribution is from adding up to the difference of the scores."""
    if not path_values:
        return ""
    difference = float(path_values["difference"][0])
    gap = float(path_values["gap"][0])
    return (
        f" It sums to {difference + gap:.3g}; the score is {difference:.3g} above that of the "
        f"baseline: a gap of {gap:.2g}."
    )
