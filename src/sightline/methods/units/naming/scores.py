"""How well a unit's responses agree with a concept's labels: correlation and AUPRC.

Both pass the missing-label and the extra-label test of Oikarinen, Yan and Weng (ICML 2025,
«Evaluating Neuron Explanations»), as F1, IoU and the cosine do. The area under the ROC curve and
recall do not: they stay the same after half of a concept's labels are gone.

Responses are images×units, concepts images×concepts; row i of both is image i.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from sightline.errors import SightlineError

FloatArray = NDArray[np.floating[Any]]
IndexArray = NDArray[np.integer[Any]]

CANDIDATES_PER_UNIT = 5  # concepts of the highest correlation, whose AUPRC is computed
CHANCE_SHUFFLES = 4  # assignments of the concepts to random images, at least
CHANCE_SAMPLES = 64  # of shuffles times units, at least
LIMIT_DEVIATIONS = 3  # standard deviations by which a name must exceed chance

MAX_BLOCK_NUMBERS = 2**23  # responses that are standardized at once
# Of labels that are true: with fewer, a product with a sparse matrix is the faster one.
MAX_SPARSE_SHARE = 0.02


@dataclass(frozen=True)
class ConceptScores:
    """Scores of U units against C concepts.

    `correlation` is U×C, Pearson's, 0 for a unit or a concept that is the same for all images.
    `candidates`, U×K, are the concepts of each unit's highest correlations, highest first, and
    `auprc`, U×K, their areas under the precision-recall curve. `chance_auprc`, C, is the area for
    a unit that knows nothing: the share of the images that have the concept. `chance_correlation`,
    U, is the highest correlation of a unit with any of the concepts after these were moved to
    random images, on average; `correlation_limit`, U, is what this hardly ever exceeds.
    """

    correlation: FloatArray
    candidates: IndexArray
    auprc: FloatArray
    chance_auprc: FloatArray
    chance_correlation: FloatArray
    correlation_limit: FloatArray


def score_concepts(
    responses: FloatArray,
    concepts: Any,
    *,
    candidate_count: int = CANDIDATES_PER_UNIT,
    seed: int = 0,
) -> ConceptScores:
    """Scores every unit against every concept.

    `responses` are images×units; a unit with a value that is not finite scores 0. `concepts` are
    images×concepts, an array of truth values or a sparse matrix of SciPy. AUPRC is computed for the
    `candidate_count` concepts with which a unit correlates most.

    Raises SightlineError for different numbers of images.
    """
    labels = make_label_matrix(concepts)
    agreement = correlate_concepts(responses, labels, seed)
    candidates = find_highest(agreement.correlation, candidate_count)
    auprc = np.zeros(candidates.shape, dtype=np.float32)
    for unit, unit_candidates in enumerate(candidates):
        ranks = rank_responses(responses[:, unit])
        for place, concept in enumerate(unit_candidates):
            images = get_labelled_images(labels, concept)
            auprc[unit, place] = compute_average_precision(ranks, images)
    return ConceptScores(
        agreement.correlation,
        candidates,
        auprc,
        chance_auprc=count_labels(labels) / max(1, len(responses)),
        chance_correlation=agreement.chance,
        correlation_limit=agreement.limit,
    )


@dataclass(frozen=True)
class ConceptCorrelations:
    """Correlations of U units with C concepts, U×C, and what chance reaches.

    `chance` and `limit`, U, are those of `ConceptScores`. `spread` is the standard deviation of the
    highest correlations by chance, as a share of their mean, over all units.
    """

    correlation: FloatArray
    chance: FloatArray
    spread: float

    @property
    def limit(self) -> FloatArray:
        """The correlation above which a unit does not agree by chance."""
        return compute_limit(self.chance, self.spread)


def correlate_concepts(responses: FloatArray, labels: Any, seed: int) -> ConceptCorrelations:
    """Correlates every unit with every concept of a sparse matrix images×concepts.

    Raises SightlineError for different numbers of images.
    """
    require_same_images(responses, labels)
    unit_count = responses.shape[1]
    correlation = np.zeros((unit_count, labels.shape[1]), dtype=np.float32)
    orders = make_image_orders(len(responses), unit_count, seed)
    highest_by_chance = np.zeros((len(orders), unit_count))
    projection = LabelProjection.from_labels(labels)
    for units in split_units(responses):
        standardized = standardize_responses(responses[:, units])
        correlation[units] = projection.correlate(standardized)
        for number, order in enumerate(orders):
            shuffled = projection.correlate(standardized[order])
            highest_by_chance[number, units] = shuffled.max(1, initial=0)
    chance = highest_by_chance.mean(0)
    return ConceptCorrelations(correlation, chance, measure_spread(highest_by_chance))


def make_image_orders(image_count: int, unit_count: int, seed: int) -> list[IndexArray]:
    """Random orders of the images, which move every concept to images that lack it.

    There are more of them for few units, since the spread of chance is measured over all units.
    """
    generator = np.random.default_rng(seed)
    count = max(CHANCE_SHUFFLES, -(-CHANCE_SAMPLES // max(1, unit_count)))
    return [generator.permutation(image_count) for _ in range(count)]


def measure_spread(highest: FloatArray) -> float:
    """The standard deviation of numbers shuffles×units, each as a share of its unit's mean."""
    means = highest.mean(0)
    is_alive = means > 0
    if not is_alive.any():
        return 0.0
    deviations = highest[:, is_alive] / means[is_alive] - 1
    degrees_of_freedom = (len(highest) - 1) * int(is_alive.sum())
    return float(np.sqrt((deviations**2).sum() / degrees_of_freedom))


def compute_limit(chance: FloatArray, spread: float) -> FloatArray:
    """What a correlation must exceed, from its mean by chance and the spread of this."""
    return chance * (1 + LIMIT_DEVIATIONS * spread)


def find_highest(scores: FloatArray, count: int) -> IndexArray:
    """The columns of the highest scores of each row, highest first, ties by column."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :count]


# ── labels ──


def make_label_matrix(concepts: Any) -> Any:
    """Labels as a sparse matrix images×concepts, by column, each label once."""
    labels = sparse.csc_array(concepts, dtype=bool)
    labels.sum_duplicates()
    labels.eliminate_zeros()
    return labels


def get_labelled_images(labels: Any, concept: int) -> IndexArray:
    """The images that have a concept, in rising order."""
    return labels.indices[labels.indptr[concept] : labels.indptr[concept + 1]]


def count_labels(labels: Any) -> IndexArray:
    """How many images have each concept."""
    return np.diff(labels.indptr)


def require_same_images(responses: FloatArray, labels: Any) -> None:
    """Raises SightlineError unless responses and labels are of equally many images."""
    if len(responses) != labels.shape[0]:
        raise SightlineError(
            f"the responses are of {len(responses):,} images, the concepts of {labels.shape[0]:,}; "
            "both must be of the same ones"
        )


# ── correlation ──


@dataclass(frozen=True)
class LabelProjection:
    """What turns standardized responses into correlations with C concepts.

    `labels` is concepts×images, sparse or not; `lengths` are the norms of the concepts' centred
    labels, infinite where all images are alike.
    """

    labels: Any
    lengths: FloatArray

    @classmethod
    def from_labels(cls, labels: Any) -> "LabelProjection":
        """Of a sparse matrix images×concepts, as `make_label_matrix` gives it."""
        image_count, concept_count = labels.shape
        counts = count_labels(labels).astype(np.float64)
        variances = counts * (1 - counts / max(1, image_count))
        lengths = np.sqrt(variances)
        lengths[variances <= 0] = np.inf
        transposed = labels.T.astype(np.float32)
        is_dense = labels.nnz > MAX_SPARSE_SHARE * image_count * max(1, concept_count)
        return cls(transposed.toarray() if is_dense else transposed, lengths)

    def correlate(self, standardized: FloatArray) -> FloatArray:
        """Pearson's correlation of standardized responses images×units, as units×concepts."""
        # The responses are centred, so that the labels need not be.
        products = self.labels @ standardized
        return (products / self.lengths[:, None]).T


def standardize_responses(responses: FloatArray) -> FloatArray:
    """Responses images×units, each unit with mean 0 and norm 1.

    A unit is 0 throughout if it is the same for all images, or has a value that is not finite.
    """
    exact = responses.astype(np.float64)
    is_finite = np.isfinite(exact).all(0)
    exact[:, ~is_finite] = 0
    centred = exact - exact.mean(0)
    # The mean of equal numbers may differ from them by a rounding error.
    is_constant = exact.min(0) == exact.max(0)
    centred[:, is_constant] = 0
    lengths = np.linalg.norm(centred, axis=0)
    lengths[lengths == 0] = 1
    return (centred / lengths).astype(np.float32)


def split_units(responses: FloatArray) -> Iterator[slice]:
    """Slices of units whose responses may be in memory as numbers of full precision."""
    image_count, unit_count = responses.shape
    step = max(1, MAX_BLOCK_NUMBERS // max(1, image_count))
    for start in range(0, unit_count, step):
        yield slice(start, min(start + step, unit_count))


# ── area under the precision-recall curve ──


def rank_responses(responses: FloatArray) -> IndexArray:
    """For each image, how many images respond at least as strongly as it does.

    The strongest has rank 1; equal responses share the rank of their last one. All have the last
    rank where a response is not finite.
    """
    if not np.isfinite(responses).all():
        return np.full(len(responses), len(responses))
    rising = np.sort(responses)
    return len(responses) - np.searchsorted(rising, responses, side="left")


def compute_average_precision(
    ranks: IndexArray, images: IndexArray, prevalence: float | None = None
) -> float:
    """AUPRC as average precision: the mean precision at the ranks of the labelled images.

    `ranks` are those of `rank_responses`, so that images of equal response count as one threshold.
    `prevalence` weighs the other images as if that share of all images were labelled (Siblini et
    al. 2020), so that it is the AUPRC of chance whatever their number. 0 where no image is
    labelled.
    """
    if len(images) == 0:
        return 0.0
    label_ranks = np.sort(ranks[images])
    hits = np.searchsorted(label_ranks, label_ranks, side="right")
    if prevalence is None:
        return float((hits / label_ranks).mean())
    other_count = max(1, len(ranks) - len(images))
    weight = len(images) / other_count * (1 - prevalence) / prevalence
    false_alarms = weight * (label_ranks - hits)
    return float((hits / (hits + false_alarms)).mean())
