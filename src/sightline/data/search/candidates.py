"""Candidates for the k nearest neighbours of each query, by rough scores with proven error bounds.

The score of a vector x for a query q is −‖x − q‖²/2, so one matrix product gives the scores of a
block. In bfloat16 it is several times faster than in float32 on processors that multiply bfloat16.
A vector is ruled out if its score plus its error bound is below what k others reach at least. The
remaining candidates are ranked by exact distances in `nearest`, so the result does not depend on
the precision.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor

# Sides of a block of scores, 8 MB in bfloat16.
QUERY_BLOCK_ROWS = 1024
VECTOR_BLOCK_ROWS = 4096

SCORE_GROUP_SIZE = 32  # scores that are ruled out together by the largest of them

PREPARE_BATCH_ROWS = 2048  # vectors that are scaled at once: 4 MB

MAX_CANDIDATE_PAIRS = 2_000_000  # in memory for one block of queries, beyond those of one block

# Below this many queries or dimensions, bfloat16 saves less than the conversion costs.
MIN_BFLOAT16_QUERIES = 64
MIN_BFLOAT16_DIMENSIONS = 128

MAX_BFLOAT16_TIME = 0.6  # of the time of a float32 product, for bfloat16 to count as fast

OFFSET_COLUMNS = 3  # bfloat16 numbers (8 bits each) whose sum holds a float32 number (24 bits)

MISSING_SCORE = -1e30  # of an excluded vector; true scores lie in [−8, 0]

UNDERFLOW_BOUND = 1e-30  # more than all products lose that are below the smallest normal number


class CandidatePairs(NamedTuple):
    """Candidates as pairs of indices: of a query, and of a vector."""

    query: Tensor
    vector: Tensor


class BoundedPairs(NamedTuple):
    """Candidates with an upper bound of the score of each."""

    query: Tensor
    vector: Tensor
    upper_bound: Tensor


@cache
def is_bfloat16_fast() -> bool:
    """Whether this processor multiplies bfloat16 clearly faster than float32; timed once, in ms."""
    generator = torch.Generator().manual_seed(0)
    left_float = torch.randn(256, 512, generator=generator)
    right_float = torch.randn(2048, 512, generator=generator)
    best_seconds: dict[torch.dtype, float] = {}
    for dtype in (torch.float32, torch.bfloat16):
        left = left_float.to(dtype)
        right = right_float.to(dtype)
        seconds: list[float] = []
        for _ in range(4):
            start = perf_counter()
            torch.mm(left, right.T)
            seconds.append(perf_counter() - start)
        best_seconds[dtype] = min(seconds)
    return best_seconds[torch.bfloat16] < MAX_BFLOAT16_TIME * best_seconds[torch.float32]


def choose_matmul_dtype(query_count: int, dimensions: int) -> torch.dtype:
    """The type to multiply in: bfloat16 where it is worth it, else float32.

    float64 stands in for float32 if torch may compute float32 products in a lower precision.
    """
    is_large = query_count >= MIN_BFLOAT16_QUERIES and dimensions >= MIN_BFLOAT16_DIMENSIONS
    if is_large and is_bfloat16_fast():
        return torch.bfloat16
    is_exact = torch.get_float32_matmul_precision() == "highest"
    return torch.float32 if is_exact else torch.float64


@dataclass(frozen=True)
class ScaledVectors:
    """n×d vectors that stand for `factors · vectors − center`, of norm up to 1 before centering.

    Distances do not depend on the center; the nearer it is to the vectors, the tighter the error
    bounds. `penalties` are subtracted from the scores. `exact_factors` says that the factors are
    powers of two, so that multiplying by them does not round.
    """

    vectors: Tensor
    factors: Tensor
    penalties: Tensor
    center: Tensor
    exact_factors: bool

    def make_block(
        self, start: int, count: int, dtype: torch.dtype, *, are_queries: bool
    ) -> "ScoreBlock":
        """At most `count` of the vectors from `start` on, ready for the matrix product."""
        count = min(count, len(self.vectors) - start)
        work_dtype = self.center.dtype
        rows = torch.empty(count, self.vectors.shape[1] + 2 * OFFSET_COLUMNS, dtype=dtype)
        norms, shifts, offsets, sum_errors = torch.empty(4, count, dtype=work_dtype)
        block = ScoreBlock(rows, norms, shifts, offsets, sum_errors, are_queries)
        for first in range(0, count, PREPARE_BATCH_ROWS):
            last = min(first + PREPARE_BATCH_ROWS, count)
            source = slice(start + first, start + last)
            vectors = self.vectors[source].to(work_dtype)
            factors = self.factors[source].to(work_dtype)
            centered = torch.addcmul(-self.center, vectors, factors[:, None])
            penalties = self.penalties[source].to(work_dtype)
            block.fill_rows(
                slice(first, last), centered, penalties, exact_factors=self.exact_factors
            )
        return block


@dataclass(frozen=True)
class ScoreBlock:
    """Rows n×(d+6) whose product with a row of the other kind (queries or vectors) is the score.

    Three of the last columns add up to minus the offset, ‖x‖²/2 plus the penalty; in the rows of
    the other kind ones stand against them. The error of a score is bounded by the norms, by the
    norms of what rounding changed in the vectors (`shifts`), and by the errors of summation
    (`sum_errors`).
    """

    rows: Tensor
    norms: Tensor
    shifts: Tensor
    offsets: Tensor
    sum_errors: Tensor
    are_queries: bool

    def fill_rows(
        self, span: slice, centered: Tensor, penalties: Tensor, *, exact_factors: bool
    ) -> None:
        """Fills the rows of `span` with centered vectors, which are overwritten."""
        rows = self.rows[span]
        dimensions = centered.shape[1]
        norms = torch.linalg.vector_norm(centered, dim=1)
        rows[:, :dimensions] = centered
        rows[:, dimensions:] = 1
        rounding = centered.sub_(rows[:, :dimensions])

        half_squares = norms.square() / 2
        offsets = half_squares + penalties
        self.norms[span] = norms
        self.shifts[span] = torch.linalg.vector_norm(rounding, dim=1)
        self.offsets[span] = offsets
        self.write_offsets(span, offsets)

        summed = offsets + half_squares
        if not exact_factors:
            summed = summed + norms  # multiplying by the factor has rounded too
        self.sum_errors[span] = self.unit_error * summed

    @property
    def unit_error(self) -> float:
        """Twice the relative error of a float32 sum of a row's products, in whatever order."""
        return (self.rows.shape[1] + 40) * torch.finfo(torch.float32).eps

    def write_offsets(self, span: slice, offsets: Tensor) -> None:
        """Makes the scores of some rows smaller by `offsets`.

        Each of three columns takes what is left of the offset, rounded to the type of the rows.
        """
        columns_from_end = OFFSET_COLUMNS if self.are_queries else 2 * OFFSET_COLUMNS
        first = self.rows.shape[1] - columns_from_end
        for column in range(first, first + OFFSET_COLUMNS):
            self.rows[span, column] = -offsets
            offsets = offsets + self.rows[span, column]

    def bound_errors(self, vectors: "ScoreBlock", group_count: int) -> Tensor:
        """Bounds of the errors of the scores of these queries with `vectors`, queries×groups.

        Vectors i, i + group_count, i + 2·group_count, … are one group. The rounding of the scores
        themselves is not included. With a dash for what is rounded,
        q·x − q′·x′ = q·(x − x′) + (q − q′)·x′; Cauchy and Schwarz bound both terms.
        """
        norms = vectors.norms.view(-1, group_count).amax(0)
        shifts = vectors.shifts.view(-1, group_count).amax(0)
        sum_errors = vectors.sum_errors.view(-1, group_count).amax(0)
        bounds = torch.outer(self.norms, shifts) + torch.outer(self.shifts, norms + shifts)
        bounds = bounds + self.sum_errors[:, None] + sum_errors
        return bounds.mul_(1.001).add_(UNDERFLOW_BOUND)  # for the rounding of the bounds themselves


class CandidateFilter:
    """The candidates of a block of m queries, collected from one block of vectors after the other.

    `lower_bounds`, m×k and falling, are the best k scores that are certainly reached.
    """

    def __init__(self, queries: ScoreBlock, exclude: Tensor | None, k: int) -> None:
        self.queries = queries
        self.exclude = exclude
        self.pairs: list[BoundedPairs] = []
        self.lower_bounds = torch.full(
            (len(queries.rows), k), -torch.inf, dtype=queries.norms.dtype
        )

    def add_block(self, block: ScoreBlock, start: int, buffer: Tensor) -> None:
        """Adds the candidates among the vectors from number `start` on; `buffer` is overwritten."""
        query_count = len(self.queries.rows)
        count = len(block.rows)
        scores = buffer[: query_count * count].view(query_count, count)
        torch.mm(self.queries.rows, block.rows.T, out=scores)
        if self.exclude is not None:
            column = self.exclude - start
            query = ((column >= 0) & (column < count)).nonzero().flatten()
            scores[query, column[query]] = MISSING_SCORE
        self.filter_scores(scores, block, start)
        if start == 0:
            self.center_scores()

    def filter_scores(self, scores: Tensor, block: ScoreBlock, start: int) -> None:
        """Keeps the vectors of a block whose scores, m×n, may be among the k best.

        Single scores are compared only in groups whose largest score may be among the best.
        """
        roundoff = torch.finfo(scores.dtype).eps / 2
        group_count = self.choose_group_count(scores.shape[1])
        grouped = scores.view(len(scores), -1, group_count)
        slack = self.queries.bound_errors(block, group_count)

        best = grouped.amax(1).to(slack.dtype)
        margin = slack + roundoff * best.abs()
        lower_bounds = torch.cat([self.lower_bounds, best - margin], 1)
        self.lower_bounds = lower_bounds.topk(self.lower_bounds.shape[1], dim=1).values

        query, group = (best + margin >= self.lower_bounds[:, -1:]).nonzero(as_tuple=True)
        group_scores = grouped[query, :, group].to(slack.dtype)
        group_slack = slack[query, group][:, None]
        upper_bounds = group_scores + roundoff * group_scores.abs() + group_slack
        may_be_best = upper_bounds >= self.lower_bounds[query, -1:]
        row, member = may_be_best.nonzero(as_tuple=True)
        vector = start + member * group_count + group[row]
        self.pairs.append(BoundedPairs(query[row], vector, upper_bounds[row, member]))

    def choose_group_count(self, vector_count: int) -> int:
        """Groups to divide the vectors of a block into: one for each vector if fewer won't do.

        A group gives one lower bound, so that k bounds take more than k groups, or earlier blocks.
        """
        k = self.lower_bounds.shape[1]
        group_count = vector_count // SCORE_GROUP_SIZE
        has_bounds = group_count >= 2 * k or bool(self.lower_bounds.isfinite().all())
        if vector_count % SCORE_GROUP_SIZE == 0 and has_bounds:
            return group_count
        return vector_count

    def center_scores(self) -> None:
        """Shifts each query's scores so that the k-th best is about 0, where rounding is finest."""
        kth_best = self.lower_bounds[:, -1]
        raised = -kth_best.where(kth_best > MISSING_SCORE / 2, 0)
        self.queries.write_offsets(slice(None), self.queries.offsets - raised)
        self.queries.sum_errors.add_(self.queries.unit_error * raised.abs())
        self.lower_bounds += raised[:, None]
        self.pairs = [
            pairs._replace(upper_bound=pairs.upper_bound + raised[pairs.query])
            for pairs in self.pairs
        ]

    def limit_pairs(self, select_nearest: Callable[[CandidatePairs], CandidatePairs]) -> None:
        """Reduces the candidates to the k nearest of each query if there are too many to keep."""
        if sum(len(pairs.query) for pairs in self.pairs) > MAX_CANDIDATE_PAIRS:
            query, vector = select_nearest(self.list_remaining())
            no_bound = torch.full((len(query),), torch.inf)
            self.pairs = [BoundedPairs(query, vector, no_bound)]

    def list_remaining(self) -> CandidatePairs:
        """The candidates that the present lower bounds do not rule out."""
        query = torch.cat([pairs.query for pairs in self.pairs])
        vector = torch.cat([pairs.vector for pairs in self.pairs])
        upper_bound = torch.cat([pairs.upper_bound for pairs in self.pairs])
        may_be_best = upper_bound >= self.lower_bounds[query, -1]
        remains = may_be_best & (upper_bound > MISSING_SCORE / 2)
        return CandidatePairs(query[remains], vector[remains])


def find_candidates(
    vectors: ScaledVectors,
    queries: ScaledVectors,
    k: int,
    dtype: torch.dtype,
    *,
    exclude: Tensor | None,
    select_nearest: Callable[[CandidatePairs, int], CandidatePairs],
) -> CandidatePairs:
    """The candidates of all queries, at least k of each.

    `exclude` has one index of a vector for each query. `select_nearest(pairs, first)` reduces
    pairs, whose queries are counted from query `first` on, to the k nearest of each query.
    """
    filters: dict[int, CandidateFilter] = {}
    for first in range(0, len(queries.vectors), QUERY_BLOCK_ROWS):
        block = queries.make_block(first, QUERY_BLOCK_ROWS, dtype, are_queries=True)
        excluded = None if exclude is None else exclude[first : first + QUERY_BLOCK_ROWS]
        filters[first] = CandidateFilter(block, excluded, k)

    # One buffer for the scores of all blocks: allocating each anew takes a noticeable time.
    query_rows = min(QUERY_BLOCK_ROWS, len(queries.vectors))
    buffer = torch.empty(query_rows * VECTOR_BLOCK_ROWS, dtype=dtype)
    for start in range(0, len(vectors.vectors), VECTOR_BLOCK_ROWS):
        block = vectors.make_block(start, VECTOR_BLOCK_ROWS, dtype, are_queries=False)
        for first, candidate_filter in filters.items():
            candidate_filter.add_block(block, start, buffer)
            candidate_filter.limit_pairs(lambda pairs, first=first: select_nearest(pairs, first))

    query_parts: list[Tensor] = []
    vector_parts: list[Tensor] = []
    for first, candidate_filter in filters.items():
        pairs = candidate_filter.list_remaining()
        query_parts.append(pairs.query + first)
        vector_parts.append(pairs.vector)
    return CandidatePairs(torch.cat(query_parts), torch.cat(vector_parts))
