"""Formulas of two concepts against trying all of them."""

from itertools import product
from typing import Any

import numpy as np
import pytest

from sightline.methods.units.naming.concepts import ConceptTable
from sightline.methods.units.naming.formulas import FIRST_CONCEPTS, FormulaSearch
from sightline.methods.units.naming.scores import make_label_matrix, standardize_responses

IMAGES, CONCEPTS, MIN_IMAGES = 90, 6, 4


@pytest.fixture
def labels() -> Any:
    """90 images × 6 concepts of different sizes."""
    generator = np.random.default_rng(0)
    return generator.random((IMAGES, CONCEPTS)) < np.linspace(0.15, 0.5, CONCEPTS)


@pytest.fixture
def search(labels: Any) -> FormulaSearch:
    """A search among them."""
    table = ConceptTable([f"c{number}" for number in range(CONCEPTS)], make_label_matrix(labels))
    return FormulaSearch.from_concepts(table, MIN_IMAGES)


def join(labels: Any, operation: str, first: int, second: int) -> Any:
    """Which images a formula is true of."""
    if operation == "or":
        return labels[:, first] | labels[:, second]
    if operation == "and":
        return labels[:, first] & labels[:, second]
    return labels[:, first] & ~labels[:, second]


@pytest.mark.parametrize("operation", ["and", "or", "and not"])
def test_a_planted_formula_is_the_best_of_all(
    labels: Any, search: FormulaSearch, operation: str
) -> None:
    noise = np.random.default_rng(1).normal(size=IMAGES)
    responses = 3 * join(labels, operation, 4, 2) + 0.4 * noise
    standardized = standardize_responses(responses[:, None])[:, 0]
    correlation = np.array(
        [np.corrcoef(labels[:, concept], responses)[0, 1] for concept in range(CONCEPTS)]
    )
    assert search.correlate_singly(standardized) == pytest.approx(correlation, abs=1e-6)

    scores: dict[tuple[str, int, int], float] = {}
    for first, second in product(np.argsort(-correlation)[:FIRST_CONCEPTS], range(CONCEPTS)):
        for name in ("and", "or", "and not"):
            images = join(labels, name, first, second)
            if MIN_IMAGES <= images.sum() <= IMAGES * 2 / 3:
                scores[name, int(first), second] = np.corrcoef(images, responses)[0, 1]
    formula = search.find_best(standardized, correlation)
    assert formula is not None
    assert formula.correlation == pytest.approx(max(scores.values()), abs=1e-6)
    assert {formula.first, formula.second} == {4, 2}
    assert formula.operation == operation
    images = np.flatnonzero(join(labels, operation, formula.first, formula.second))
    assert formula.get_images(search.concepts).tolist() == images.tolist()
    assert formula.describe(search.concepts) == f"c{formula.first} {operation} c{formula.second}"


def test_a_single_concept_needs_no_formula(labels: Any, search: FormulaSearch) -> None:
    responses = labels[:, 3] + 0.1 * np.random.default_rng(2).normal(size=IMAGES)
    standardized = standardize_responses(responses[:, None])[:, 0]
    assert search.find_best(standardized, search.correlate_singly(standardized)) is None


def test_formulas_of_too_few_images_are_left_out() -> None:
    labels = np.zeros((40, 2), dtype=bool)
    labels[:8, 0] = True
    labels[6:20, 1] = True
    table = ConceptTable(["a", "b"], make_label_matrix(labels))
    responses = (labels[:, 0] & labels[:, 1]).astype(float)
    standardized = standardize_responses(responses[:, None])[:, 0]
    allowing = FormulaSearch.from_concepts(table, 2)
    found = allowing.find_best(standardized, allowing.correlate_singly(standardized))
    assert found is not None
    assert found.correlation == pytest.approx(1, abs=1e-6)
    strict = FormulaSearch.from_concepts(table, 3)
    assert strict.find_best(standardized, strict.correlate_singly(standardized)) is None
