"""Readability against all pairs of images, and on units that are readable by construction."""

from typing import Any

import numpy as np
import pytest

import sightline as sl
from sightline.methods.units.readability import (
    STRONGEST_IMAGES,
    compute_directions,
    measure_agreement,
    measure_monosemanticity,
    measure_readability,
)

IMAGES, CLASSES, DIMENSIONS = 120, 6, 11


@pytest.fixture
def classes() -> Any:
    """The class of each image; the classes are of different sizes."""
    return np.repeat(np.arange(CLASSES), [40, 30, 20, 15, 10, 5])


@pytest.fixture
def features(classes: Any) -> Any:
    """Positive features that are alike within a class, as those after a ReLU."""
    generator = np.random.default_rng(0)
    centers = generator.random((CLASSES, DIMENSIONS))
    noise = 0.1 * generator.normal(size=(IMAGES, DIMENSIONS))
    return (3 + centers[classes] + noise).astype(np.float32)


@pytest.fixture
def responses(classes: Any) -> Any:
    """Units 0 to 3 fire for one class, units 4 to 15 at random."""
    generator = np.random.default_rng(1)
    values = generator.random((IMAGES, 16))
    for unit in range(4):
        values[:, unit] = (classes == unit) * (1 + values[:, unit]) + 0.05 * values[:, unit]
    return values.astype(np.float16)


def find_strongest(responses: Any) -> Any:
    """The ids of each unit's strongest images, K×units."""
    return np.argsort(-responses, axis=0, kind="stable")[:STRONGEST_IMAGES]


def test_units_of_one_class_are_readable_and_random_ones_are_not(
    responses: Any, features: Any
) -> None:
    found = measure_readability(find_strongest(responses), features, responses=responses)
    assert found.is_readable[:4].all()
    assert found.is_readable[4:].mean() <= 0.2  # one in twenty, by chance
    assert found.agreement[:4].min() > 0.6
    assert found.agreement[4:].max() < 0.4
    assert abs(found.chance) < 0.05
    assert found.chance < found.chance_limit < 0.3
    assert found.monosemanticity is not None
    assert found.monosemanticity[:4].min() > 0.5
    assert np.abs(found.monosemanticity[4:] - found.chance).max() < 0.05


def test_agreement_is_the_mean_of_all_pairs(features: Any) -> None:
    directions = compute_directions(features)
    images = np.array([3, 50, 7, 119, -1, -1])
    centred = features.astype(float) - features.astype(float).mean(0)
    pairs: list[float] = []
    for first in (3, 50, 7, 119):
        for second in (3, 50, 7, 119):
            if first != second:
                product = centred[first] @ centred[second]
                lengths = np.linalg.norm(centred[first]) * np.linalg.norm(centred[second])
                pairs.append(product / lengths)
    assert measure_agreement(directions, images) == pytest.approx(np.mean(pairs))
    assert np.isnan(measure_agreement(directions, np.array([4, -1])))


def test_monosemanticity_is_the_weighted_mean_of_all_pairs(features: Any, responses: Any) -> None:
    """Equation of Pach 2025, pair by pair."""
    directions = compute_directions(features)[:30]
    values = responses[:30, [2, 9]].astype(float) - 0.3
    found = measure_monosemanticity(directions, values)
    for unit in range(2):
        weights = (values[:, unit] - values[:, unit].min()) / np.ptp(values[:, unit])
        total = 0.0
        weight = 0.0
        for first in range(30):
            for second in range(first + 1, 30):
                pair_weight = weights[first] * weights[second]
                total += pair_weight * float(directions[first] @ directions[second])
                weight += pair_weight
        assert found[unit] == pytest.approx(total / weight)


def test_chance_is_the_mean_of_all_pairs_and_repeats(features: Any, responses: Any) -> None:
    strongest = find_strongest(responses)
    found = measure_readability(strongest, features)
    directions = compute_directions(features)
    cosines = directions @ directions.T
    mean = (cosines.sum() - np.trace(cosines)) / (IMAGES * (IMAGES - 1))
    assert found.chance == pytest.approx(mean)
    assert found.monosemanticity is None
    assert measure_readability(strongest, features).chance_limit == found.chance_limit
    assert measure_readability(strongest, features, seed=1).chance_limit != found.chance_limit


def test_units_that_never_respond_have_no_readability(features: Any) -> None:
    strongest = np.full((STRONGEST_IMAGES, 2), -1)
    strongest[:2, 1] = [0, 1]
    found = measure_readability(strongest, features, responses=np.zeros((IMAGES, 2)))
    assert np.isnan(found.agreement[0])
    assert not found.is_readable[0]
    assert found.agreement[1] > 0.5
    assert found.monosemanticity is not None
    assert np.isnan(found.monosemanticity).all()


def test_images_whose_features_are_all_alike() -> None:
    found = measure_readability(np.array([[0], [1]]), np.ones((4, 3)))
    assert found.agreement.tolist() == [0]
    assert not found.is_readable.any()


def test_one_image_is_too_few() -> None:
    with pytest.raises(sl.SightlineError, match="fewer than two"):
        compute_directions(np.ones((1, 4)))
