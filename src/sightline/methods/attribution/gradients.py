"""Gradients at many points near an image: along a path from a baseline, or in a cloud of noise around it.

A path or a cloud is a stream of probes, each a point 3×H×W at which the gradient is taken and the factor that
multiplies it, 3×H×W or one number 1×1×1. Probes are made one by one and in order, so neither memory nor the random draws depend on how many
are run at once.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise
from typing import Literal

import torch
from torch import Tensor

from sightline.images.io import resize_image
from sightline.images.transforms import blur_image
from sightline.models.model import Model
from sightline.models.outputs import differentiate_scores

GradientProbe = tuple[Tensor, Tensor]

BaselineKind = Literal["black", "white", "gray", "blur", "random"]

# ── streams of probes ──


def sample_noisy_copies(
    image: Tensor, sigma: float, count: int, seed: int
) -> Iterator[GradientProbe]:
    """Noisy copies of a 3×H×W image (Smilkov 2017): Gaussian noise whose deviation is `sigma` of the image's value range."""
    generator = torch.Generator().manual_seed(seed)
    deviation = sigma * (image.max() - image.min())
    for _ in range(count):
        yield (
            image + deviation * torch.randn(image.shape, generator=generator),
            image.new_full((1, 1, 1), 1 / count),
        )


def sample_straight_path(image: Tensor, baseline: Tensor, count: int) -> Iterator[GradientProbe]:
    """The line from baseline to image (Sundararajan 2017, eq. 1) at `count` Gauss-Legendre nodes, their weights in the factors."""
    import numpy as np

    nodes, weights = np.polynomial.legendre.leggauss(count)
    line = image - baseline
    for node, weight in zip(nodes, weights, strict=True):
        yield baseline + float(node + 1) / 2 * line, float(weight) / 2 * line


def sample_blur_path(image: Tensor, count: int) -> Iterator[GradientProbe]:
    """From a blurred image to the sharp one by less and less Gaussian blur (Xu 2020, eq. 4), in `count` straight pieces.

    Each piece has its gradient taken in its middle, so the pieces add up to the path whatever their number.
    """
    corners = [blur_image_by_share(image, (1 - k / count) ** 2) for k in range(count)] + [image]
    for before, after in pairwise(corners):
        yield (before + after) / 2, after - before


def sample_baseline_lines(
    image: Tensor, baselines: Sequence[Tensor], seed: int
) -> Iterator[GradientProbe]:
    """One random point on the line from each baseline to the image (Erion 2021, eq. 4)."""
    # The paper draws every place on the line anywhere; here each of `count` equal stretches gets one draw: the same mean, less noise.
    count, generator = len(baselines), torch.Generator().manual_seed(seed)
    places = (
        torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)
    ) / count
    for place, baseline in zip(places.tolist(), baselines, strict=True):
        yield baseline + place * (image - baseline), (image - baseline) / count


# ── baselines ──


def blur_image_by_share(image: Tensor, share: float = 1.0) -> Tensor:
    """A 3×H×W image under a Gaussian blur of `share` × a sixth of its short side."""
    # Xu 2020 has a deviation of 50 pixels for images of 299; a sixth is that for every size.
    return blur_image(image[None], share * min(image.shape[-2:]) / 6)[0]


def make_baseline(image: Tensor, kind: BaselineKind, seed: int) -> Tensor:
    """The picture 3×H×W that stands for «nothing there»: one colour, the image blurred, or uniform noise."""
    if kind == "blur":
        return blur_image_by_share(image)
    if kind == "random":
        return torch.rand(image.shape, generator=torch.Generator().manual_seed(seed))
    return torch.full_like(image, {"black": 0.0, "gray": 0.5, "white": 1.0}[kind])


def sample_quarter_crops(image: Tensor, count: int, seed: int) -> Iterator[Tensor]:
    """Random quarters of a 3×H×W image, half of them mirrored, enlarged to its size: its colours without its layout."""
    # Another seed than the places on the lines have, which would go with the crops' positions otherwise.
    generator, (height, width) = torch.Generator().manual_seed(seed + 1), image.shape[-2:]
    rows, columns = max(1, height // 2), max(1, width // 2)
    for draw in torch.rand(count, 3, generator=generator).tolist():
        top, left = int(draw[0] * (height - rows + 1)), int(draw[1] * (width - columns + 1))
        part = resize_image(image[None, :, top : top + rows, left : left + columns], height, width)[
            0
        ]
        yield part.flip(2) if draw[2] < 0.5 else part


# ── gradients ──


def compute_score_gradient(
    model: Model, image: Tensor, label: int | str = "top"
) -> tuple[Tensor, Tensor]:
    """∂(score of the label before the softmax)/∂image, N×3×H×W, and the label's index for each image, N."""
    known = None if label == "top" else model.choose(label, image)
    with torch.enable_grad():
        leaf = image.to(model.device).detach().requires_grad_()
        logits = model.run(leaf, ["logits"])["logits"]
        index = model.choose("top", image, logits) if known is None else known
        return differentiate_scores(
            logits.gather(1, index.view(-1, 1)), leaf, "the image"
        ).cpu(), index


def sum_gradient_powers(
    model: Model,
    probes: Iterable[GradientProbe],
    index: int,
    batch: int,
    powers: Sequence[int] = (1,),
) -> list[Tensor]:
    """Σ factor · gradientᵏ over the probes for each power k, each 3×H×W, with `batch` probes run at once."""
    stream, totals = iter(probes), [torch.zeros((), dtype=torch.float64) for _ in powers]
    while part := list(islice(stream, batch)):
        points, factors = (torch.stack(side) for side in zip(*part, strict=True))
        gradient, _ = compute_score_gradient(model, points, index)
        if max(powers) > 1:  # a variance is the small difference of two of them
            gradient = gradient.double()
        totals = [
            total + (factors * (gradient if k == 1 else gradient**k)).sum(0).double()
            for total, k in zip(totals, powers, strict=True)
        ]
    return totals


def compute_class_scores(model: Model, inputs: Iterable[Tensor], index: int, batch: int) -> Tensor:
    """Score before the softmax of one class for every picture 3×H×W, N, with `batch` of them run at once."""
    scores: list[Tensor] = []
    stream = iter(inputs)
    with torch.no_grad():
        while part := list(islice(stream, batch)):
            scores.append(model.run(torch.stack(part), ["logits"])["logits"][:, index].cpu())
    return torch.cat(scores)
