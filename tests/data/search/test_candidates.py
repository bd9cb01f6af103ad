"""Candidates for the nearest: scores lie within their bounds, and few candidates remain."""

import pytest
import torch
from torch import Tensor

from sightline.data.search import candidates
from sightline.data.search.nearest import Metric, scale_vectors


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_scores_are_within_their_bound(
    awkward_vectors: Tensor, normal_vectors: Tensor, dtype: torch.dtype, metric: Metric
) -> None:
    queries = torch.cat([awkward_vectors[:9] * 0.7, normal_vectors[:9]])
    scaled_vectors, scaled_queries = scale_vectors(awkward_vectors, queries, metric)
    vector_block = scaled_vectors.make_block(0, 300, dtype, are_queries=False)
    query_block = scaled_queries.make_block(0, 18, dtype, are_queries=True)
    scores = (query_block.rows @ vector_block.rows.T).double()

    x = scaled_vectors.vectors.double() * scaled_vectors.factors.double()[:, None]
    q = scaled_queries.vectors.double() * scaled_queries.factors.double()[:, None]
    distances = torch.cdist(q, x, compute_mode="donot_use_mm_for_euclid_dist")
    penalties = scaled_vectors.penalties + scaled_queries.penalties[:, None]
    true_scores = -(distances.square() / 2 + penalties)

    roundoff = torch.finfo(dtype).eps / 2
    bounds = query_block.bound_errors(vector_block, 300).double() + roundoff * scores.abs()
    assert ((scores - true_scores).abs() <= bounds).all()
    assert bounds.median() < (0.05 if dtype == torch.bfloat16 else 1e-4)


def test_a_group_has_the_largest_bound_of_its_members(normal_vectors: Tensor) -> None:
    """Members of a group are group_count vectors apart."""
    vectors, queries = scale_vectors(normal_vectors, normal_vectors[:7] * 2, "l2")
    block = vectors.make_block(0, 300, torch.bfloat16, are_queries=False)
    query_block = queries.make_block(0, 7, torch.bfloat16, are_queries=True)
    single = query_block.bound_errors(block, 300)
    grouped = query_block.bound_errors(block, 20)
    for group in range(20):
        assert (grouped[:, group] >= single[:, group::20].amax(1)).all()


def test_three_columns_hold_an_offset_to_24_bits() -> None:
    vectors, _ = scale_vectors(torch.randn(50, 8), torch.randn(2, 8), "l2")
    for are_queries, columns in ((False, slice(8, 11)), (True, slice(11, 14))):
        block = vectors.make_block(0, 50, torch.bfloat16, are_queries=are_queries)
        error = block.rows[:, columns].double().sum(1) + block.offsets.double()
        assert (error.abs() <= block.offsets.double() * 2**-22).all()


def test_few_candidates_remain() -> None:
    vectors = torch.randn(4096, 128, generator=torch.Generator().manual_seed(0)) + 3
    scaled_vectors, scaled_queries = scale_vectors(vectors, vectors[:80], "l2")
    counts: dict[torch.dtype, int] = {}
    for dtype in (torch.bfloat16, torch.float32):
        pairs = candidates.find_candidates(
            scaled_vectors,
            scaled_queries,
            5,
            dtype,
            exclude=None,
            select_nearest=lambda *_: pytest.fail("too many candidates to keep"),
        )
        counts[dtype] = len(pairs.query)
    assert 5 * 80 <= counts[torch.float32] < 6 * 80
    assert counts[torch.float32] < counts[torch.bfloat16] < 20 * 80


def test_reduced_precision_of_torch_is_avoided() -> None:
    torch.set_float32_matmul_precision("medium")
    try:
        large = candidates.choose_matmul_dtype(1000, 512)
        assert large == torch.bfloat16 or not candidates.is_bfloat16_fast()
        assert candidates.choose_matmul_dtype(1, 512) == torch.float64
    finally:
        torch.set_float32_matmul_precision("highest")
    assert candidates.choose_matmul_dtype(1, 512) == torch.float32


def test_bfloat16_needs_many_queries_and_dimensions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "is_bfloat16_fast", lambda: True)
    assert candidates.choose_matmul_dtype(64, 128) == torch.bfloat16
    assert candidates.choose_matmul_dtype(63, 128) == torch.float32
    assert candidates.choose_matmul_dtype(64, 127) == torch.float32
