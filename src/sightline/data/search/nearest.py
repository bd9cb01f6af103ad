"""Exact nearest neighbours: candidates from a matrix product, ranked by float64 distances."""

import math
from typing import Literal

import torch
from torch import Tensor

from sightline.data.search.candidates import (
    CandidatePairs,
    ScaledVectors,
    choose_matmul_dtype,
    find_candidates,
)
from sightline.errors import SightlineError, make_out_of_range_error

Metric = Literal["cosine", "l2"]

MAX_COMPARED_VALUES = 2**18  # numbers of the candidates that are ranked at once: 2 MB

CENTER_SAMPLE_SIZE = 1024  # vectors whose mean stands for the mean of all

# Norms between which float32 can hold the squares.
MIN_SINGLE_NORM = 1e-15
MAX_SINGLE_NORM = 1e15

MIN_DIRECTION_NORM = 1e-30  # a shorter vector counts as zero and has no direction

MAX_MEASURED_QUERIES = 2_000  # vectors that a measure over a dataset looks at


def find_nearest(
    vectors: Tensor, queries: Tensor, k: int, metric: Metric = "l2", exclude: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The k of n×d vectors nearest to each of m×d queries: distances and indices, m×k each.

    Nearest first, ties by index. "l2" is ‖x − q‖; "cosine" is 1 − cos(x, q), where a vector of
    zeros is at distance 1 from all. `exclude` has for each query the index of one vector to leave
    out, such as the query itself. Raises SightlineError for k larger than the number of vectors to
    choose from, and for NaN or infinite values.
    """
    choice_count = len(vectors) - (exclude is not None)
    if not 1 <= k <= choice_count:
        limit = f"{choice_count}, the number of images to choose from"
        raise make_out_of_range_error("k", k, 1, limit)
    if vectors.shape[1] != queries.shape[1]:
        raise SightlineError(
            f"a query has {queries.shape[1]} numbers, the stored vectors {vectors.shape[1]}"
        )
    vectors = vectors.detach().float()
    queries = queries.detach().float()
    dtype = choose_matmul_dtype(len(queries), vectors.shape[1])

    def select_nearest(pairs: CandidatePairs, first: int) -> CandidatePairs:
        return rank_candidates(vectors, queries[first:], pairs, k, metric)[1]

    scaled_vectors, scaled_queries = scale_vectors(vectors, queries, metric)
    candidates = find_candidates(
        scaled_vectors, scaled_queries, k, dtype, exclude=exclude, select_nearest=select_nearest
    )
    distances, pairs = rank_candidates(vectors, queries, candidates, k, metric)
    return distances.view(-1, k).float(), pairs.vector.view(-1, k)


def scale_vectors(
    vectors: Tensor, queries: Tensor, metric: Metric
) -> tuple[ScaledVectors, ScaledVectors]:
    """Vectors and queries on one scale, on which no norm is larger than 1.

    For "cosine" all get the norm 1. For "l2" all are divided by one power of two.
    """
    norms = [
        compute_norms(vectors, "the stored vectors hold"),
        compute_norms(queries, "a query holds"),
    ]
    largest_norm = max(float(norms[0].max()), float(norms[1].max()))
    if metric == "cosine":
        factors = [norm.clamp_min(MIN_DIRECTION_NORM).reciprocal() for norm in norms]
        penalties = [
            compute_zero_penalties(norm, factor)
            for norm, factor in zip(norms, factors, strict=True)
        ]
    else:
        exponent = math.ceil(math.log2(max(largest_norm, MIN_DIRECTION_NORM)))
        factors = [torch.full_like(norm, 0.5**exponent) for norm in norms]
        penalties = [torch.zeros_like(norm) for norm in norms]

    work_dtype = torch.float64 if largest_norm > MAX_SINGLE_NORM else torch.float32
    sample_size = min(CENTER_SAMPLE_SIZE, len(vectors))
    sample = torch.linspace(0, len(vectors) - 1, sample_size).long()
    scaled_sample = vectors[sample].double() * factors[0][sample, None]
    center = scaled_sample.mean(0).to(work_dtype)
    exact_factors = metric == "l2"
    return (
        ScaledVectors(vectors, factors[0], penalties[0], center, exact_factors),
        ScaledVectors(queries, factors[1], penalties[1], center, exact_factors),
    )


def compute_zero_penalties(norms: Tensor, factors: Tensor) -> Tensor:
    """What puts vectors of zeros at the cosine distance 1: half of what their square lacks to 1."""
    missing_squares = (1 - (norms * factors).square()).clamp_min(0)
    return missing_squares / 2 * (norms < MIN_DIRECTION_NORM)


def compute_norms(vectors: Tensor, subject: str) -> Tensor:
    """‖x‖ of each vector, in float64. Raises SightlineError for NaN and infinite values."""
    norms = torch.linalg.vector_norm(vectors, dim=1).double()
    is_precise = (norms > MIN_SINGLE_NORM) & (norms < MAX_SINGLE_NORM)
    norms[~is_precise] = torch.linalg.vector_norm(vectors[~is_precise].double(), dim=1)
    if not norms.isfinite().all():
        raise SightlineError(f"{subject} NaN or infinite values, which have no nearest neighbours")
    return norms


def rank_candidates(
    vectors: Tensor, queries: Tensor, pairs: CandidatePairs, k: int, metric: Metric
) -> tuple[Tensor, CandidatePairs]:
    """The k nearest candidates of each query, query by query, and their float64 distances first.

    Of a query with fewer candidates, all of them.
    """
    distances = torch.empty(len(pairs.query), dtype=torch.float64)
    step = max(1, MAX_COMPARED_VALUES // vectors.shape[1])
    for start in range(0, len(distances), step):
        span = slice(start, start + step)
        span_vectors = vectors[pairs.vector[span]].double()
        span_queries = queries[pairs.query[span]]
        if metric == "cosine":
            distances[span] = 1 - torch.nn.functional.cosine_similarity(
                span_vectors, span_queries.double(), dim=1, eps=MIN_DIRECTION_NORM
            )
        else:
            distances[span] = torch.linalg.vector_norm(span_vectors.sub_(span_queries), dim=1)

    # Stable sorts from the least important key to the most: index, distance, query.
    order = pairs.vector.argsort(stable=True)
    order = order[distances[order].argsort(stable=True)]
    order = order[pairs.query[order].argsort(stable=True)]

    counts = pairs.query.bincount(minlength=len(queries))
    first_of_query = counts.cumsum(0) - counts
    rank = torch.arange(len(order)) - first_of_query[pairs.query[order]]
    order = order[rank < k]
    return distances[order], CandidatePairs(pairs.query[order], pairs.vector[order])


# ── measures ──


def pick_evenly_spaced(count: int, limit: int) -> Tensor:
    """At most `limit` of the numbers 0 to count − 1, evenly spaced, the first and last included."""
    return torch.linspace(0, count - 1, min(limit, count)).round().long()


def vote_classes(classes: Tensor, neighbors: Tensor) -> Tensor:
    """The most frequent class among the neighbours of each query.

    `classes` has the class of each of n vectors, `neighbors` their indices, m×k, nearest first. In
    a draw, the class of the nearest of the tied neighbours wins. Returns m classes.
    """
    votes = classes[neighbors]
    vote_counts = (votes[:, :, None] == votes[:, None, :]).sum(2)
    winner = vote_counts.argmax(1, keepdim=True)
    return votes.gather(1, winner).flatten()


def measure_vote_accuracy(
    vectors: Tensor,
    classes: Tensor,
    k: int,
    metric: Metric,
    max_queries: int = MAX_MEASURED_QUERIES,
) -> float:
    """Leave-one-out accuracy, 0 to 1, of the vote of each vector's k nearest neighbours.

    Measured on at most `max_queries` vectors, evenly spaced. Vectors of class −1 are left out. Of
    fewer than k + 1 vectors, all others vote; NaN if there are fewer than two.
    """
    is_known = classes >= 0
    vectors = vectors[is_known]
    classes = classes[is_known]
    k = min(k, len(vectors) - 1)
    if k < 1:
        return math.nan
    queries = pick_evenly_spaced(len(vectors), max_queries)
    _, neighbors = find_nearest(vectors, vectors[queries], k, metric, exclude=queries)
    is_right = vote_classes(classes, neighbors) == classes[queries]
    return float(is_right.float().mean())


def measure_preservation(
    vectors: Tensor, positions: Tensor, k: int, max_queries: int = MAX_MEASURED_QUERIES
) -> float:
    """Share, 0 to 1, of each vector's k nearest (L2) that are among the k nearest by position.

    Measured on at most `max_queries` vectors, evenly spaced.
    """
    queries = pick_evenly_spaced(len(vectors), max_queries)
    _, by_vector = find_nearest(vectors, vectors[queries], k, exclude=queries)
    _, by_position = find_nearest(positions, positions[queries], k, exclude=queries)
    is_preserved = (by_vector[:, :, None] == by_position[:, None, :]).any(2)
    return float(is_preserved.float().mean())
