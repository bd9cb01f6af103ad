"""The missing-label and the extra-label test, on units whose right names are known."""

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from sightline.methods.units.naming.checks import (
    LABEL_DRAWS,
    NameScores,
    add_as_many,
    drop_half,
    score_extra_labels,
    score_labels,
    score_missing_labels,
    spoil_labels,
)
from sightline.methods.units.naming.scores import rank_responses, standardize_responses

IMAGES = 400


def mark(images: Any) -> Any:
    """Truth values of all images."""
    return np.isin(np.arange(IMAGES), images)


def score(responses: Any, images: Any) -> NameScores:
    """Both scores of one unit."""
    standardized = standardize_responses(responses[:, None])[:, 0]
    return score_labels(standardized, rank_responses(responses), images)


def spoil(responses: Any, images: Any) -> tuple[NameScores, NameScores]:
    """The mean scores with missing and with extra labels."""
    standardized = standardize_responses(responses[:, None])[:, 0]
    ranks = rank_responses(responses)
    labels = spoil_labels(images, IMAGES, seed=0)
    missing = score_missing_labels(standardized, ranks, labels)
    extra = score_extra_labels(standardized, ranks, labels, len(images) / IMAGES)
    return missing, extra


@pytest.mark.parametrize("count", [5, 6, 40])
def test_half_are_dropped_and_as_many_added(count: int) -> None:
    generator = np.random.default_rng(0)
    images = np.sort(generator.choice(IMAGES, count, replace=False))
    left = drop_half(images, generator)
    assert len(left) == count // 2
    assert set(left) < set(images)
    more = add_as_many(images, IMAGES, generator)
    assert len(more) == len(set(more)) == 2 * count
    assert set(images) < set(more)
    for drawn in (left, more):
        assert (np.diff(drawn) > 0).all()


def test_at_most_half_of_the_others_are_added() -> None:
    images = np.arange(300)
    more = add_as_many(images, IMAGES, np.random.default_rng(0))
    assert len(more) == 300 + 50


def test_draws_differ_and_a_seed_repeats_them() -> None:
    images = np.arange(0, IMAGES, 9)
    first, again, other = (spoil_labels(images, IMAGES, seed) for seed in (3, 3, 4))
    assert len(first.missing) == len(first.extra) == LABEL_DRAWS
    for labels in (first.missing, first.extra):
        assert len({tuple(draw) for draw in labels}) == LABEL_DRAWS
    assert [draw.tolist() for draw in first.extra] == [draw.tolist() for draw in again.extra]
    assert [draw.tolist() for draw in first.extra] != [draw.tolist() for draw in other.extra]


def test_scores_are_those_of_numpy_and_scikit_learn() -> None:
    generator = np.random.default_rng(2)
    responses = np.round(generator.normal(size=IMAGES), 1)
    images = np.sort(generator.choice(IMAGES, 37, replace=False))
    scores = score(responses, images)
    assert scores.auprc == pytest.approx(average_precision_score(mark(images), responses))
    expected = np.corrcoef(mark(images), responses)[0, 1]
    assert scores.correlation == pytest.approx(expected, abs=1e-6)
    missing, extra = spoil(responses, images)
    spoiled = spoil_labels(images, IMAGES, seed=0)
    draws = [score(responses, draw) for draw in spoiled.missing]
    assert missing.auprc == pytest.approx(np.mean([draw.auprc for draw in draws]))
    assert missing.correlation == pytest.approx(np.mean([draw.correlation for draw in draws]))
    draws = [score(responses, draw) for draw in spoiled.extra]
    assert extra.correlation == pytest.approx(np.mean([draw.correlation for draw in draws]))
    # 74 of 400 are labelled, and count as the 37 that are right.
    share = 37 / IMAGES
    expected = [
        average_precision_score(
            mark(draw),
            responses,
            sample_weight=np.where(mark(draw), share / 74, (1 - share) / (IMAGES - 74)),
        )
        for draw in spoiled.extra
    ]
    assert extra.auprc == pytest.approx(np.mean(expected))


def test_a_right_name_falls_in_both_tests_by_what_the_paper_derives() -> None:
    """Of a unit that is its concept, half of the labels leave AUPRC ½ and correlation 1/√2."""
    images = np.arange(0, IMAGES, 20)
    responses = mark(images).astype(float)
    original = score(responses, images)
    missing, extra = spoil(responses, images)
    assert original.auprc == pytest.approx(1)
    assert original.correlation == pytest.approx(1, abs=1e-6)
    assert missing.auprc == pytest.approx(0.5)
    share = len(images) / IMAGES
    fall = ((1 - share) / (2 - share)) ** 0.5
    assert missing.correlation == pytest.approx(fall, abs=0.01)
    assert extra.auprc == pytest.approx(0.5, abs=0.06)
    assert missing.is_below(original)
    assert extra.is_below(original)


def test_the_area_under_the_roc_curve_would_not_notice_missing_labels() -> None:
    images = np.arange(0, IMAGES, 20)
    responses = mark(images) + 0.3 * np.random.default_rng(0).normal(size=IMAGES)
    half = drop_half(images, np.random.default_rng(0))
    assert roc_auc_score(mark(half), responses) > 0.97 * roc_auc_score(mark(images), responses)
    assert score(responses, half).is_below(score(responses, images))


def test_a_name_that_is_too_broad_fails_the_extra_label_test() -> None:
    """A unit for 10 images, named after 200 that hold them: any other 200 would do as well."""
    generator = np.random.default_rng(0)
    responses = generator.normal(size=IMAGES)
    responses[:10] += 20
    images = np.arange(200)
    original = score(responses, images)
    _, extra = spoil(responses, images)
    assert not extra.is_below(original)
    right = np.arange(10)
    missing, extra = spoil(responses, right)
    assert missing.is_below(score(responses, right))
    assert extra.is_below(score(responses, right))


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.5, 0.6])
def test_right_names_survive_and_chance_does_not_whatever_the_share(share: float) -> None:
    generator = np.random.default_rng(1)
    images = np.arange(round(share * IMAGES))
    noise = generator.normal(size=IMAGES)
    responses = 3 * mark(images) + noise
    missing, extra = spoil(responses, images)
    assert missing.is_below(score(responses, images))
    assert extra.is_below(score(responses, images))
    constant = np.ones(IMAGES)
    _, extra = spoil(constant, images)
    assert extra.auprc == pytest.approx(share)
    assert not extra.is_below(score(constant, images))


def test_both_scores_must_fall_by_a_twentieth() -> None:
    original = NameScores(0.5, 0.4)
    assert NameScores(0.47, 0.37).is_below(original)
    assert not NameScores(0.48, 0.1).is_below(original)
    assert not NameScores(0.1, 0.39).is_below(original)
