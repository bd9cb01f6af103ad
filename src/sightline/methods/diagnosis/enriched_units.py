"""Units that a group of mistakes has in common with the class that they are taken for.

What a network has learned of a class makes its units respond most to images of that class, and less
to others that are taken for it by a narrow margin. A unit that responds to such mistakes at least
as strongly as to right images of the class, and more than to right images of other classes, stands
for something that both share, whether it belongs to the class or not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sightline.methods.diagnosis.similarity.unit_matching import ResponseMatrix

# Candidates whose effect is tested, for each layer.
MAX_CANDIDATES = 24

# A candidate responds more to the mistake in so large a share of the pairs of a mistake and a right
# image of another class, by so many standard deviations.
MIN_SEPARATION = 0.65
MIN_SCORE = 3.0

# It responds to mistakes at least as strongly as to right images of the class: not surely less.
MIN_CLASS_SCORE = -2.0


@dataclass(frozen=True)
class EnrichedUnit:
    """A unit that responds to a group of mistakes as to the class that they are taken for.

    Attributes:
        layer, unit: Which one.
        separation: The share of pairs of a mistake and a right image of another class in which it
            responds more to the mistake; 0.5 is chance.
        score: How far that is from chance, in standard deviations (Mann and Whitney).
        class_separation: The same share for right images of the class itself.
    """

    layer: str
    unit: int
    separation: float
    score: float
    class_separation: float = 0.5


def find_enriched_units(
    responses: Mapping[str, ResponseMatrix],
    mistakes: NDArray[np.int64],
    right: NDArray[np.int64],
    others: NDArray[np.int64],
) -> list[EnrichedUnit]:
    """The units of all layers that respond to mistakes as to their class, the surest first.

    `responses` are images × units for each layer. The others are rows of them: the mistakes, right
    images of the class that they are taken for, and right images of other classes.
    """
    units: list[EnrichedUnit] = []
    for layer, values in responses.items():
        separation = measure_separation(values[mistakes], values[others])
        scores = score_separation(separation, len(mistakes), len(others))
        class_separation = measure_separation(values[mistakes], values[right])
        class_scores = score_separation(class_separation, len(mistakes), len(right))
        is_enriched = (separation >= MIN_SEPARATION) & (scores >= MIN_SCORE)
        candidates = np.flatnonzero(is_enriched & (class_scores >= MIN_CLASS_SCORE))
        strongest = candidates[np.argsort(-scores[candidates], kind="stable")]
        for unit in strongest[:MAX_CANDIDATES].tolist():
            enriched = EnrichedUnit(
                layer,
                unit,
                float(separation[unit]),
                float(scores[unit]),
                float(class_separation[unit]),
            )
            units.append(enriched)
    return sorted(units, key=lambda unit: -unit.score)


def measure_separation(first: ResponseMatrix, second: ResponseMatrix) -> NDArray[np.float64]:
    """For each unit the share of pairs whose first image has the larger response; ties count half.

    `first` is n×units, `second` m×units.
    """
    from scipy.stats import rankdata

    responses = np.concatenate([first, second]).astype(np.float32)
    ranks = np.asarray(rankdata(responses, axis=0))
    count = len(first)
    smaller = ranks[:count].sum(0) - count * (count + 1) / 2
    return smaller / (count * len(second))


def score_separation(
    separation: NDArray[np.float64], first_count: int, second_count: int
) -> NDArray[np.float64]:
    """How many standard deviations a separation is from chance, without ties."""
    deviation = np.sqrt((first_count + second_count + 1) / (12 * first_count * second_count))
    return (separation - 0.5) / deviation


def draw_random_units(
    layer_units: Mapping[str, int],
    chosen: Sequence[tuple[str, int]],
    draws: int,
    seed: int,
) -> list[list[tuple[str, int]]]:
    """Sets of as many other units of the same layers as are chosen."""
    generator = np.random.default_rng(seed)
    taken = set(chosen)
    sets: list[list[tuple[str, int]]] = []
    for _ in range(draws):
        units: list[tuple[str, int]] = []
        for layer, _ in chosen:
            free = [
                unit
                for unit in range(layer_units[layer])
                if (layer, unit) not in taken and (layer, unit) not in units
            ]
            if free:
                units.append((layer, int(generator.choice(free))))
        sets.append(units)
    return sets
