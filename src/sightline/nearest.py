"""Exact nearest neighbours: candidates by a matrix product, put in order by their distances in double precision."""

import math
from typing import Literal

import torch
from torch import Tensor

from .candidates import Pairs, Points, candidates, precision
from .errors import SightlineError, outside

Metric = Literal["cosine", "l2"]
NUMBERS = 2**18  # of candidates that are compared at once: 2 MB
MIDDLE_OF = 1024  # vectors whose mean is taken for the middle of all
TINY, HUGE = 1e-15, 1e15  # lengths between which single precision holds the squares
ZERO = 1e-30  # a shorter vector has no direction


def nearest(vectors: Tensor, queries: Tensor, k: int, metric: Metric = "l2", own: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Distances and indices, m×k each, of the k of n×d vectors nearest to each of m×d queries, nearest first, ties by index.

    "l2" is ‖x − q‖, "cosine" 1 − cos(x, q), where a vector of zeros is at distance 1 from all. `own`, m indices, is left out of
    each query's answer: its own place among the vectors. Candidates are found by products in low precision, whose error is
    bounded, and put in order by their distances in double. Raises SightlineError for k larger than what there is, and for NaN.
    """
    among = len(vectors) - (own is not None)
    if not 1 <= k <= among:
        raise outside("k", k, 1, f"{among}, the number of images to choose from")
    if vectors.shape[1] != queries.shape[1]:
        raise SightlineError(f"a query has {queries.shape[1]} numbers, the stored vectors {vectors.shape[1]}")
    vectors, queries = vectors.detach().float(), queries.detach().float()
    kind = precision(len(queries), vectors.shape[1])

    def choose(query: Tensor, index: Tensor, first: int) -> Pairs:
        return ordered(vectors, queries[first:], (query, index), k, metric)[1:]

    found = candidates(*prepared(vectors, queries, metric), k, kind, own=own, choose=choose)
    distance, _, index = ordered(vectors, queries, found, k, metric)
    return distance.view(-1, k).float(), index.view(-1, k)


def prepared(vectors: Tensor, queries: Tensor, metric: Metric) -> tuple[Points, Points]:
    """Both kinds for the search: of length 1 for cosines, else all divided by one power of two, so that none is longer than 1."""
    norms = [lengths(vectors, "the stored vectors hold"), lengths(queries, "a query holds")]
    largest = max(float(some.max()) for some in norms)
    if metric == "cosine":
        factors = [some.clamp_min(ZERO).reciprocal() for some in norms]
        # By half of its missing square the distance of a vector of zeros becomes that of one at a right angle.
        shorts = [(1 - (some * factor).square()).clamp_min(0) / 2 * (some < ZERO) for some, factor in zip(norms, factors, strict=True)]
    else:
        power = 0.5 ** math.ceil(math.log2(max(largest, ZERO)))
        factors, shorts = [torch.full_like(some, power) for some in norms], [torch.zeros_like(some) for some in norms]
    work = torch.float64 if largest > HUGE else torch.float32
    some = torch.linspace(0, len(vectors) - 1, min(MIDDLE_OF, len(vectors))).long()
    middle = (vectors[some].double() * factors[0][some, None]).mean(0).to(work)
    both = zip((vectors, queries), factors, shorts, strict=True)
    of_vectors, of_queries = (Points(of, factor, short, middle, even=metric == "l2") for of, factor, short in both)
    return of_vectors, of_queries


def lengths(vectors: Tensor, who: str) -> Tensor:
    """‖x‖ of each, in double. Raises SightlineError for vectors with values that are no numbers."""
    found = torch.linalg.vector_norm(vectors, dim=1).double()
    odd = ~((found > TINY) & (found < HUGE))
    found[odd] = torch.linalg.vector_norm(vectors[odd].double(), dim=1)
    if not found.isfinite().all():
        raise SightlineError(f"{who} values that are no finite numbers; neighbours can't be told")
    return found


def ordered(vectors: Tensor, queries: Tensor, pairs: Pairs, k: int, metric: Metric) -> tuple[Tensor, Tensor, Tensor]:
    """Distances, queries, and indices of the k nearest candidates of each query (all, where it has fewer), one after another."""
    query, index = pairs
    distance, step = torch.empty(len(query), dtype=torch.float64), max(1, NUMBERS // vectors.shape[1])
    for start in range(0, len(query), step):
        some = slice(start, start + step)
        chosen, asked = vectors[index[some]].double(), queries[query[some]]
        if metric == "cosine":
            distance[some] = 1 - torch.nn.functional.cosine_similarity(chosen, asked.double(), dim=1, eps=ZERO)
        else:
            distance[some] = torch.linalg.vector_norm(chosen.sub_(asked), dim=1)
    order = index.argsort(stable=True)
    order = order[distance[order].argsort(stable=True)]
    order = order[query[order].argsort(stable=True)]
    counts = query.bincount(minlength=len(queries))
    rank = torch.arange(len(query)) - (counts.cumsum(0) - counts)[query[order]]
    order = order[rank < k]
    return distance[order], query[order], index[order]


def voted(classes: Tensor, neighbors: Tensor) -> Tensor:
    """The class that most of each row's neighbours have, m, of n classes and m×k indices; a draw goes to the nearest one of it."""
    votes = classes[neighbors]
    count = (votes[:, :, None] == votes[:, None, :]).sum(2)
    return votes.gather(1, count.argmax(1, keepdim=True)).flatten()


def accuracy(vectors: Tensor, classes: Tensor, k: int, metric: Metric, most: int = 2_000) -> float:
    """Share of vectors whose class the vote of their k nearest others gives (leave-one-out), over at most `most` of them, evenly spread.

    A vector of class -1 has none: it neither asks nor votes.
    """
    known = (classes >= 0).nonzero().flatten()
    asked = torch.linspace(0, len(known) - 1, min(most, len(known))).round().long()
    _, found = nearest(vectors[known], vectors[known][asked], k, metric, own=asked)
    return float((voted(classes[known], found) == classes[known][asked]).float().mean())


def preserved(vectors: Tensor, places: Tensor, k: int, most: int = 2_000) -> float:
    """Share of each vector's k nearest (L2) that are among the k nearest of its place too, over at most `most`, evenly spread."""
    asked = torch.linspace(0, len(vectors) - 1, min(most, len(vectors))).round().long()
    (_, high), (_, low) = (nearest(space, space[asked], k, own=asked) for space in (vectors, places))
    return float((high[:, :, None] == low[:, None, :]).any(2).float().mean())
