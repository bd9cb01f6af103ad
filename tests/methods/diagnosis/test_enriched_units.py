"""Units that respond more to mistakes, counted pair by pair."""

import numpy as np
import pytest

from sightline.methods.diagnosis.enriched_units import (
    draw_random_units,
    find_enriched_units,
    measure_separation,
    score_separation,
)

RNG = np.random.default_rng(6)


def test_separation_is_the_share_of_pairs() -> None:
    first = RNG.integers(0, 4, (7, 3)).astype(np.float16)
    second = RNG.integers(0, 4, (5, 3)).astype(np.float16)
    for unit in range(3):
        pairs = [
            1.0 if a > b else 0.5 if a == b else 0.0
            for a in first[:, unit].tolist()
            for b in second[:, unit].tolist()
        ]
        assert measure_separation(first, second)[unit] == pytest.approx(np.mean(pairs))


def test_the_score_of_chance_has_a_deviation_of_one() -> None:
    scores = [
        score_separation(measure_separation(RNG.random((12, 1)), RNG.random((20, 1))), 12, 20)[0]
        for _ in range(800)
    ]
    assert np.std(scores) == pytest.approx(1, abs=0.1)
    assert abs(np.mean(scores)) < 0.15


def test_a_planted_unit_is_found_and_others_are_not() -> None:
    responses = {"a": RNG.random((200, 30)), "b": RNG.random((200, 40))}
    mistakes = np.arange(20)
    right = np.arange(50, 120)
    others = np.arange(120, 200)
    responses["b"][mistakes, 17] += 0.8
    responses["b"][right[:40], 17] += 0.8
    # A unit of the class itself: right images have more of it.
    responses["a"][mistakes, 4] += 0.5
    responses["a"][right, 4] += 1.0
    units = find_enriched_units(responses, mistakes, right, others)
    assert (units[0].layer, units[0].unit) == ("b", 17)
    assert units[0].separation > 0.9
    assert 0.6 < units[0].class_separation < 0.9
    assert ("a", 4) not in {(unit.layer, unit.unit) for unit in units}
    assert len(units) <= 3


def test_random_units_are_of_the_same_layers_and_others() -> None:
    chosen = [("a", 3), ("a", 4), ("b", 0)]
    for drawn in draw_random_units({"a": 8, "b": 3}, chosen, 30, seed=1):
        assert [layer for layer, _ in drawn] == ["a", "a", "b"]
        assert not set(drawn) & set(chosen)
        assert len(set(drawn)) == 3
