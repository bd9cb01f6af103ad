"""Units that respond more to mistakes than to the class that the mistakes are taken for.

What a network has learned of a class makes its units respond most to images of that class. A unit
that responds more to images of other classes that are taken for it responds to something else which
the network counts as the class.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sightline.methods.diagnosis.similarity.unit_matching import ResponseMatrix

# Candidates whose effect is tested, for each layer.
MAX_CANDIDATES = 12

# A candidate responds more to so many pairs of a mistake and a right image, and this surely.
MIN_SEPARATION = 0.6
MIN_SCORE = 2.5


@dataclass(frozen=True)
class EnrichedUnit:
    """A unit that responds more to a group of mistakes than to right answers of the same class.

    Attributes:
        layer, unit: Which one.
        separation: The share of pairs of a mistake and a right image in which it responds more to
            the mistake; 0.5 is chance.
        score: How far that is from chance, in standard deviations (Mann and Whitney).
    """

    layer: str
    unit: int
    separation: float
    score: float


def find_enriched_units(
    responses: Mapping[str, ResponseMatrix],
    mistakes: NDArray[np.int64],
    right: NDArray[np.int64],
) -> list[EnrichedUnit]:
    """The units of all layers that respond more to mistakes than to right images, best first.

    `responses` are images × units for each layer; the others are rows of them.
    """
    units: list[EnrichedUnit] = []
    for layer, values in responses.items():
        separation = measure_separation(values[mistakes], values[right])
        scores = score_separation(separation, len(mistakes), len(right))
        strongest = np.argsort(-scores, kind="stable")[:MAX_CANDIDATES]
        for unit in strongest.tolist():
            if separation[unit] >= MIN_SEPARATION and scores[unit] >= MIN_SCORE:
                enriched = EnrichedUnit(layer, unit, float(separation[unit]), float(scores[unit]))
                units.append(enriched)
    return sorted(units, key=lambda unit: -unit.score)


def measure_separation(first: ResponseMatrix, second: ResponseMatrix) -> NDArray[np.float64]:
    """For each unit the share of pairs whose first image has the larger response; ties count half.

    `first` is n×units, `second` m×units.
    """
    from scipy.stats import rankdata

    both = np.concatenate([first, second]).astype(np.float32)
    ranks = np.asarray(rankdata(both, axis=0))
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
