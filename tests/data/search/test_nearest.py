"""Exact nearest neighbours against scikit-learn and the definition, in blocks and with ties."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from torch import Tensor

import sightline as sl
from sightline.data.search import candidates, nearest
from sightline.data.search.nearest import (
    Metric,
    find_nearest,
    measure_preservation,
    measure_vote_accuracy,
    pick_evenly_spaced,
    vote_classes,
)


def make_cloud(count: int, dimensions: int = 24, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dimensions, generator=generator) + 3


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("block_rows", [(1024, 4096), (7, 64)])
def test_equals_scikit_learn(
    metric: Metric, block_rows: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "QUERY_BLOCK_ROWS", block_rows[0])
    monkeypatch.setattr(candidates, "VECTOR_BLOCK_ROWS", block_rows[1])
    vectors = make_cloud(333)
    queries = make_cloud(20, seed=1)
    peer_metric = {"l2": "euclidean", "cosine": "cosine"}[metric]
    peer = NearestNeighbors(metric=peer_metric, algorithm="brute").fit(vectors.double().numpy())
    expected_distances, expected_indices = peer.kneighbors(queries.double().numpy(), 9)
    distances, indices = find_nearest(vectors, queries, 9, metric)
    assert np.array_equal(indices.numpy(), expected_indices)
    assert np.allclose(distances.numpy(), expected_distances, atol=1e-6)


def find_nearest_literally(
    vectors: Tensor, queries: Tensor, k: int, metric: Metric, exclude: Tensor | None = None
) -> list[list[int]]:
    """The definition, one query at a time."""
    indices: list[list[int]] = []
    for number, query in enumerate(queries.double()):
        allowed = list(range(len(vectors)))
        if exclude is not None:
            allowed.remove(int(exclude[number]))
        choice = vectors[allowed].double()
        if metric == "cosine":
            distances = 1 - torch.nn.functional.cosine_similarity(
                choice, query[None].expand_as(choice), dim=1, eps=1e-30
            )
        else:
            distances = torch.linalg.vector_norm(choice - query, dim=1)
        order = distances.argsort(stable=True)[:k]
        indices.append([allowed[i] for i in order.tolist()])
    return indices


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_precision_does_not_change_the_result(
    awkward_vectors: Tensor,
    normal_vectors: Tensor,
    metric: Metric,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nearest, "choose_matmul_dtype", lambda *_: dtype)
    # Two blocks that are divided into groups of 32, and a last one that is not.
    monkeypatch.setattr(candidates, "VECTOR_BLOCK_ROWS", 128)
    vectors = awkward_vectors
    exclude = torch.arange(0, 300, 23)
    queries = torch.cat([vectors[exclude], vectors[:2] * 0, normal_vectors[:2]])
    exclude = torch.cat([exclude, torch.tensor([5, 6, 299, 0])])

    def assert_equal(queries: Tensor, k: int, exclude: Tensor | None = None) -> None:
        expected = find_nearest_literally(vectors, queries, k, metric, exclude)
        assert find_nearest(vectors, queries, k, metric, exclude)[1].tolist() == expected

    assert_equal(queries, 2, exclude)
    monkeypatch.setattr(candidates, "MAX_CANDIDATE_PAIRS", 100)
    assert_equal(queries, 9)
    assert_equal(vectors[:8], 9)


def test_close_vectors_far_from_zero_keep_their_order() -> None:
    """x·q − ‖x‖²/2 loses here what tells them apart; the distances in float64 do not."""
    vectors = torch.full((12, 8), 100.0) + torch.arange(12)[:, None] * 1e-3
    assert find_nearest(vectors, vectors[:1], 4)[1].tolist() == [[0, 1, 2, 3]]


def test_ties_go_by_index_and_the_excluded_vector_is_left_out() -> None:
    vectors = torch.tensor([[0.0, 0], [1, 0], [0, 1], [-1, 0], [0, -1], [0, 0]])
    assert find_nearest(vectors, vectors[:1], 6)[1].tolist() == [[0, 5, 1, 2, 3, 4]]
    _, indices = find_nearest(vectors, vectors[[0, 5]], 2, exclude=torch.tensor([0, 5]))
    assert indices.tolist() == [[5, 1], [0, 1]]


def test_zeros_are_at_distance_1_from_all() -> None:
    vectors = torch.tensor([[0.0, 0], [1, 1], [-1, 1]])
    distances, indices = find_nearest(vectors, torch.tensor([[1.0, 0], [0, 0]]), 3, "cosine")
    assert indices.tolist() == [[1, 0, 2], [0, 1, 2]]
    assert distances[0].tolist() == pytest.approx([1 - 0.5**0.5, 1, 1 + 0.5**0.5])
    assert distances[1].tolist() == [1, 1, 1]


def test_refusals() -> None:
    with pytest.raises(sl.SightlineError, match="k is 4; it must lie between 1 and 3"):
        find_nearest(make_cloud(3), make_cloud(1), 4)
    with pytest.raises(sl.SightlineError, match="k is 3; it must lie between 1 and 2"):
        find_nearest(make_cloud(3), make_cloud(1), 3, exclude=torch.tensor([0]))
    with pytest.raises(sl.SightlineError, match="a query has 5 numbers, the stored vectors 24"):
        find_nearest(make_cloud(3), make_cloud(1, 5), 2)
    for value in (torch.nan, torch.inf):
        broken = torch.cat([make_cloud(3), torch.full((1, 24), value)])
        with pytest.raises(
            sl.SightlineError, match="the stored vectors hold NaN or infinite values"
        ):
            find_nearest(broken, make_cloud(1), 2)
        with pytest.raises(sl.SightlineError, match="a query holds NaN or infinite values"):
            find_nearest(make_cloud(3), broken, 2)


# ── measures ──


def test_evenly_spaced_numbers() -> None:
    assert pick_evenly_spaced(11, 3).tolist() == [0, 5, 10]
    assert pick_evenly_spaced(3, 11).tolist() == [0, 1, 2]
    assert pick_evenly_spaced(5, 1).tolist() == [0]


def test_a_draw_of_votes_goes_to_the_nearest() -> None:
    classes = torch.tensor([4, 7, 7, 2])
    neighbors = torch.tensor([[0, 1, 2], [0, 3, 1], [3, 1, 0]])
    assert vote_classes(classes, neighbors).tolist() == [7, 4, 2]


@pytest.mark.parametrize("k", [1, 3])
def test_accuracy_is_leave_one_out(k: int) -> None:
    classes = torch.arange(60) % 3
    vectors = make_cloud(60, 3) + classes[:, None] * torch.tensor([1.0, -1, 0.5])
    hits = 0
    for i in range(60):
        neighbors = [j for j in range(60) if j != i]
        neighbors.sort(key=lambda j: float((vectors[j] - vectors[i]).double().norm()))
        votes = [int(classes[j]) for j in neighbors[:k]]
        winner = max(votes, key=lambda vote: (votes.count(vote), -votes.index(vote)))
        hits += winner == int(classes[i])
    assert measure_vote_accuracy(vectors, classes, k, "l2") == pytest.approx(hits / 60)

    if k == 1:
        peer_hits = 0
        for i in range(60):
            keep = np.arange(60) != i
            peer = KNeighborsClassifier(1).fit(vectors.numpy()[keep], classes.numpy()[keep])
            peer_hits += int(peer.predict(vectors[i : i + 1].numpy())[0] == classes[i])
        assert hits == peer_hits

    unknown = torch.cat([classes, torch.full((5,), -1)])
    padded = torch.cat([vectors, vectors[:5]])
    assert measure_vote_accuracy(padded, unknown, k, "l2") == pytest.approx(hits / 60)


def test_few_vectors_vote_with_all_others() -> None:
    vectors = torch.tensor([[0.0], [1], [3], [90]])
    classes = torch.tensor([0, 0, 0, 1])
    assert measure_vote_accuracy(vectors, classes, 10, "l2") == 0.75
    assert np.isnan(measure_vote_accuracy(vectors[:1], classes[:1], 5, "l2"))
    assert np.isnan(measure_vote_accuracy(vectors, torch.tensor([-1, 2, -1, -1]), 5, "l2"))


def test_preservation_is_the_share_of_common_neighbours() -> None:
    vectors = make_cloud(40, 2)
    assert measure_preservation(vectors, vectors * 3, 5) == 1
    shuffled = vectors[torch.randperm(40, generator=torch.Generator().manual_seed(2))]
    shares: list[float] = []
    for i in range(40):
        by_vector = (vectors - vectors[i]).norm(dim=1).argsort()[1:6]
        by_position = (shuffled - shuffled[i]).norm(dim=1).argsort()[1:6]
        shares.append(len(set(by_vector.tolist()) & set(by_position.tolist())) / 5)
    assert measure_preservation(vectors, shuffled, 5) == pytest.approx(sum(shares) / 40)
