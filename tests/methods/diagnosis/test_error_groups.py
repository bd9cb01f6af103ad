"""Groups of errors that were planted, and none where errors are as confidence says."""

import numpy as np
import pytest
from numpy.typing import NDArray

from sightline.methods.diagnosis.error_groups import (
    calibrate_errors,
    draw_largest_excess,
    find_error_groups,
    measure_baseline,
    measure_excess,
    measure_unevenness,
    score_count,
)


def make_answers(
    seed: int, *, planted: int
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64], NDArray[np.bool_]]:
    """Features, predictions, confidences and errors of 600 images; some errors confident."""
    rng = np.random.default_rng(seed)
    predicted = rng.integers(0, 4, 600)
    features = rng.normal(size=(600, 16)) + 3 * np.eye(4, 16)[predicted]
    confidence = rng.uniform(0.4, 1, 600)
    is_wrong = rng.random(600) > confidence
    chosen = np.flatnonzero(predicted == 2)[:planted]
    features[chosen] += 5 * np.eye(16)[9]
    is_wrong[chosen] = True
    confidence[chosen] = rng.uniform(0.85, 1, len(chosen))
    return features, predicted, confidence, is_wrong


@pytest.mark.parametrize("seed", range(6))
def test_a_planted_group_is_the_first(seed: int) -> None:
    features, predicted, confidence, is_wrong = make_answers(seed, planted=25)
    groups = find_error_groups(features, predicted, confidence, is_wrong)
    chosen = set(np.flatnonzero(predicted == 2)[:25].tolist())
    best = groups[0]
    assert best.predicted == 2
    assert len(chosen & set(best.members.tolist())) >= 24
    assert len(chosen & set(best.members[:10].tolist())) >= 9
    assert best.error_share > 0.8
    assert best.p_value < 0.01
    assert best.class_count == (predicted == 2).sum()


def test_errors_as_confidence_says_are_seldom_a_group() -> None:
    found = [bool(find_error_groups(*make_answers(seed, planted=0))) for seed in range(10)]
    assert sum(found) <= 2


def test_calibration_is_monotone_and_right_on_average() -> None:
    rng = np.random.default_rng(1)
    confidence = rng.random(5000)
    is_wrong = rng.random(5000) < (1 - confidence) ** 2
    expected = calibrate_errors(confidence, is_wrong, np.ones(5000, bool))
    order = np.argsort(confidence)
    assert (np.diff(expected[order]) <= 1e-12).all()
    assert np.abs(expected - ((1 - confidence) ** 2).clip(0.01, 0.99)).mean() < 0.03


def test_the_excess_is_counted_in_standard_deviations() -> None:
    expected = np.array([0.5, 0.2, 0.1, 0.3])
    errors = np.array([[1.0, 1, 0, 0]])
    regions = [np.array([0, 1]), np.array([2, 3])]
    values = measure_excess(regions, errors, expected)[0]
    assert values[0] == pytest.approx((2 * 2 * np.log(1 / 0.35)) ** 0.5)
    assert values[1] == pytest.approx(-((2 * 2 * np.log(1 / 0.8)) ** 0.5))
    # 60 errors where 50 of 100 are expected: (60 − 50) / 5.
    assert score_count(np.array([60.0]), 50, 100)[0] == pytest.approx(2, rel=0.01)
    # 7 of 26 where 1.4 are expected: Poisson's distribution has 0.0006 there, 3.2 deviations.
    assert score_count(np.array([7.0]), 1.4, 26)[0] == pytest.approx(3.4, abs=0.3)
    largest = draw_largest_excess([np.arange(4)], expected, seed=0)
    assert abs(largest.mean()) < 0.15
    assert largest.std() == pytest.approx(1, abs=0.15)


def test_a_class_is_compared_with_the_others() -> None:
    predicted = np.repeat([0, 1], [30, 40])
    is_wrong = predicted == 0
    confidence = np.linspace(0.3, 0.9, 70)
    regions = [np.arange(30), np.arange(30, 70)]
    baseline = measure_baseline(regions, predicted, confidence, is_wrong)
    assert (baseline.expected[predicted == 0] == 0.01).all()
    assert (baseline.expected[predicted == 1] == 0.99).all()
    # All 30 wrong where 1 in 100 is expected; against it the other class is exactly as expected.
    assert baseline.excess[0] == pytest.approx((2 * 30 * np.log(100)) ** 0.5)
    alone = measure_baseline(regions[:1], np.zeros(30, np.int64), confidence[:30], is_wrong[:30])
    assert alone.expected.mean() == pytest.approx(0.99)


def test_unevenness_is_the_variance_of_offsets_to_the_log_odds() -> None:
    rng = np.random.default_rng(4)
    sizes = rng.integers(20, 200, 3000)
    offsets = 0.5 * rng.normal(size=3000)
    shares = 1 / (1 + np.exp(0.6 - offsets))
    counts = rng.binomial(sizes, shares).astype(np.float64)
    expected = 1 / (1 + np.exp(0.6))
    excess = np.array(
        [score_count(counts[row : row + 1], expected * size, size)[0]
         for row, size in enumerate(sizes.tolist())]
    )  # fmt: skip
    variances = sizes * expected * (1 - expected)
    assert measure_unevenness(excess, variances) == pytest.approx(0.25, rel=0.15)
    assert measure_unevenness(np.full(9, 0.5), np.ones(9)) == 0
    assert measure_unevenness(np.array([]), np.array([])) == 0


def test_unevenly_calibrated_classes_are_seldom_a_group() -> None:
    false_alarms = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        predicted = rng.integers(0, 10, 1500)
        features = rng.normal(size=(1500, 16)) + 3 * np.eye(10, 16)[predicted]
        confidence = rng.uniform(0.3, 0.9, 1500)
        # Some classes are wrong up to 15 % more often than they think, others less often.
        offsets = np.linspace(-0.15, 0.15, 10)
        is_wrong = rng.random(1500) > confidence - rng.permutation(offsets)[predicted]
        false_alarms += bool(find_error_groups(features, predicted, confidence, is_wrong))
    assert false_alarms <= 1
