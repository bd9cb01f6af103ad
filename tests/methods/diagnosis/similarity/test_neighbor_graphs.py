"""Groups that were planted in one representation and scattered in the other."""

import numpy as np
import pytest

from sightline.methods.diagnosis.similarity.neighbor_graphs import (
    find_densest_prefix,
    find_first_eigenvector,
    find_groups,
    join_near_and_far,
    measure_togetherness,
    rank_image_neighbors,
)


def test_ranks_are_those_of_sorted_distances() -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(40, 6))
    ranks = rank_image_neighbors(features)
    centered = features - features.mean(0)
    for image in range(40):
        lengths = np.linalg.norm(centered, axis=1)
        similarity = centered @ centered[image] / (lengths * lengths[image])
        others = sorted(set(range(40)) - {image}, key=lambda other: -similarity[other])
        assert ranks[image, image] == -1
        assert [ranks[image, other] for other in others] == list(range(39))


def test_pairs_are_joined_by_the_relative_difference_of_ranks() -> None:
    near = np.array([[-1, 0, 1], [0, -1, 1], [1, 0, -1]], np.int32)
    far = np.array([[-1, 1, 0], [1, -1, 0], [0, 1, -1]], np.int32)
    weights = join_near_and_far(near, far, neighbor_count=1)
    # 0 and 1 are each other's first by the one and second by the other; 2's first is 1.
    expected = np.tanh(1.0)
    assert weights[0, 1] == pytest.approx(expected)
    assert weights[1, 2] == pytest.approx(expected / 2)
    assert weights[0, 2] == 0
    assert np.array_equal(weights, weights.T)


def test_the_first_eigenvector() -> None:
    rng = np.random.default_rng(2)
    graph = rng.random((30, 30)).astype(np.float32)
    graph = graph + graph.T
    _, vectors = np.linalg.eigh(graph.astype(np.float64))
    expected = vectors[:, -1] * np.sign(vectors[:, -1].sum())
    assert np.allclose(find_first_eigenvector(graph), expected, atol=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_a_planted_group_is_found_first(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(300, 24))
    first = shared + 0.3 * rng.normal(size=shared.shape)
    second = shared @ np.linalg.qr(rng.normal(size=(24, 24)))[0]
    second += 0.3 * rng.normal(size=second.shape)
    members = rng.choice(300, 25, replace=False)
    first[members] += 4 * rng.normal(size=24)
    groups = find_groups(rank_image_neighbors(first), rank_image_neighbors(second))
    best = groups[0]
    right = len(set(best.members.tolist()) & set(members.tolist()))
    assert right / len(best.members) >= 0.8
    assert right >= 18
    assert best.together > 0.8
    assert best.apart < 0.3


def test_the_same_representation_has_no_groups() -> None:
    features = np.random.default_rng(4).normal(size=(100, 12))
    ranks = rank_image_neighbors(features)
    assert find_groups(ranks, rank_image_neighbors(3 * features[:, ::-1])) == []


def test_togetherness_counts_members_among_the_nearest() -> None:
    ranks = rank_image_neighbors(np.array([[0, 1.0], [0.1, 1], [1, 0.1], [1, 0], [-1, -1]]))
    assert measure_togetherness(ranks, np.array([0, 1])) == 1
    assert measure_togetherness(ranks, np.array([0, 3])) == 0


def test_a_dense_group_wins_over_a_larger_loose_one() -> None:
    graph = np.full((12, 12), 0.3, np.float32)
    graph[:6, :6] = 1
    np.fill_diagonal(graph, 0)
    assert find_densest_prefix(graph) == 6
    assert find_densest_prefix(np.zeros((8, 8), np.float32)) == 0
    assert find_densest_prefix(graph[6:, 6:]) == 6
