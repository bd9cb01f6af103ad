"""Correlation and AUPRC against numpy and scikit-learn, with ties and odd units."""

from typing import Any

import numpy as np
import pytest
from scipy import sparse
from sklearn.metrics import average_precision_score

import sightline as sl
from sightline.methods.units.naming import scores as scores_module
from sightline.methods.units.naming.scores import (
    compute_average_precision,
    find_highest,
    make_image_orders,
    rank_responses,
    score_concepts,
    standardize_responses,
)

IMAGES, UNITS, CONCEPTS = 61, 7, 9


@pytest.fixture
def responses() -> Any:
    """61 images × 7 units, float16 with many ties, some of them negative."""
    generator = np.random.default_rng(0)
    values = np.round(generator.normal(size=(IMAGES, UNITS)) * 3) / 2
    values[:, 2] = np.maximum(values[:, 2], 0)  # mostly 0, as after a ReLU
    return values.astype(np.float16)


@pytest.fixture
def concepts() -> Any:
    """61 images × 9 concepts of 1 to 45 images."""
    generator = np.random.default_rng(1)
    values = np.zeros((IMAGES, CONCEPTS), dtype=bool)
    for concept, count in enumerate((1, 2, 3, 5, 8, 13, 21, 34, 45)):
        values[generator.choice(IMAGES, count, replace=False), concept] = True
    return values


def test_correlation_is_numpys(responses: Any, concepts: Any) -> None:
    correlation = score_concepts(responses, concepts).correlation
    assert correlation.shape == (UNITS, CONCEPTS)
    for unit in range(UNITS):
        for concept in range(CONCEPTS):
            pair = np.corrcoef(responses[:, unit].astype(float), concepts[:, concept])
            assert correlation[unit, concept] == pytest.approx(pair[0, 1], abs=1e-6)


def test_auprc_is_that_of_scikit_learn_with_ties(responses: Any, concepts: Any) -> None:
    found = score_concepts(responses, concepts, candidate_count=4)
    assert found.candidates.shape == found.auprc.shape == (UNITS, 4)
    for unit in range(UNITS):
        highest = sorted(range(CONCEPTS), key=lambda concept: -found.correlation[unit, concept])
        assert found.candidates[unit].tolist() == highest[:4]
        for concept, auprc in zip(found.candidates[unit], found.auprc[unit], strict=True):
            expected = average_precision_score(concepts[:, concept], responses[:, unit])
            assert auprc == pytest.approx(expected, abs=1e-6)
    assert found.chance_auprc == pytest.approx(concepts.mean(0))


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_of_random_labels(seed: int) -> None:
    generator = np.random.default_rng(seed)
    values = generator.integers(0, 6, size=80).astype(np.float32)
    images = np.sort(generator.choice(80, 1 + 7 * seed, replace=False))
    labels = np.isin(np.arange(80), images)
    expected = average_precision_score(labels, values)
    assert compute_average_precision(rank_responses(values), images) == pytest.approx(expected)


@pytest.mark.parametrize("prevalence", [0.1, 0.5])
def test_average_precision_at_another_prevalence(prevalence: float) -> None:
    """Weights of scikit-learn that make the labelled images as many as asked."""
    generator = np.random.default_rng(4)
    values = generator.integers(0, 9, size=70).astype(np.float32)
    images = np.sort(generator.choice(70, 23, replace=False))
    labels = np.isin(np.arange(70), images)
    weights = np.where(labels, prevalence / 23, (1 - prevalence) / 47)
    expected = average_precision_score(labels, values, sample_weight=weights)
    ranks = rank_responses(values)
    assert compute_average_precision(ranks, images, prevalence) == pytest.approx(expected)
    constant = rank_responses(np.ones(70))
    assert compute_average_precision(constant, images, prevalence) == pytest.approx(prevalence)


def test_average_precision_by_hand() -> None:
    ranks = rank_responses(np.array([0.5, 2.0, 0.5, 1.0, 0.5]))
    assert ranks.tolist() == [5, 1, 5, 2, 5]
    # One hit among one, then both among all five.
    assert compute_average_precision(ranks, np.array([1, 4])) == pytest.approx((1 / 1 + 2 / 5) / 2)
    assert compute_average_precision(ranks, np.array([], dtype=int)) == 0


def test_units_that_say_nothing_score_as_chance(concepts: Any) -> None:
    generator = np.random.default_rng(3)
    responses = np.stack(
        [
            np.full(IMAGES, 0.1),
            np.where(np.arange(IMAGES) == 5, np.nan, generator.normal(size=IMAGES)),
            np.where(np.arange(IMAGES) == 5, np.inf, 0.0),
        ],
        axis=1,
    ).astype(np.float16)
    found = score_concepts(responses, concepts)
    assert (found.correlation == 0).all()
    assert (found.chance_correlation == 0).all()
    assert found.auprc == pytest.approx(concepts.mean(0)[found.candidates])


def test_concepts_of_no_image_or_of_all_score_nothing(responses: Any) -> None:
    concepts = np.zeros((IMAGES, 2), dtype=bool)
    concepts[:, 1] = True
    found = score_concepts(responses, concepts)
    assert (found.correlation == 0).all()
    assert set(np.unique(found.auprc[found.candidates == 0])) == {0}
    assert found.auprc[found.candidates == 1] == pytest.approx(1)


def test_many_blocks_and_sparse_labels_give_the_same(
    responses: Any, concepts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = score_concepts(responses, concepts)
    monkeypatch.setattr(scores_module, "MAX_BLOCK_NUMBERS", 2 * IMAGES)
    monkeypatch.setattr(scores_module, "MAX_SPARSE_SHARE", 1.0)
    pieces = score_concepts(responses, sparse.coo_array(concepts))
    assert pieces.correlation == pytest.approx(whole.correlation, abs=1e-6)
    assert pieces.chance_correlation == pytest.approx(whole.chance_correlation, abs=1e-6)
    assert pieces.auprc == pytest.approx(whole.auprc, abs=1e-6)


def test_chance_is_the_best_of_shuffled_concepts(responses: Any, concepts: Any) -> None:
    found = score_concepts(responses, concepts, seed=5)
    orders = make_image_orders(IMAGES, UNITS, seed=5)
    assert len(orders) == 10, "64 samples of 7 units"
    assert len(make_image_orders(IMAGES, 1000, seed=5)) == 4
    best = np.zeros((len(orders), UNITS))
    for number, order in enumerate(orders):
        for unit in range(UNITS):
            moved = responses[order, unit].astype(float)
            values = [np.corrcoef(moved, concepts[:, column])[0, 1] for column in range(CONCEPTS)]
            best[number, unit] = max(values)
    assert found.chance_correlation == pytest.approx(best.mean(0), abs=1e-6)
    variance = ((best / best.mean(0) - 1) ** 2).sum() / ((len(orders) - 1) * UNITS)
    expected = best.mean(0) * (1 + 3 * variance**0.5)
    assert found.correlation_limit == pytest.approx(expected, abs=1e-6)
    other = score_concepts(responses, concepts, seed=6).chance_correlation
    assert not np.allclose(other, best.mean(0))


def test_standardized_responses(responses: Any) -> None:
    standardized = standardize_responses(responses)
    assert standardized.mean(0) == pytest.approx(np.zeros(UNITS), abs=1e-7)
    assert (standardized**2).sum(0) == pytest.approx(np.ones(UNITS), abs=1e-6)
    # The mean of many numbers like 0.1 is not 0.1 in floating point.
    assert (standardize_responses(np.full((49, 1), 0.1)) == 0).all()


def test_ties_of_correlations_are_in_the_order_of_the_concepts() -> None:
    assert find_highest(np.array([[0.5, 0.7, 0.5, 0.7]]), 3).tolist() == [[1, 3, 0]]


def test_other_images_are_refused(responses: Any, concepts: Any) -> None:
    with pytest.raises(sl.SightlineError, match="61 images, the concepts of 60"):
        score_concepts(responses, concepts[:-1])
