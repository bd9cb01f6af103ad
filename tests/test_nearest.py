"""Exact nearest neighbours against scikit-learn, in blocks and with ties."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from torch import Tensor

import sightline as sl
from sightline import nearest as engine
from sightline.nearest import accuracy, nearest, preserved, voted


def cloud(count: int, size: int = 24, seed: int = 0) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed)) + 3


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("blocks", [(256, 16_384), (7, 50)])
def test_sklearn_agrees(metric: engine.Metric, blocks: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "QUERIES", blocks[0])
    monkeypatch.setattr(engine, "VECTORS", blocks[1])
    vectors, queries = cloud(333), cloud(20, seed=1)
    referee = NearestNeighbors(metric={"l2": "euclidean"}.get(metric, metric), algorithm="brute").fit(vectors.double().numpy())
    expected, at = referee.kneighbors(queries.double().numpy(), 9)
    distance, index = nearest(vectors, queries, 9, metric)
    assert np.array_equal(index.numpy(), at)
    assert np.allclose(distance.numpy(), expected, atol=1e-6)


def test_close_vectors_far_from_zero_keep_their_order() -> None:
    """x·q − ‖x‖²/2 loses here what tells them apart; the distances in double precision do not."""
    vectors = torch.full((12, 8), 100.0) + torch.arange(12)[:, None] * 1e-3
    assert nearest(vectors, vectors[:1], 4)[1].tolist() == [[0, 1, 2, 3]]


def test_ties_go_by_index_and_own_is_left_out() -> None:
    vectors = torch.tensor([[0.0, 0], [1, 0], [0, 1], [-1, 0], [0, -1], [0, 0]])
    assert nearest(vectors, vectors[:1], 6)[1].tolist() == [[0, 5, 1, 2, 3, 4]]
    assert nearest(vectors, vectors[[0, 5]], 2, own=torch.tensor([0, 5]))[1].tolist() == [[5, 1], [0, 1]]


def test_zeros_point_nowhere() -> None:
    distance, index = nearest(torch.tensor([[0.0, 0], [1, 1]]), torch.tensor([[1.0, 0]]), 2, "cosine")
    assert index.tolist() == [[1, 0]]
    assert distance[0, 1] == 1


def test_refuses_more_than_there_are() -> None:
    with pytest.raises(sl.SightlineError, match="k is 4; it must lie between 1 and 3"):
        nearest(cloud(3), cloud(1), 4)
    with pytest.raises(sl.SightlineError, match="k is 3; it must lie between 1 and 2"):
        nearest(cloud(3), cloud(1), 3, own=torch.tensor([0]))
    with pytest.raises(sl.SightlineError, match="a query has 5 numbers, the stored vectors 24"):
        nearest(cloud(3), cloud(1, 5), 2)


def test_vote_and_its_draws() -> None:
    classes = torch.tensor([4, 7, 7, 2])
    assert voted(classes, torch.tensor([[0, 1, 2], [0, 3, 1], [3, 1, 0]])).tolist() == [7, 4, 2]


@pytest.mark.parametrize("k", [1, 3])
def test_accuracy_is_leave_one_out(k: int) -> None:
    vectors, classes = cloud(60, 3), torch.arange(60) % 3
    vectors += classes[:, None] * torch.tensor([1.0, -1, 0.5])
    hits = 0
    for i in range(60):
        others = [j for j in range(60) if j != i]
        others.sort(key=lambda j: float((vectors[j] - vectors[i]).double().norm()))
        votes = [int(classes[j]) for j in others[:k]]
        hits += max(votes, key=lambda vote: (votes.count(vote), -votes.index(vote))) == int(classes[i])
    assert accuracy(vectors, classes, k, "l2") == pytest.approx(hits / 60)
    if k == 1:
        rest = [
            KNeighborsClassifier(1).fit(vectors[[j for j in range(60) if j != i]].numpy(), np.delete(classes.numpy(), i)) for i in range(60)
        ]
        assert hits == sum(int(one.predict(vectors[i : i + 1].numpy())[0] == classes[i]) for i, one in enumerate(rest))
    unknown = torch.cat([classes, torch.full((5,), -1)])
    assert accuracy(torch.cat([vectors, vectors[:5]]), unknown, k, "l2") == pytest.approx(hits / 60)


def test_preserved_is_the_share_of_kept_neighbours() -> None:
    vectors = cloud(40, 2)
    assert preserved(vectors, vectors * 3, 5) == 1
    shuffled = vectors[torch.randperm(40, generator=torch.Generator().manual_seed(2))]
    expected = [
        len(
            set((vectors - vectors[i]).norm(dim=1).argsort()[1:6].tolist())
            & set((shuffled - shuffled[i]).norm(dim=1).argsort()[1:6].tolist())
        )
        / 5
        for i in range(40)
    ]
    assert preserved(vectors, shuffled, 5) == pytest.approx(sum(expected) / 40)
