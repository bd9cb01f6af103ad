"""Exact nearest neighbours against scikit-learn, in blocks and with ties."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from torch import Tensor

import sightline as sl
from sightline.data.search import candidates as engine
from sightline.data.search import nearest as search
from sightline.data.search.nearest import (
    Metric,
    find_nearest,
    measure_preservation,
    measure_vote_accuracy,
    vote_classes,
)


def cloud(count: int, size: int = 24, seed: int = 0) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed)) + 3


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("blocks", [(1024, 4096), (7, 64)])
def test_sklearn_agrees(
    metric: Metric, blocks: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "QUERY_BLOCK_ROWS", blocks[0])
    monkeypatch.setattr(engine, "VECTOR_BLOCK_ROWS", blocks[1])
    vectors, queries = cloud(333), cloud(20, seed=1)
    referee = NearestNeighbors(
        metric={"l2": "euclidean"}.get(metric, metric), algorithm="brute"
    ).fit(vectors.double().numpy())
    expected, at = referee.kneighbors(queries.double().numpy(), 9)
    distance, index = find_nearest(vectors, queries, 9, metric)
    assert np.array_equal(index.numpy(), at)
    assert np.allclose(distance.numpy(), expected, atol=1e-6)


def literal(
    vectors: Tensor, queries: Tensor, k: int, metric: Metric, own: Tensor | None = None
) -> list[list[int]]:
    """The definition, a pair at a time."""
    answers: list[list[int]] = []
    for number, query in enumerate(queries.double()):
        others = [i for i in range(len(vectors)) if own is None or i != int(own[number])]
        chosen = vectors[others].double()
        if metric == "cosine":
            away = 1 - torch.nn.functional.cosine_similarity(
                chosen, query[None].expand_as(chosen), dim=1, eps=1e-30
            )
        else:
            away = torch.linalg.vector_norm(chosen - query, dim=1)
        answers.append([others[i] for i in away.argsort(stable=True)[:k].tolist()])
    return answers


def awkward(kind: str, count: int = 300, size: int = 33) -> Tensor:
    """Vectors that rounding to eight bits confuses."""
    generator = torch.Generator().manual_seed(3)
    plain = torch.randn(count, size, generator=generator)
    which = torch.randint(5, (count,), generator=generator)
    return {
        "plain": plain,
        "near ties": torch.ones(count, size) + 1e-4 * plain,
        "duplicates": plain[:5][which],
        "alike": torch.ones(count, size),
        "zeros": plain * (which > 1)[:, None],
        "sizes": plain * 10.0 ** (8 * which - 16)[:, None],
        "one giant": plain * torch.where(torch.arange(count) == 70, 1e12, 1)[:, None],
        "huge": plain / plain.abs().max() * 3e38,
        "tiny": plain * 1e-30,
        "denormal": plain * 1e-40,
        "far away": 1e6 + plain,
        "no negatives": plain.relu(),
    }[kind]


KINDS = [
    "plain",
    "near ties",
    "duplicates",
    "alike",
    "zeros",
    "sizes",
    "one giant",
    "huge",
    "tiny",
    "denormal",
    "far away",
    "no negatives",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("number", [torch.bfloat16, torch.float32, torch.float64])
def test_no_precision_changes_the_answer(
    kind: str, metric: Metric, number: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "choose_matmul_dtype", lambda *_: number)
    monkeypatch.setattr(
        engine, "VECTOR_BLOCK_ROWS", 128
    )  # groups of 32 in blocks, and a last block without
    vectors, own = awkward(kind), torch.arange(0, 300, 23)
    queries = torch.cat([vectors[own], vectors[:2] * 0, awkward("plain")[:2]])
    own = torch.cat([own, torch.tensor([5, 6, 299, 0])])
    assert find_nearest(vectors, queries, 2, metric, own)[1].tolist() == literal(
        vectors, queries, 2, metric, own
    )
    monkeypatch.setattr(engine, "MAX_HELD_CANDIDATES", 100)
    assert find_nearest(vectors, queries, 9, metric)[1].tolist() == literal(
        vectors, queries, 9, metric
    )
    assert find_nearest(vectors, vectors[:8], 9, metric)[1].tolist() == literal(
        vectors, vectors[:8], 9, metric
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_scores_are_within_their_bound(kind: str, number: torch.dtype, metric: Metric) -> None:
    vectors, queries = awkward(kind), torch.cat([awkward(kind)[:9] * 0.7, awkward("plain")[:9]])
    of_vectors, of_queries = search.scale_vectors(vectors, queries, metric)
    rows, asked = (
        of_vectors.make_block(0, 300, number, are_queries=False),
        of_queries.make_block(0, 18, number, are_queries=True),
    )
    scores = (asked.rows @ rows.rows.T).double()
    x, q = (of.vectors.double() * of.factors.double()[:, None] for of in (of_vectors, of_queries))
    true = -(
        torch.cdist(q, x, compute_mode="donot_use_mm_for_euclid_dist").square() / 2
        + of_vectors.penalties
        + of_queries.penalties[:, None]
    )
    bound = asked.bound_errors(rows, 300).double() + torch.finfo(number).eps / 2 * scores.abs()
    assert ((scores - true).abs() <= bound).all()
    assert bound.median() < (0.05 if number == torch.bfloat16 else 1e-4)


def test_few_are_left_to_put_in_order() -> None:
    vectors, left = cloud(4096, 128), list[int]()
    points = search.scale_vectors(vectors, vectors[:80], "l2")
    for number in (torch.bfloat16, torch.float32):
        query, _ = engine.find_candidates(
            *points,
            5,
            number,
            exclude=None,
            select_nearest=lambda *_: pytest.fail("too many to hold"),
        )
        left.append(len(query))
    assert 5 * 80 <= left[1] < 6 * 80  # single precision hardly doubts
    assert left[1] < left[0] < 20 * 80


def test_what_torch_makes_less_of_is_done_in_double() -> None:
    torch.set_float32_matmul_precision("medium")
    try:
        assert (
            engine.choose_matmul_dtype(1000, 512) == torch.bfloat16 or not engine.is_bfloat16_fast()
        )
        assert engine.choose_matmul_dtype(1, 512) == torch.float64
    finally:
        torch.set_float32_matmul_precision("highest")
    assert engine.choose_matmul_dtype(1, 512) == torch.float32


def test_close_vectors_far_from_zero_keep_their_order() -> None:
    """x·q − ‖x‖²/2 loses here what tells them apart; the distances in double precision do not."""
    vectors = torch.full((12, 8), 100.0) + torch.arange(12)[:, None] * 1e-3
    assert find_nearest(vectors, vectors[:1], 4)[1].tolist() == [[0, 1, 2, 3]]


def test_ties_go_by_index_and_own_is_left_out() -> None:
    vectors = torch.tensor([[0.0, 0], [1, 0], [0, 1], [-1, 0], [0, -1], [0, 0]])
    assert find_nearest(vectors, vectors[:1], 6)[1].tolist() == [[0, 5, 1, 2, 3, 4]]
    assert find_nearest(vectors, vectors[[0, 5]], 2, exclude=torch.tensor([0, 5]))[1].tolist() == [
        [5, 1],
        [0, 1],
    ]


def test_zeros_point_nowhere() -> None:
    distance, index = find_nearest(
        torch.tensor([[0.0, 0], [1, 1]]), torch.tensor([[1.0, 0]]), 2, "cosine"
    )
    assert index.tolist() == [[1, 0]]
    assert distance[0, 1] == 1


def test_refuses_more_than_there_are() -> None:
    with pytest.raises(sl.SightlineError, match="k is 4; it must lie between 1 and 3"):
        find_nearest(cloud(3), cloud(1), 4)
    with pytest.raises(sl.SightlineError, match="k is 3; it must lie between 1 and 2"):
        find_nearest(cloud(3), cloud(1), 3, exclude=torch.tensor([0]))
    with pytest.raises(sl.SightlineError, match="a query has 5 numbers, the stored vectors 24"):
        find_nearest(cloud(3), cloud(1, 5), 2)
    for value in (torch.nan, torch.inf):
        broken = torch.cat([cloud(3), torch.full((1, 24), value)])
        with pytest.raises(
            sl.SightlineError, match="the stored vectors hold values that are no finite numbers"
        ):
            find_nearest(broken, cloud(1), 2)
        with pytest.raises(
            sl.SightlineError, match="a query holds values that are no finite numbers"
        ):
            find_nearest(cloud(3), broken, 2)


def test_vote_and_its_draws() -> None:
    classes = torch.tensor([4, 7, 7, 2])
    assert vote_classes(classes, torch.tensor([[0, 1, 2], [0, 3, 1], [3, 1, 0]])).tolist() == [
        7,
        4,
        2,
    ]


@pytest.mark.parametrize("k", [1, 3])
def test_accuracy_is_leave_one_out(k: int) -> None:
    vectors, classes = cloud(60, 3), torch.arange(60) % 3
    vectors += classes[:, None] * torch.tensor([1.0, -1, 0.5])
    hits = 0
    for i in range(60):
        others = [j for j in range(60) if j != i]
        others.sort(key=lambda j: float((vectors[j] - vectors[i]).double().norm()))
        votes = [int(classes[j]) for j in others[:k]]
        hits += max(votes, key=lambda vote: (votes.count(vote), -votes.index(vote))) == int(
            classes[i]
        )
    assert measure_vote_accuracy(vectors, classes, k, "l2") == pytest.approx(hits / 60)
    if k == 1:
        rest = [
            KNeighborsClassifier(1).fit(
                vectors[[j for j in range(60) if j != i]].numpy(), np.delete(classes.numpy(), i)
            )
            for i in range(60)
        ]
        assert hits == sum(
            int(one.predict(vectors[i : i + 1].numpy())[0] == classes[i])
            for i, one in enumerate(rest)
        )
    unknown = torch.cat([classes, torch.full((5,), -1)])
    assert measure_vote_accuracy(
        torch.cat([vectors, vectors[:5]]), unknown, k, "l2"
    ) == pytest.approx(hits / 60)


def test_preserved_is_the_share_of_kept_neighbours() -> None:
    vectors = cloud(40, 2)
    assert measure_preservation(vectors, vectors * 3, 5) == 1
    shuffled = vectors[torch.randperm(40, generator=torch.Generator().manual_seed(2))]
    expected = [
        len(
            set((vectors - vectors[i]).norm(dim=1).argsort()[1:6].tolist())
            & set((shuffled - shuffled[i]).norm(dim=1).argsort()[1:6].tolist())
        )
        / 5
        for i in range(40)
    ]
    assert measure_preservation(vectors, shuffled, 5) == pytest.approx(sum(expected) / 40)
