"""Every vector that may be among the k nearest of a query: rough scores, and a proven bound of how wrong they are.

The score of a vector is −‖x − q‖²/2, and a matrix product gives all of them. In bfloat16 that is several times faster than in
single precision where the processor multiplies such numbers. What can't be among the nearest by its score and the bound is ruled
out; the few that are left are for `nearest` to put in order by exact distances. The answer is the same whatever the precision.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from time import perf_counter

import torch
from torch import Tensor

QUERIES, VECTORS = 1024, 4096  # sides of a block of scores: 8 MB
GROUP = 32  # scores of which only the largest is looked at first
READY = 2048  # vectors that are made ready at once: 4 MB
HELD = 2_000_000  # candidates in memory, beyond those of one block
FEW, SHORT = 64, 128  # queries, and numbers of a vector, below which bfloat16 does not pay
PARTS = 3  # numbers of 8 bits that together hold one of 24
NONE = -1e30  # the score of no vector: those of vectors lie in [-8, 0]
UNDERFLOW = 1e-30  # more than all products lose that are below the smallest normal number

Pairs = tuple[Tensor, Tensor]  # places of queries and of vectors, one of each a candidate
Sifted = tuple[Tensor, Tensor, Tensor]  # and the score that it has at most


@cache
def quick() -> bool:
    """Whether this processor multiplies bfloat16 clearly faster than single precision: tried once, in a few milliseconds."""
    generator, times = torch.Generator().manual_seed(0), list[float]()
    matrices = [torch.randn(size, 512, generator=generator) for size in (256, 2048)]
    for kind in (torch.float32, torch.bfloat16):
        left, right = (matrix.to(kind) for matrix in matrices)
        took: list[float] = []
        for _ in range(4):
            start = perf_counter()
            torch.mm(left, right.T)
            took.append(perf_counter() - start)
        times.append(min(took))
    return times[1] < 0.6 * times[0]


def precision(queries: int, size: int) -> torch.dtype:
    """What to multiply in: bfloat16 where it pays, else single precision, or double where torch was told to let that be less."""
    if queries >= FEW and size >= SHORT and quick():
        return torch.bfloat16
    return torch.float32 if torch.get_float32_matmul_precision() == "highest" else torch.float64


@dataclass(frozen=True)
class Points:
    """Vectors of lengths up to 1 as they are compared: n×d times `factor`, around a middle, and `short` subtracted from their scores.

    Distances don't depend on the middle; the nearer it is, the better the bound. `even` says that factors are powers of two.
    """

    vectors: Tensor
    factor: Tensor
    short: Tensor
    middle: Tensor
    even: bool

    def part(self, start: int, count: int, kind: torch.dtype, *, queries: bool) -> "Rows":
        """Some of them, ready to be multiplied."""
        count, work = min(count, len(self.vectors) - start), self.middle.dtype
        length, moved, offset, doubt = torch.empty(4, count, dtype=work)
        found = Rows(torch.empty(count, self.vectors.shape[1] + 2 * PARTS, dtype=kind), length, moved, offset, doubt, queries)
        for first in range(0, count, READY):
            some, here = slice(start + first, start + min(first + READY, count)), slice(first, first + READY)
            exact = torch.addcmul(-self.middle, self.vectors[some].to(work), self.factor[some].to(work)[:, None])
            found.fill(here, exact, self.short[some].to(work), even=self.even)
        return found


@dataclass(frozen=True)
class Rows:
    """n×(d+6), such that a product with one of the other kind is the score: the last columns are ones against what is subtracted.
    And what bounds its error: the length of each, how far rounding moved it, and all that adding up the numbers can do."""

    rows: Tensor
    length: Tensor
    moved: Tensor
    offset: Tensor
    doubt: Tensor
    queries: bool

    def fill(self, here: slice, exact: Tensor, short: Tensor, *, even: bool) -> None:
        """Writes vectors, which are lost, to their places."""
        rows, size = self.rows[here], exact.shape[1]
        length = torch.linalg.vector_norm(exact, dim=1)
        rows[:, :size], rows[:, size:] = exact, 1
        self.length[here], self.moved[here] = length, torch.linalg.vector_norm(exact.sub_(rows[:, :size]), dim=1)
        self.offset[here] = length.square() / 2 + short
        self.subtract(here, self.offset[here])
        # Factors that are no powers of two have been rounded themselves.
        self.doubt[here] = self.unit * (self.offset[here] + length.square() / 2 + (0 if even else length))

    @property
    def unit(self) -> float:
        """What a sum of d numbers in single precision can be wrong, in whatever order, twice over."""
        return (self.rows.shape[1] + 40) * torch.finfo(torch.float32).eps

    def subtract(self, here: slice, offset: Tensor) -> None:
        """Makes the scores so much less: columns that add up to it, against the ones of the other kind."""
        first = self.rows.shape[1] - PARTS * (1 if self.queries else 2)
        for place in range(first, first + PARTS):
            self.rows[here, place] = -offset
            offset = offset + self.rows[here, place]

    def slack(self, others: "Rows", groups: int) -> Tensor:
        """How wrong the scores with others can be, n×groups, before they are rounded themselves; i, i + groups, … are one group.

        q·x − q′·x′ = q·(x − x′) + (q − q′)·x′ where a dash is what rounding made of it; Cauchy and Schwarz bound both terms.
        """
        length, moved, doubt = (bound.view(-1, groups).amax(0) for bound in (others.length, others.moved, others.doubt))
        rounding = torch.outer(self.length, moved) + torch.outer(self.moved, length + moved)
        return (rounding + self.doubt[:, None] + doubt).mul_(1.001).add_(UNDERFLOW)


class Sieve:
    """The candidates of some queries, block by block. `floor`, m×k and falling, are the best scores that they are sure to reach."""

    def __init__(self, queries: Rows, own: Tensor | None, k: int) -> None:
        self.queries, self.own, self.held = queries, own, list[Sifted]()
        self.floor = torch.full((len(queries.rows), k), -torch.inf, dtype=queries.length.dtype)

    def take(self, rows: Rows, start: int, buffer: Tensor) -> None:
        """Looks at a block of vectors; its scores are written to the buffer."""
        many, count = len(self.queries.rows), len(rows.rows)
        scores = torch.mm(self.queries.rows, rows.rows.T, out=buffer[: many * count].view(many, count))
        if self.own is not None:
            place = self.own - start
            mine = ((place >= 0) & (place < count)).nonzero().flatten()
            scores[mine, place[mine]] = NONE
        self.sift(scores, rows, start)
        if start == 0:
            self.lift()

    def sift(self, scores: Tensor, rows: Rows, start: int) -> None:
        """Holds what may be among the best of a block of scores m×n. Only groups whose largest may be are looked at one by one."""
        k, (many, count), half = self.floor.shape[1], scores.shape, torch.finfo(scores.dtype).eps / 2
        sure = count // GROUP >= 2 * k or bool(self.floor.isfinite().all())
        grouped = scores.view(many, -1, count // GROUP if count % GROUP == 0 and sure else count)
        slack = self.queries.slack(rows, grouped.shape[2])
        best = grouped.amax(1).to(slack.dtype)
        margin = slack + half * best.abs()
        self.floor = torch.cat([self.floor, best - margin], 1).topk(k, dim=1).values
        query, group = (best + margin >= self.floor[:, -1:]).nonzero(as_tuple=True)
        inner = grouped[query, :, group].to(slack.dtype)
        high = inner + half * inner.abs() + slack[query, group][:, None]
        which, member = (high >= self.floor[query, -1:]).nonzero(as_tuple=True)
        query, index = query[which], start + member * grouped.shape[2] + group[which]
        self.held.append((query, index, high[which, member]))

    def lift(self) -> None:
        """Raises all scores until the k-th best of each query is about 0, where rounding them does the least."""
        least = self.floor[:, -1]
        more = -least.where(least > NONE / 2, 0)
        self.queries.subtract(slice(None), self.queries.offset - more)
        self.queries.doubt.add_(self.queries.unit * more.abs())
        self.floor += more[:, None]
        self.held = [(query, index, high + more[query]) for query, index, high in self.held]

    def settle(self, choose: Callable[[Tensor, Tensor], Pairs]) -> None:
        """Leaves the best of the candidates, if there are too many to hold."""
        if sum(len(query) for query, _, _ in self.held) > HELD:
            query, index = choose(*self.left())
            self.held = [(query, index, torch.full((len(query),), torch.inf))]

    def left(self) -> Pairs:
        """Those of the candidates that still are."""
        query, index, high = (torch.cat(part) for part in zip(*self.held, strict=True))
        still = (high >= self.floor[query, -1]) & (high > NONE / 2)
        return query[still], index[still]


def candidates(
    vectors: Points, queries: Points, k: int, kind: torch.dtype, *, own: Tensor | None, choose: Callable[[Tensor, Tensor, int], Pairs]
) -> Pairs:
    """The candidates of all queries, at least k of each. `choose` leaves the k best of each query, counted from the one it is told."""
    firsts = range(0, len(queries.vectors), QUERIES)
    sieves = [
        Sieve(queries.part(first, QUERIES, kind, queries=True), None if own is None else own[first : first + QUERIES], k)
        for first in firsts
    ]
    buffer = torch.empty(min(QUERIES, len(queries.vectors)) * VECTORS, dtype=kind)  # a new one for each block takes its time
    for start in range(0, len(vectors.vectors), VECTORS):
        rows = vectors.part(start, VECTORS, kind, queries=False)
        for first, sieve in zip(firsts, sieves, strict=True):
            sieve.take(rows, start, buffer)
            sieve.settle(lambda query, index, first=first: choose(query, index, first))
    found = [(query + first, index) for first, (query, index) in zip(firsts, (sieve.left() for sieve in sieves), strict=True)]
    return torch.cat([query for query, _ in found]), torch.cat([index for _, index in found])
