"""A unit counts once, by its best match, and the units behind a group are those that changed."""

import numpy as np
import pytest

from sightline.methods.diagnosis.similarity.prediction_flips import FlipGroup
from sightline.methods.diagnosis.similarity.unit_changes import (
    count_born_units,
    find_best_new_matches,
    find_largest_changes,
    list_lost_units,
    list_unit_changes,
    rank_changed_units,
)
from sightline.methods.diagnosis.similarity.unit_matching import (
    find_likes,
    find_moves,
    match_units,
    standardize_units,
)

RNG = np.random.default_rng(8)
CAUSES = RNG.normal(size=(300, 8))


def respond(*causes: int) -> np.ndarray:
    """Units that respond to hidden causes, 300×units, each with a little noise of its own."""
    return standardize_units(CAUSES[:, list(causes)] + 0.2 * RNG.normal(size=(300, len(causes))))


def make_matches() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], list]:
    """Layer a stands beside x and y. Cause 3 is lost, cause 7 new, and 2 and 5 have moved."""
    old = {"a": respond(0, 1, 2, 3), "b": respond(4, 5)}
    new = {"x": respond(1, 0, 7), "y": respond(2, 4, 0), "z": respond(5)}
    likes = find_likes(old, new)
    matches = [
        find_moves(match_units(old[first], new[second], first, second), *likes)
        for first, second in (("a", "x"), ("a", "y"), ("b", "y"))
    ]
    return old, new, matches


def test_a_unit_counts_once_by_its_best_match() -> None:
    _, _, matches = make_matches()
    changes = {(change.layer, change.unit): change for change in list_unit_changes(matches)}
    assert len(changes) == 6
    fates = {key: change.fate for key, change in changes.items()}
    assert fates == {
        ("a", 0): "kept", ("a", 1): "kept", ("a", 2): "kept", ("a", 3): "died",
        ("b", 0): "kept", ("b", 1): "moved",
    }  # fmt: skip
    assert changes["a", 1].partner == ("x", 0)
    assert changes["a", 2].partner == ("y", 0)
    assert changes["b", 1].partner == ("z", 0)
    assert changes["b", 1].correlation > 0.9
    assert changes["a", 3].partner is None
    assert changes["a", 3].correlation < 0.5
    assert count_born_units(matches) == 1


def test_lost_units_come_first_and_those_of_early_layers_before_others() -> None:
    _, _, matches = make_matches()
    order = [(change.layer, change.unit) for change in list_unit_changes(matches)]
    assert order[:2] == [("a", 3), ("b", 1)]
    kept = list_unit_changes(matches)[2:]
    assert [change.correlation for change in kept] == sorted(change.correlation for change in kept)


def test_best_matches_and_lost_units() -> None:
    _, _, matches = make_matches()
    best = find_best_new_matches(matches)
    assert best["x"].tolist() == [0, 0, 0]
    assert best["y"].tolist()[:2] == [1, 2]
    assert {layer: units.tolist() for layer, units in list_lost_units(matches).items()} == {
        "a": [3],
        "b": [1],
    }


def test_the_units_behind_a_group_are_those_that_changed() -> None:
    old, new, matches = make_matches()
    members = np.array([3, 50, 51, 52, 200])
    new["x"][members, 0] += 6
    old["a"][members, 3] += 8
    groups = [FlipGroup("a → b", 0, 1, members, 0.5, 0.5)]
    (units,) = rank_changed_units(old, new, matches, groups)
    first, second = units[:2]
    places = {(unit.old, unit.new): unit for unit in (first, second)}
    grown = places[("a", 1), ("x", 0)]
    lost = places[("a", 3), None]
    assert grown.change > 2
    assert lost.change < -2
    assert len({(unit.old, unit.new) for unit in units}) == len(units)
    assert rank_changed_units(old, new, matches, []) == []


def test_the_largest_change_is_that_of_the_planted_unit() -> None:
    rng = np.random.default_rng(3)
    difference = rng.normal(size=(200, 12)).astype(np.float32)
    members = np.array([4, 8, 15, 16, 23, 42])
    difference[members, 7] += 3
    unit, change, surprise = find_largest_changes(difference, members)[0]
    assert unit == 7
    assert change == pytest.approx(difference[members, 7].mean(), abs=1e-5)
    assert surprise > 5


def test_a_unit_that_one_image_drives_is_no_surprise() -> None:
    rng = np.random.default_rng(5)
    difference = rng.normal(size=(200, 12)).astype(np.float32)
    members = np.arange(40)
    difference[members, 7] += 1
    difference[:, 3] = 0
    difference[11, 3] = 14
    unit, _, _ = find_largest_changes(difference, members)[0]
    assert unit == 7
