"""Exact nearest neighbours: one matrix product over blocks of vectors, and the best of each block merged."""

from typing import Literal

import torch
from torch import Tensor

from .errors import SightlineError, outside

Metric = Literal["cosine", "l2"]
QUERIES, VECTORS = 256, 16_384  # sides of a block of scores: 16 MB
SPARE = 8  # candidates beyond k: single precision may order the last ones wrongly


def nearest(vectors: Tensor, queries: Tensor, k: int, metric: Metric = "l2", own: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Distances and indices, m×k each, of the k of n×d vectors nearest to each of m×d queries, nearest first, ties by index.

    "l2" is ‖x − q‖, "cosine" 1 − cos(x, q), where a vector of zeros is at distance 1 from all. `own`, m indices, is left out of
    each query's answer: its own place among the vectors. Candidates are found in single precision by x·q − ‖x‖²/2 and put in
    order by their distances in double. Raises SightlineError where k is larger than what there is.
    """
    among = len(vectors) - (own is not None)
    if not 1 <= k <= among:
        raise outside("k", k, 1, f"{among}, the number of images to choose from")
    if vectors.shape[1] != queries.shape[1]:
        raise SightlineError(f"a query has {queries.shape[1]} numbers, the stored vectors {vectors.shape[1]}")
    vectors, queries = vectors.detach().float(), queries.detach().float()
    norms = torch.linalg.vector_norm(vectors, dim=1)
    factor = 1 / norms.clamp_min(1e-30) if metric == "cosine" else torch.ones_like(norms)
    offset = torch.zeros_like(norms) if metric == "cosine" else norms.square() / 2
    found: list[tuple[Tensor, Tensor]] = []
    for start in range(0, len(queries), QUERIES):
        some, mine = queries[start : start + QUERIES], None if own is None else own[start : start + QUERIES]
        candidates = best(vectors, factor, offset, some, count=min(k + SPARE, among), own=mine)
        found.append(ordered(vectors, some, candidates, k, metric))
    return torch.cat([distance for distance, _ in found]), torch.cat([index for _, index in found])


def best(vectors: Tensor, factor: Tensor, offset: Tensor, queries: Tensor, *, count: int, own: Tensor | None) -> Tensor:
    """Indices, m×count and ascending, of the largest scores q·x · factor − offset."""
    top, at = queries.new_empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.long)
    for start in range(0, len(vectors), VECTORS):
        part = slice(start, start + VECTORS)
        scores = (queries @ vectors[part].T).mul_(factor[part]).sub_(offset[part])
        if own is not None:
            mine = ((own >= start) & (own < start + scores.shape[1])).nonzero().flatten()
            scores[mine, own[mine] - start] = -torch.inf
        score, index = scores.topk(min(count, scores.shape[1]), dim=1)
        top, at = torch.cat([top, score], 1), torch.cat([at, index + start], 1)
        if top.shape[1] > count:
            top, kept = top.topk(count, dim=1)
            at = at.gather(1, kept)
    return at.sort(dim=1).values


def ordered(vectors: Tensor, queries: Tensor, candidates: Tensor, k: int, metric: Metric) -> tuple[Tensor, Tensor]:
    """The k nearest of the candidates of each query, by distances in double precision; equal ones keep the order of the indices."""
    chosen, query = vectors[candidates].double(), queries.double()[:, None]
    if metric == "cosine":
        distance = 1 - torch.nn.functional.cosine_similarity(chosen, query, dim=2, eps=1e-30)
    else:
        distance = torch.linalg.vector_norm(chosen - query, dim=2)
    distance, order = distance.sort(dim=1, stable=True)
    return distance[:, :k].float(), candidates.gather(1, order[:, :k])


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
