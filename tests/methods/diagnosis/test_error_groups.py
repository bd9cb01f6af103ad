"""Groups of errors that were planted, and none where errors are as confidence says."""

import numpy as np
import pytest
from numpy.typing import NDArray

from sightline.methods.diagnosis.error_groups import (
    calibrate_errors,
    draw_largest_excess,
    find_error_groups,
    measure_excess,
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


def test_errors_as_confidence_says_are_seldom_a_group() -> None:
    found = [bool(find_error_groups(*make_answers(seed, planted=0))) for seed in range(10)]
    assert sum(found) <= 2


def test_calibration_is_monotone_and_right_on_average() -> None:
    rng = np.random.default_rng(1)
    confidence = rng.random(5000)
    is_wrong = rng.random(5000) < (1 - confidence) ** 2
    expected = calibrate_errors(confidence, is_wrong)
    order = np.argsort(confidence)
    assert (np.diff(expected[order]) <= 1e-12).all()
    assert np.abs(expected - ((1 - confidence) ** 2).clip(0.01, 0.99)).mean() < 0.03


def test_the_excess_is_counted_in_standard_deviations() -> None:
    expected = np.array([0.5, 0.2, 0.1, 0.3])
    errors = np.array([[1.0, 1, 0, 0]])
    regions = [np.array([0, 1]), np.array([2, 3])]
    values = measure_excess(regions, errors, expected)[0]
    assert values[0] == pytest.approx((0.5 + 0.8) / (0.25 + 0.16) ** 0.5)
    assert values[1] == pytest.approx(-0.4 / (0.09 + 0.21) ** 0.5)
    largest = draw_largest_excess([np.arange(4)], expected, seed=0)
    assert abs(largest.mean()) < 0.15
    assert largest.std() == pytest.approx(1, abs=0.15)
