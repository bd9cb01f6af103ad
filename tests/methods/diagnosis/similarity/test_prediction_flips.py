"""Groups of flips and calibration against numbers counted by hand."""

import numpy as np
import pytest

from sightline.methods.diagnosis.similarity.prediction_flips import (
    NetworkAnswers,
    count_flips_by_class,
    find_flip_groups,
    measure_performance,
)

NAMES = ("ant", "bee", "cat", "dog", "elk")


def answer(labels: list[int], confidence: float = 0.7) -> NetworkAnswers:
    return NetworkAnswers(np.array(labels), np.linspace(confidence, 0.9, len(labels)))


def test_a_pair_of_classes_stands_for_its_flips() -> None:
    old = answer([0, 0, 0, 0, 1, 1, 2, 3])
    new = answer([1, 1, 1, 0, 1, 1, 2, 3])
    groups = find_flip_groups(old, new, NAMES)
    assert [group.title for group in groups] == ["ant → bee"]
    assert sorted(groups[0].members.tolist()) == [0, 1, 2]
    assert groups[0].members[0] == 2  # the most confident new answer


def test_flips_from_everywhere_to_one_class() -> None:
    old = answer([0, 1, 2, 3, 0, 1, 2, 3, 4])
    new = answer([4, 4, 4, 4, 4, 1, 2, 3, 4])
    groups = find_flip_groups(old, new, NAMES)
    assert groups[0].title == "now elk"
    assert groups[0].new_class == 4
    assert groups[0].old_class == -1
    assert len(groups) == 1


def test_flips_away_from_one_class() -> None:
    old = answer([2, 2, 2, 2, 0, 1])
    new = answer([0, 1, 3, 4, 0, 1])
    assert find_flip_groups(old, new, NAMES)[0].title == "no longer cat"


def test_quality_of_flips() -> None:
    truth = np.array([0, 0, 0, 1, 1, 1, 2])
    old = answer([0, 0, 0, 0, 2, 3, 2])
    new = answer([1, 2, 3, 1, 1, 1, -1])
    groups = {group.title: group for group in find_flip_groups(old, new, NAMES, truth)}
    worse = groups["right before, wrong now"]
    assert sorted(worse.members.tolist()) == [0, 1, 2, 6]
    assert (worse.old_right, worse.new_right) == (4, 0)
    better = groups["wrong before, right now"]
    assert sorted(better.members.tolist()) == [3, 4, 5]


def test_the_same_answers_have_no_groups() -> None:
    assert find_flip_groups(answer([0, 1, 2]), answer([0, 1, 2]), NAMES, np.zeros(3, int)) == []


def test_flips_by_class() -> None:
    counts = count_flips_by_class(answer([0, 0, 1, 2]), answer([0, 1, 2, 2]), 5)
    assert counts.tolist() == [[1, 0], [1, 1], [0, 1], [0, 0], [0, 0]]


def test_calibration_is_the_sum_over_bins() -> None:
    confidence = np.array([0.05, 0.05, 0.97, 0.99, 0.98, 1.0])
    labels = np.array([0, 0, 1, 1, 1, 1])
    truth = np.array([0, 1, 1, 1, 1, 0])
    performance = measure_performance(NetworkAnswers(labels, confidence), truth)
    assert performance is not None
    expected = 2 / 6 * abs(0.05 - 0.5) + 4 / 6 * abs(0.985 - 0.75)
    assert performance.calibration_error == pytest.approx(expected)
    assert performance.accuracy == pytest.approx(4 / 6)
    assert [count for count, _, _ in performance.bins] == [2, 4]
    assert measure_performance(NetworkAnswers(labels, confidence), np.full(6, -1)) is None
