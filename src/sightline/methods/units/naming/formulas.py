"""Names that join two concepts: «A and B», «A or B», «A and not B».

As in INVERT (Bykov et al., NeurIPS 2023), which searches formulas of any length for the highest
AUC; here they have two concepts, and the measure is correlation, which notices missing and extra
labels.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import sparse

from sightline.methods.units.naming.concepts import MAX_CONCEPT_SHARE, ConceptTable
from sightline.methods.units.naming.scores import FloatArray, IndexArray, find_highest

FIRST_CONCEPTS = 3  # of a unit's highest correlations, each of which is joined with all others
# By how much a formula's correlation must exceed that of its unit's best concept.
MIN_FORMULA_GAIN = 0.1


@dataclass(frozen=True)
class Formula:
    """Two concepts of a table, joined; `operation` is a key of OPERATIONS."""

    operation: str
    first: int
    second: int
    correlation: float

    def describe(self, concepts: ConceptTable) -> str:
        """The formula in words."""
        return f"{concepts.texts[self.first]} {self.operation} {concepts.texts[self.second]}"

    def get_images(self, concepts: ConceptTable) -> IndexArray:
        """The images that it is true of, in rising order."""
        join = OPERATIONS[self.operation]
        return join(concepts.get_images(self.first), concepts.get_images(self.second))


def _intersect(first: IndexArray, second: IndexArray) -> IndexArray:
    return np.intersect1d(first, second, assume_unique=True)


def _subtract(first: IndexArray, second: IndexArray) -> IndexArray:
    return np.setdiff1d(first, second, assume_unique=True)


OPERATIONS: dict[str, Callable[[IndexArray, IndexArray], IndexArray]] = {
    "and": _intersect,
    "or": np.union1d,
    "and not": _subtract,
}


@dataclass(frozen=True)
class FormulaSearch:
    """Finds the formula of two concepts with which a unit correlates most.

    At least `min_images` must have the formula, and at most two thirds of all.
    """

    concepts: ConceptTable
    min_images: int
    rows: Any  # the labels as a sparse matrix by image
    _overlaps: dict[int, tuple[Any, FloatArray]] = field(default_factory=dict)  # of first concepts

    @classmethod
    def from_concepts(cls, concepts: ConceptTable, min_images: int) -> "FormulaSearch":
        """A search among the concepts of a table."""
        rows = sparse.csr_array(concepts.labels, dtype=np.float32)
        return cls(concepts, min_images, rows)

    def find_best(self, standardized: FloatArray, correlation: FloatArray) -> Formula | None:
        """The best formula of a unit, or None where it is hardly better than one concept.

        `standardized` are the unit's responses with mean 0 and norm 1, `correlation` is its
        correlation with each concept.
        """
        lowest = (1 + MIN_FORMULA_GAIN) * max(0.0, float(correlation.max(initial=0)))
        best: Formula | None = None
        for first in find_highest(correlation[None], FIRST_CONCEPTS)[0].tolist():
            formula = self.find_best_with(first, standardized, correlation)
            if formula.correlation > lowest:
                best = formula
                lowest = formula.correlation
        return best

    def correlate_singly(self, standardized: FloatArray) -> FloatArray:
        """The correlation of a unit's standardized responses with each concept."""
        return self.correlate(standardized @ self.rows, self.concepts.counts)

    def find_best_with(
        self, first: int, standardized: FloatArray, correlation: FloatArray
    ) -> Formula:
        """The best formula whose first concept this is."""
        counts = self.concepts.counts
        products = correlation * self.measure_lengths(counts)
        rows, shared_counts = self.get_overlaps(first)
        shared_products = standardized[self.concepts.get_images(first)] @ rows
        # What the responses to the images of a formula add up to, and how many these are.
        joined = {
            "and": (shared_products, shared_counts),
            "or": (
                products[first] + products - shared_products,
                counts[first] + counts - shared_counts,
            ),
            "and not": (products[first] - shared_products, counts[first] - shared_counts),
        }
        best = Formula("and", first, first, -1.0)
        for operation, (sums, sizes) in joined.items():
            scores = self.correlate(sums, sizes)
            second = int(scores.argmax())
            if scores[second] > best.correlation:
                best = Formula(operation, first, second, float(scores[second]))
        return best

    def correlate(self, sums: FloatArray, sizes: FloatArray | IndexArray) -> FloatArray:
        """Correlations from the sums of responses; −1 where too few or too many images have it."""
        max_images = MAX_CONCEPT_SHARE * self.rows.shape[0]
        is_testable = (sizes >= self.min_images) & (sizes <= max_images)
        lengths = np.where(is_testable, self.measure_lengths(sizes), 1)
        return np.where(is_testable, sums / lengths, -1)

    def measure_lengths(self, sizes: FloatArray | IndexArray) -> FloatArray:
        """The norm of the centred labels of so many images."""
        shares = sizes / self.rows.shape[0]
        return np.sqrt(np.maximum(sizes * (1 - shares), 0))

    def get_overlaps(self, first: int) -> tuple[Any, FloatArray]:
        """The labels of a concept's images, and how many of them have each concept."""
        if first not in self._overlaps:
            rows = self.rows[self.concepts.get_images(first)]
            self._overlaps[first] = (rows, np.asarray(rows.sum(0)).ravel())
        return self._overlaps[first]
