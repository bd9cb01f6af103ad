"""Units that were permuted, planted, split and moved on purpose are found as such."""

from itertools import permutations

import numpy as np
import pytest

from sightline.methods.diagnosis.similarity.unit_matching import (
    find_likes,
    find_moves,
    is_explained_by_both,
    match_units,
    standardize_units,
)

RNG = np.random.default_rng(8)


def make_responses(units: int, images: int = 400) -> np.ndarray:
    """Sparse responses that have little in common."""
    return np.maximum(0, RNG.normal(size=(images, units)) - 0.3).astype(np.float32)


def test_permuted_units_find_their_partners() -> None:
    old = make_responses(30)
    order = RNG.permutation(30)
    permuted = (2 * old[:, order] + 1).astype(np.float16)
    match = match_units(standardize_units(old), standardize_units(permuted), "a", "b")
    assert np.array_equal(match.partners, np.argsort(order))
    assert np.array_equal(match.new_partners, order)
    assert np.allclose(match.correlations, 1, atol=1e-3)
    assert set(match.fates) == set(match.origins) == {"kept"}


def test_the_match_is_the_best_of_all() -> None:
    old = make_responses(5)
    new = old @ RNG.normal(size=(5, 6)).astype(np.float32) ** 2 + make_responses(6)
    correlations = np.corrcoef(old.T, new.T)[:5, 5:]
    best = max(
        permutations(range(6), 5),
        key=lambda order: sum(correlations[row, column] for row, column in enumerate(order)),
    )
    match = match_units(standardize_units(old), standardize_units(new))
    for unit, partner in enumerate(best):
        if correlations[unit, partner] >= 0.5:
            assert match.partners[unit] == partner
            assert match.correlations[unit] == pytest.approx(correlations[unit, partner], abs=1e-5)
        else:
            assert match.partners[unit] == -1


def test_a_rewired_unit_is_the_most_changed() -> None:
    old = make_responses(20)
    new = old + 0.1 * make_responses(20)
    new[:, 7] = make_responses(1)[:, 0]
    match = match_units(standardize_units(old), standardize_units(new))
    assert match.correlations.argmin() == 7
    assert match.list_fates("died") == [7]
    assert match.list_origins("born") == [7]


def test_dead_units_are_neither_born_nor_died() -> None:
    old = make_responses(6)
    new = old.copy()
    old[:, 2] = 3
    new[:, 2] = 0
    new[:, 4] = 1
    match = match_units(standardize_units(old), standardize_units(new))
    assert match.list_fates("dead") == [2]
    assert match.list_fates("died") == [4]
    assert match.list_origins("dead") == [2, 4]


def test_a_split_unit_has_two_parts() -> None:
    first = make_responses(1)[:, 0]
    second = make_responses(1)[:, 0]
    rest = make_responses(4)
    old = np.column_stack([rest, first + second])
    new = np.column_stack([first, rest, second])
    match = match_units(standardize_units(old), standardize_units(new))
    assert match.parts == {4: (0, 5)}
    assert match.fates[4] == "split"
    assert match.list_origins("split") == [0, 5]
    back = match_units(standardize_units(new), standardize_units(old))
    assert back.sources == {4: (0, 5)}
    assert back.list_fates("merged") == [0, 5]


def test_regression_on_two_units_is_that_of_least_squares() -> None:
    first, second = RNG.normal(size=(2, 4000))
    third = 0.8 * first + 0.7 * second + 0.3 * RNG.normal(size=4000)
    values = np.stack([third, first, second])
    correlation = np.corrcoef(values)
    design = np.stack([first, second], 1)
    weights, *_ = np.linalg.lstsq(design, third, rcond=None)
    share = 1 - np.var(third - design @ weights) / np.var(third)
    assert share - max(correlation[0, 1:]) ** 2 > 0.1
    assert is_explained_by_both(correlation[0, 1], correlation[0, 2], correlation[1, 2])
    # The second one says nothing that the first does not say.
    assert not is_explained_by_both(0.9, 0.81, 0.9)
    assert not is_explained_by_both(0.3, 0.3, 0.0)


def test_a_unit_of_another_layer_has_moved() -> None:
    old = {"a": make_responses(8), "b": make_responses(9)}
    new = {"a": old["a"].copy(), "b": old["b"].copy()}
    new["b"][:, 3] = old["a"][:, 5]
    new["a"][:, 5] = make_responses(1)[:, 0]
    old = {layer: standardize_units(responses) for layer, responses in old.items()}
    new = {layer: standardize_units(responses) for layer, responses in new.items()}
    likes = find_likes(old, new)
    match = find_moves(match_units(old["a"], new["a"], "a", "a"), *likes)
    correlation = (old["a"][:, 5] * new["b"][:, 3]).mean()
    assert match.correlations[5] == pytest.approx(correlation, abs=1e-5)
    assert match.moves == {5: ("b", 3)}
    assert match.fates[5] == "moved"
    assert match.list_origins("born") == [5]
    other = find_moves(match_units(old["b"], new["b"], "b", "b"), *likes)
    assert other.arrivals == {3: ("a", 5)}
    # A unit whose like has another partner in the layer beside its own has not moved.
    doubled = {"a": np.column_stack([old["a"][:, 0], old["a"][:, 0]])}
    twins = match_units(doubled["a"], new["a"], "a", "a")
    moved = find_moves(twins, *find_likes(doubled, {"a": new["a"]}))
    assert len(moved.list_fates("died")) == 1
    assert moved.moves == {}
    assert other.list_fates("died") == [3]


def test_units_that_nothing_lifts_above_0_are_dead() -> None:
    responses = np.maximum(0, RNG.normal(size=(40, 5)))
    responses[:, 1] = np.where(np.arange(40) < 3, -0.5, 0)  # 0 by its padding
    responses[:, 2] = -np.exp(RNG.normal(size=40))  # a layer may be negative throughout, and vary
    responses[:, 3] = np.where(np.arange(40) < 3, 2, 6)  # full for most images, as ReLU6 is
    responses[:, 4] = np.where(np.arange(40) < 3, 2, 0)  # selective
    alive = standardize_units(responses).any(0)
    assert alive.tolist() == [True, False, True, True, True]
