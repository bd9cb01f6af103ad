"""Whether a name survives: its scores must fall when the concept's labels are spoiled.

Section 4 of Oikarinen, Yan and Weng (ICML 2025) tests metrics so. The missing-label test takes away
half of the concept's labels, the extra-label test adds as many wrong ones. A score that stays the
same would have given the unit any name that is broader or narrower.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sightline.methods.units.naming.scores import (
    FloatArray,
    IndexArray,
    compute_average_precision,
)

LABEL_DRAWS = 5  # random choices of the labels that are taken away or added
MIN_SCORE_FALL = 0.05  # of the score


@dataclass(frozen=True)
class NameScores:
    """How well a unit agrees with a set of labels."""

    auprc: float
    correlation: float

    def is_below(self, original: "NameScores") -> bool:
        """Whether both scores are lower than the original ones by at least a twentieth."""
        limit = 1 - MIN_SCORE_FALL
        has_lower_auprc = self.auprc <= limit * original.auprc
        return has_lower_auprc and self.correlation <= limit * original.correlation


@dataclass(frozen=True)
class SpoiledLabels:
    """Images of a concept with half of them missing, and with as many others, several times."""

    missing: list[IndexArray]
    extra: list[IndexArray]


def spoil_labels(images: IndexArray, image_count: int, seed: int) -> SpoiledLabels:
    """Draws the labels of both tests. `images` are those that have the concept, in rising order."""
    generator = np.random.default_rng(seed)
    missing = [drop_half(images, generator) for _ in range(LABEL_DRAWS)]
    extra = [add_as_many(images, image_count, generator) for _ in range(LABEL_DRAWS)]
    return SpoiledLabels(missing, extra)


def drop_half(images: IndexArray, generator: np.random.Generator) -> IndexArray:
    """A random half of the images is left, the smaller half of an odd number.

    Departure from the paper, which drops each label with probability ½: the number is exact, so
    that small concepts are tested as hard as large ones.
    """
    count = len(images) // 2
    return np.sort(generator.choice(images, count, replace=False))


def add_as_many(images: IndexArray, image_count: int, generator: np.random.Generator) -> IndexArray:
    """The images, and as many random ones of those that lack the concept.

    Departure from the paper, which adds each image with probability n / (N − n): the number is
    exact, and at most half of those that lack the concept are added. Else a concept of half of the
    images would become one of all.
    """
    is_other = np.ones(image_count, dtype=bool)
    is_other[images] = False
    other_images = np.flatnonzero(is_other)
    count = min(len(images), len(other_images) // 2)
    added = generator.choice(other_images, count, replace=False)
    return np.sort(np.concatenate([images, added]))


def score_labels(
    standardized: FloatArray,
    ranks: IndexArray,
    images: IndexArray,
    prevalence: float | None = None,
) -> NameScores:
    """Both scores of a unit, of its standardized responses and its ranks, one for each image.

    The AUPRC is as if the share `prevalence` of all images were labelled.
    """
    image_count = len(ranks)
    variance = len(images) * (1 - len(images) / image_count)
    product = float(standardized[images].sum(dtype=np.float64))
    correlation = product / variance**0.5 if variance > 0 else 0.0
    return NameScores(compute_average_precision(ranks, images, prevalence), correlation)


def score_missing_labels(
    standardized: FloatArray, ranks: IndexArray, labels: SpoiledLabels
) -> NameScores:
    """The mean scores of a unit with half of the labels missing."""
    draws = [score_labels(standardized, ranks, images) for images in labels.missing]
    return average_scores(draws)


def score_extra_labels(
    standardized: FloatArray, ranks: IndexArray, labels: SpoiledLabels, prevalence: float
) -> NameScores:
    """The mean scores of a unit with extra labels. `prevalence` is the share of the right ones.

    Departure from the paper: AUPRC is as if no labels had been added. Else they alone would raise
    it, by so much for a concept of a fifth of the images that good names fail, too. The paper's
    concepts have a hundredth or less.
    """
    draws = [score_labels(standardized, ranks, images, prevalence) for images in labels.extra]
    return average_scores(draws)


def average_scores(draws: Sequence[NameScores]) -> NameScores:
    """The mean of each score over several draws of labels."""
    mean_auprc = sum(scores.auprc for scores in draws) / len(draws)
    mean_correlation = sum(scores.correlation for scores in draws) / len(draws)
    return NameScores(mean_auprc, mean_correlation)
