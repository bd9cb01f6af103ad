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

QUERY_BLOCK_ROWS, VECTOR_BLOCK_ROWS = 1024, 4096  # sides of a block of scores: 8 MB

SCORE_GROUP_SIZE = 32  # scores of which only the largest is looked at first

PREPARE_BATCH_ROWS = 2048  # vectors that are made ready at once: 4 MB

MAX_HELD_CANDIDATES = 2_000_000  # candidates in memory, beyond those of one block

MIN_BFLOAT16_QUERIES, MIN_BFLOAT16_DIMENSIONS = (
    64,
    128,
)  # queries, and numbers of a vector, below which bfloat16 does not pay

OFFSET_COLUMNS = 3  # numbers of 8 bits that together hold one of 24

MISSING_SCORE = -1e30  # the score of no vector: those of vectors lie in [-8, 0]

UNDERFLOW_BOUND = 1e-30  # more than all products lose that are below the smallest normal number

CandidatePairs = tuple[Tensor, Tensor]  # places of queries and of vectors, one of each a candidate

BoundedPairs = tuple[Tensor, Tensor, Tensor]  # and the score that it has at most


@cache
def is_bfloat16_fast() -> bool:
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


def choose_matmul_dtype(query_count: int, dimensions: int) -> torch.dtype:
    """What to multiply in: bfloat16 where it pays, else single precision, or double where torch was told to let that be less."""
    if (
        query_count >= MIN_BFLOAT16_QUERIES
        and dimensions >= MIN_BFLOAT16_DIMENSIONS
        and is_bfloat16_fast()
    ):
        return torch.bfloat16
    return torch.float32 if torch.get_float32_matmul_precision() == "highest" else torch.float64


@dataclass(frozen=True)
class ScaledVectors:
    """Vectors of lengths up to 1 as they are compared: n×d times `factor`, around a middle, and `short` subtracted from their scores.

    Distances don't depend on the middle; the nearer it is, the better the bound. `even` says that factors are powers of two.
    """

    vectors: Tensor
    factors: Tensor
    penalties: Tensor
    center: Tensor
    exact_factors: bool

    def make_block(
        self, start: int, count: int, dtype: torch.dtype, *, are_queries: bool
    ) -> "ScoreBlock":
        """Some of them, ready to be multiplied."""
        count, work = min(count, len(self.vectors) - start), self.center.dtype
        length, moved, offset, doubt = torch.empty(4, count, dtype=work)
        found = ScoreBlock(
            torch.empty(count, self.vectors.shape[1] + 2 * OFFSET_COLUMNS, dtype=dtype),
            length,
            moved,
            offset,
            doubt,
            are_queries,
        )
        for first in range(0, count, PREPARE_BATCH_ROWS):
            some, here = (
                slice(start + first, start + min(first + PREPARE_BATCH_ROWS, count)),
                slice(first, first + PREPARE_BATCH_ROWS),
            )
            exact = torch.addcmul(
                -self.center, self.vectors[some].to(work), self.factors[some].to(work)[:, None]
            )
            found.fill_rows(
                here, exact, self.penalties[some].to(work), exact_factors=self.exact_factors
            )
        return found


@dataclass(frozen=True)
class ScoreBlock:
    """n×(d+6), such that a product with one of the other kind is the score: the last columns are ones against what is subtracted.
    And what bounds its error: the length of each, how far rounding moved it, and all that adding up the numbers can do."""

    rows: Tensor
    norms: Tensor
    shifts: Tensor
    offsets: Tensor
    sum_errors: Tensor
    are_queries: bool

    def fill_rows(
        self, span: slice, centered: Tensor, penalties: Tensor, *, exact_factors: bool
    ) -> None:
        """Writes vectors, which are lost, to their places."""
        rows, size = self.rows[span], centered.shape[1]
        length = torch.linalg.vector_norm(centered, dim=1)
        rows[:, :size], rows[:, size:] = centered, 1
        self.norms[span], self.shifts[span] = (
            length,
            torch.linalg.vector_norm(centered.sub_(rows[:, :size]), dim=1),
        )
        self.offsets[span] = length.square() / 2 + penalties
        self.subtract_offsets(span, self.offsets[span])
        # Factors that are no powers of two have been rounded themselves.
        self.sum_errors[span] = self.unit_error * (
            self.offsets[span] + length.square() / 2 + (0 if exact_factors else length)
        )

    @property
    def unit_error(self) -> float:
        """What a sum of d numbers in single precision can be wrong, in whatever order, twice over."""
        return (self.rows.shape[1] + 40) * torch.finfo(torch.float32).eps

    def subtract_offsets(self, span: slice, offsets: Tensor) -> None:
        """Makes the scores so much less: columns that add up to it, against the ones of the other kind."""
        first = self.rows.shape[1] - OFFSET_COLUMNS * (1 if self.are_queries else 2)
        for place in range(first, first + OFFSET_COLUMNS):
            self.rows[span, place] = -offsets
            offsets = offsets + self.rows[span, place]

    def bound_errors(self, others: "ScoreBlock", group_count: int) -> Tensor:
        """How wrong the scores with others can be, n×groups, before they are rounded themselves; i, i + groups, … are one group.

        q·x − q′·x′ = q·(x − x′) + (q − q′)·x′ where a dash is what rounding made of it; Cauchy and Schwarz bound both terms.
        """
        length, moved, doubt = (
            bound.view(-1, group_count).amax(0)
            for bound in (others.norms, others.shifts, others.sum_errors)
        )
        rounding = torch.outer(self.norms, moved) + torch.outer(self.shifts, length + moved)
        return (rounding + self.sum_errors[:, None] + doubt).mul_(1.001).add_(UNDERFLOW_BOUND)


class CandidateFilter:
    """The candidates of some queries, block by block. `floor`, m×k and falling, are the best scores that they are sure to reach."""

    def __init__(self, queries: ScoreBlock, exclude: Tensor | None, k: int) -> None:
        self.queries, self.exclude, self.pairs = queries, exclude, list[BoundedPairs]()
        self.lower_bounds = torch.full(
            (len(queries.rows), k), -torch.inf, dtype=queries.norms.dtype
        )

    def add_block(self, block: ScoreBlock, start: int, buffer: Tensor) -> None:
        """Looks at a block of vectors; its scores are written to the buffer."""
        many, count = len(self.queries.rows), len(block.rows)
        scores = torch.mm(
            self.queries.rows, block.rows.T, out=buffer[: many * count].view(many, count)
        )
        if self.exclude is not None:
            place = self.exclude - start
            mine = ((place >= 0) & (place < count)).nonzero().flatten()
            scores[mine, place[mine]] = MISSING_SCORE
        self.filter_scores(scores, block, start)
        if start == 0:
            self.center_scores()

    def filter_scores(self, scores: Tensor, block: ScoreBlock, start: int) -> None:
        """Holds what may be among the best of a block of scores m×n. Only groups whose largest may be are looked at one by one."""
        k, (many, count), half = (
            self.lower_bounds.shape[1],
            scores.shape,
            torch.finfo(scores.dtype).eps / 2,
        )
        sure = count // SCORE_GROUP_SIZE >= 2 * k or bool(self.lower_bounds.isfinite().all())
        grouped = scores.view(
            many, -1, count // SCORE_GROUP_SIZE if count % SCORE_GROUP_SIZE == 0 and sure else count
        )
        slack = self.queries.bound_errors(block, grouped.shape[2])
        best = grouped.amax(1).to(slack.dtype)
        margin = slack + half * best.abs()
        self.lower_bounds = torch.cat([self.lower_bounds, best - margin], 1).topk(k, dim=1).values
        query, group = (best + margin >= self.lower_bounds[:, -1:]).nonzero(as_tuple=True)
        inner = grouped[query, :, group].to(slack.dtype)
        high = inner + half * inner.abs() + slack[query, group][:, None]
        which, member = (high >= self.lower_bounds[query, -1:]).nonzero(as_tuple=True)
        query, index = query[which], start + member * grouped.shape[2] + group[which]
        self.pairs.append((query, index, high[which, member]))

    def center_scores(self) -> None:
        """Raises all scores until the k-th best of each query is about 0, where rounding them does the least."""
        least = self.lower_bounds[:, -1]
        more = -least.where(least > MISSING_SCORE / 2, 0)
        self.queries.subtract_offsets(slice(None), self.queries.offsets - more)
        self.queries.sum_errors.add_(self.queries.unit_error * more.abs())
        self.lower_bounds += more[:, None]
        self.pairs = [(query, index, high + more[query]) for query, index, high in self.pairs]

    def limit_pairs(self, select_nearest: Callable[[Tensor, Tensor], CandidatePairs]) -> None:
        """Leaves the best of the candidates, if there are too many to hold."""
        if sum(len(query) for query, _, _ in self.pairs) > MAX_HELD_CANDIDATES:
            query, index = select_nearest(*self.list_remaining())
            self.pairs = [(query, index, torch.full((len(query),), torch.inf))]

    def list_remaining(self) -> CandidatePairs:
        """Those of the candidates that still are."""
        query, index, high = (torch.cat(part) for part in zip(*self.pairs, strict=True))
        still = (high >= self.lower_bounds[query, -1]) & (high > MISSING_SCORE / 2)
        return query[still], index[still]


def find_candidates(
    vectors: ScaledVectors,
    queries: ScaledVectors,
    k: int,
    dtype: torch.dtype,
    *,
    exclude: Tensor | None,
    select_nearest: Callable[[Tensor, Tensor, int], CandidatePairs],
) -> CandidatePairs:
    """The candidates of all queries, at least k of each. `choose` leaves the k best of each query, counted from the one it is told."""
    firsts = range(0, len(queries.vectors), QUERY_BLOCK_ROWS)
    sieves = [
        CandidateFilter(
            queries.make_block(first, QUERY_BLOCK_ROWS, dtype, are_queries=True),
            None if exclude is None else exclude[first : first + QUERY_BLOCK_ROWS],
            k,
        )
        for first in firsts
    ]
    buffer = torch.empty(
        min(QUERY_BLOCK_ROWS, len(queries.vectors)) * VECTOR_BLOCK_ROWS, dtype=dtype
    )  # a new one for each block takes its time
    for start in range(0, len(vectors.vectors), VECTOR_BLOCK_ROWS):
        rows = vectors.make_block(start, VECTOR_BLOCK_ROWS, dtype, are_queries=False)
        for first, sieve in zip(firsts, sieves, strict=True):
            sieve.add_block(rows, start, buffer)
            sieve.limit_pairs(lambda query, index, first=first: select_nearest(query, index, first))
    found = [
        (query + first, index)
        for first, (query, index) in zip(
            firsts, (sieve.list_remaining() for sieve in sieves), strict=True
        )
    ]
    return torch.cat([query for query, _ in found]), torch.cat([index for _, index in found])
