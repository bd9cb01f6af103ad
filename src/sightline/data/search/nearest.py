"""Exact nearest neighbours: candidates by a matrix product, put in order by their distances in double precision."""

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

MAX_COMPARED_VALUES = 2**18  # of candidates that are compared at once: 2 MB

CENTER_SAMPLE_SIZE = 1024  # vectors whose mean is taken for the middle of all

MIN_SINGLE_NORM, MAX_SINGLE_NORM = (
    1e-15,
    1e15,
)  # lengths between which single precision holds the squares

MIN_DIRECTION_NORM = 1e-30  # a shorter vector has no direction


def find_nearest(
    vectors: Tensor, queries: Tensor, k: int, metric: Metric = "l2", exclude: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Distances and indices, m×k each, of the k of n×d vectors nearest to each of m×d queries, nearest first, ties by index.

    "l2" is ‖x − q‖, "cosine" 1 − cos(x, q), where a vector of zeros is at distance 1 from all. `own`, m indices, is left out of
    each query's answer: its own place among the vectors. Candidates are found by products in low precision, whose error is
    bounded, and put in order by their distances in double. Raises SightlineError for k larger than what there is, and for NaN.
    """
    among = len(vectors) - (exclude is not None)
    if not 1 <= k <= among:
        raise make_out_of_range_error("k", k, 1, f"{among}, the number of images to choose from")
    if vectors.shape[1] != queries.shape[1]:
        raise SightlineError(
            f"a query has {queries.shape[1]} numbers, the stored vectors {vectors.shape[1]}"
        )
    vectors, queries = vectors.detach().float(), queries.detach().float()
    kind = choose_matmul_dtype(len(queries), vectors.shape[1])

    def choose(query: Tensor, index: Tensor, first: int) -> CandidatePairs:
        return rank_candidates(vectors, queries[first:], (query, index), k, metric)[1:]

    found = find_candidates(
        *scale_vectors(vectors, queries, metric), k, kind, exclude=exclude, select_nearest=choose
    )
    distance, _, index = rank_candidates(vectors, queries, found, k, metric)
    return distance.view(-1, k).float(), index.view(-1, k)


def scale_vectors(
    vectors: Tensor, queries: Tensor, metric: Metric
) -> tuple[ScaledVectors, ScaledVectors]:
    """Both kinds for the search: of length 1 for cosines, else all divided by one power of two, so that none is longer than 1."""
    norms = [
        compute_norms(vectors, "the stored vectors hold"),
        compute_norms(queries, "a query holds"),
    ]
    largest = max(float(some.max()) for some in norms)
    if metric == "cosine":
        factors = [some.clamp_min(MIN_DIRECTION_NORM).reciprocal() for some in norms]
        # By half of its missing square the distance of a vector of zeros becomes that of one at a right angle.
        shorts = [
            (1 - (some * factor).square()).clamp_min(0) / 2 * (some < MIN_DIRECTION_NORM)
            for some, factor in zip(norms, factors, strict=True)
        ]
    else:
        power = 0.5 ** math.ceil(math.log2(max(largest, MIN_DIRECTION_NORM)))
        factors, shorts = (
            [torch.full_like(some, power) for some in norms],
            [torch.zeros_like(some) for some in norms],
        )
    work = torch.float64 if largest > MAX_SINGLE_NORM else torch.float32
    some = torch.linspace(0, len(vectors) - 1, min(CENTER_SAMPLE_SIZE, len(vectors))).long()
    middle = (vectors[some].double() * factors[0][some, None]).mean(0).to(work)
    both = zip((vectors, queries), factors, shorts, strict=True)
    of_vectors, of_queries = (
        ScaledVectors(of, factor, short, middle, exact_factors=metric == "l2")
        for of, factor, short in both
    )
    return of_vectors, of_queries


def compute_norms(vectors: Tensor, subject: str) -> Tensor:
    """‖x‖ of each, in double. Raises SightlineError for vectors with values that are no numbers."""
    found = torch.linalg.vector_norm(vectors, dim=1).double()
    odd = ~((found > MIN_SINGLE_NORM) & (found < MAX_SINGLE_NORM))
    found[odd] = torch.linalg.vector_norm(vectors[odd].double(), dim=1)
    if not found.isfinite().all():
        raise SightlineError(
            f"{subject} values that are no finite numbers; neighbours can't be told"
        )
    return found


def rank_candidates(
    vectors: Tensor, queries: Tensor, pairs: CandidatePairs, k: int, metric: Metric
) -> tuple[Tensor, Tensor, Tensor]:
    """Distances, queries, and indices of the k nearest candidates of each query (all, where it has fewer), one after another."""
    query, index = pairs
    distance, step = (
        torch.empty(len(query), dtype=torch.float64),
        max(1, MAX_COMPARED_VALUES // vectors.shape[1]),
    )
    for start in range(0, len(query), step):
        some = slice(start, start + step)
        chosen, asked = vectors[index[some]].double(), queries[query[some]]
        if metric == "cosine":
            distance[some] = 1 - torch.nn.functional.cosine_similarity(
                chosen, asked.double(), dim=1, eps=MIN_DIRECTION_NORM
            )
        else:
            distance[some] = torch.linalg.vector_norm(chosen.sub_(asked), dim=1)
    order = index.argsort(stable=True)
    order = order[distance[order].argsort(stable=True)]
    order = order[query[order].argsort(stable=True)]
    counts = query.bincount(minlength=len(queries))
    rank = torch.arange(len(query)) - (counts.cumsum(0) - counts)[query[order]]
    order = order[rank < k]
    return distance[order], query[order], index[order]


def vote_classes(classes: Tensor, neighbors: Tensor) -> Tensor:
    """The class that most of each row's neighbours have, m, of n classes and m×k indices; a draw goes to the nearest one of it."""
    votes = classes[neighbors]
    count = (votes[:, :, None] == votes[:, None, :]).sum(2)
    return votes.gather(1, count.argmax(1, keepdim=True)).flatten()


def measure_vote_accuracy(
    vectors: Tensor, classes: Tensor, k: int, metric: Metric, max_queries: int = 2_000
) -> float:
    """Share of vectors whose class the vote of their k nearest others gives (leave-one-out), over at most `most` of them, evenly spread.

    A vector of class -1 has none: it neither asks nor votes.
    """
    known = (classes >= 0).nonzero().flatten()
    asked = torch.linspace(0, len(known) - 1, min(max_queries, len(known))).round().long()
    _, found = find_nearest(vectors[known], vectors[known][asked], k, metric, exclude=asked)
    return float((vote_classes(classes[known], found) == classes[known][asked]).float().mean())


def measure_preservation(
    vectors: Tensor, positions: Tensor, k: int, max_queries: int = 2_000
) -> float:
    """Share of each vector's k nearest (L2) that are among the k nearest of its place too, over at most `most`, evenly spread."""
    asked = torch.linspace(0, len(vectors) - 1, min(max_queries, len(vectors))).round().long()
    (_, high), (_, low) = (
        find_nearest(space, space[asked], k, exclude=asked) for space in (vectors, positions)
    )
    return float((high[:, :, None] == low[:, None, :]).any(2).float().mean())
