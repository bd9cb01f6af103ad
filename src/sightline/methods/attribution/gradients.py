"""Gradients of a class score at many points near an image.

The points lie along a path from a baseline to the image, or scatter around the image as noise. They
are produced one at a time and in order, so neither the memory nor the random draws depend on how
many are run in one batch.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sightline.images.transforms import blur_image, resize_image
from sightline.models.heads.gradients import differentiate_scores
from sightline.models.heads.labels import ClassChoice
from sightline.models.model import Model

BaselineKind = Literal["black", "white", "gray", "blur", "random"]

BASELINE_GRAYS = {"black": 0.0, "gray": 0.5, "white": 1.0}


class GradientProbe(NamedTuple):
    """A point 3×H×W where the gradient is taken, and its factor, 3×H×W or 1×1×1."""

    point: Tensor
    factor: Tensor


# ── probes ──


def sample_noisy_copies(
    image: Tensor, sigma: float, count: int, seed: int
) -> Iterator[GradientProbe]:
    """Noisy copies of a 3×H×W image (Smilkov 2017), each with the factor 1/count.

    The noise is Gaussian; its deviation is `sigma` times the range of the image's values.
    """
    value_range = image.max() - image.min()
    deviation = sigma * value_range
    factor = image.new_full((1, 1, 1), 1 / count)

    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        noise = torch.randn(image.shape, generator=generator)
        yield GradientProbe(image + deviation * noise, factor)


def sample_straight_path(image: Tensor, baseline: Tensor, count: int) -> Iterator[GradientProbe]:
    """Gauss-Legendre nodes on the line from baseline to image (Sundararajan 2017, eq. 1)."""
    import numpy as np

    nodes, weights = np.polynomial.legendre.leggauss(count)  # on [-1, 1]
    line = image - baseline
    for node, weight in zip(nodes, weights, strict=True):
        position = float(node + 1) / 2
        yield GradientProbe(baseline + position * line, float(weight) / 2 * line)


def sample_blur_path(image: Tensor, count: int) -> Iterator[GradientProbe]:
    """The path from a blurred image to the sharp one (Xu 2020, eq. 4) in `count` straight segments.

    The gradient of a segment is taken at its midpoint. The segments add up to the whole path,
    however many there are.
    """
    blur_shares = [(1 - k / count) ** 2 for k in range(count)]
    corners = [blur_image_by_share(image, share) for share in blur_shares]
    corners.append(image)
    for start, end in pairwise(corners):
        midpoint = (start + end) / 2
        yield GradientProbe(midpoint, end - start)


def sample_baseline_lines(
    image: Tensor, baselines: Sequence[Tensor], seed: int
) -> Iterator[GradientProbe]:
    """One random point on the line from each baseline to the image (Erion 2021, eq. 4)."""
    # The paper draws each position from all of [0, 1]. Here each of `count` equal intervals gets
    # one draw: the same mean with less variance.
    count = len(baselines)
    generator = torch.Generator().manual_seed(seed)
    intervals = torch.randperm(count, generator=generator)
    positions = (intervals + torch.rand(count, generator=generator)) / count
    for position, baseline in zip(positions.tolist(), baselines, strict=True):
        line = image - baseline
        yield GradientProbe(baseline + position * line, line / count)


# ── baselines ──


def blur_image_by_share(image: Tensor, share: float = 1.0) -> Tensor:
    """Blurs a 3×H×W image; the Gaussian's deviation is `share` times a sixth of the short side."""
    # Xu 2020 uses a deviation of 50 pixels for images of 299: a sixth of the side.
    short_side = min(image.shape[-2:])
    blurred = blur_image(image[None], share * short_side / 6)
    return blurred[0]


def make_baseline(image: Tensor, kind: BaselineKind, seed: int) -> Tensor:
    """A baseline 3×H×W without content: one gray value, the blurred image, or uniform noise."""
    if kind == "blur":
        return blur_image_by_share(image)
    if kind == "random":
        return torch.rand(image.shape, generator=torch.Generator().manual_seed(seed))
    return torch.full_like(image, BASELINE_GRAYS[kind])


def sample_quarter_crops(image: Tensor, count: int, seed: int) -> Iterator[Tensor]:
    """Random crops of half a 3×H×W image's height and width, enlarged to its size.

    A random half of them is mirrored. They have the image's colours without its layout.
    """
    # `sample_baseline_lines` uses the seed itself; with the same one its positions would correlate
    # with the crops'.
    generator = torch.Generator().manual_seed(seed + 1)
    height, width = image.shape[-2:]
    crop_height = max(1, height // 2)
    crop_width = max(1, width // 2)
    row_choices = height - crop_height + 1
    column_choices = width - crop_width + 1

    draws = torch.rand(count, 3, generator=generator).tolist()
    for row_draw, column_draw, mirror_draw in draws:
        row = int(row_draw * row_choices)
        column = int(column_draw * column_choices)
        crop = image[None, :, row : row + crop_height, column : column + crop_width]
        enlarged = resize_image(crop, height, width)[0]
        yield enlarged.flip(2) if mirror_draw < 0.5 else enlarged


# ── gradients and scores ──


def compute_score_gradient(
    model: Model, image: Tensor, label: ClassChoice = "top"
) -> tuple[Tensor, Tensor]:
    """The gradient of a class score with respect to the image, N×3×H×W, and the class indices, N.

    The score is the one before the softmax. A list of labels has one for each image.
    """
    index = None if label == "top" else model.choose(label, image)
    with torch.enable_grad():
        leaf = image.to(model.device).detach().requires_grad_()
        logits = model.run(leaf, ["logits"])["logits"]
        if index is None:
            index = model.choose("top", image, logits)
        scores = logits.gather(1, index.view(-1, 1))
        gradient = differentiate_scores(scores, leaf, "the image")
    return gradient.cpu(), index


def sum_gradient_powers(
    model: Model,
    probes: Iterable[GradientProbe],
    index: int,
    batch: int,
    powers: Sequence[int] = (1,),
) -> list[Tensor]:
    """Σ factor · gradientᵏ over the probes: for each power k a tensor 3×H×W in float64.

    `batch` probes are run at once.
    """
    totals = [torch.zeros((), dtype=torch.float64) for _ in powers]
    stream = iter(probes)
    while chunk := list(islice(stream, batch)):
        points = torch.stack([probe.point for probe in chunk])
        factors = torch.stack([probe.factor for probe in chunk])
        gradient, _ = compute_score_gradient(model, points, index)

        if max(powers) > 1:
            # A variance is a small difference of large moments.
            gradient = gradient.double()
        for i, power in enumerate(powers):
            powered = gradient if power == 1 else gradient**power
            chunk_sum = (factors * powered).sum(0)
            totals[i] = totals[i] + chunk_sum.double()
    return totals


def compute_class_scores(model: Model, inputs: Iterable[Tensor], index: int, batch: int) -> Tensor:
    """The score of one class (before the softmax) for each image 3×H×W, N, in batches."""
    scores: list[Tensor] = []
    stream = iter(inputs)
    with torch.no_grad():
        while chunk := list(islice(stream, batch)):
            logits = model.run(torch.stack(chunk), ["logits"])["logits"]
            scores.append(logits[:, index].cpu())
    return torch.cat(scores)
