"""The names of a layer's units: the concept that each agrees with best, if the name survives.

A name is given only if its two scores fall in both tests of `checks`, and if the unit correlates
with it more than with the best of the same concepts on random images.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sightline.data.store.reader import Scan
from sightline.methods.units.naming.checks import (
    NameScores,
    SpoiledLabels,
    score_extra_labels,
    score_labels,
    score_missing_labels,
    spoil_labels,
)
from sightline.methods.units.naming.concepts import ConceptTable, collect_class_concepts
from sightline.methods.units.naming.formulas import FormulaSearch
from sightline.methods.units.naming.scores import (
    CANDIDATES_PER_UNIT,
    ConceptCorrelations,
    FloatArray,
    IndexArray,
    compute_limit,
    correlate_concepts,
    find_highest,
    make_image_orders,
    rank_responses,
    split_units,
    standardize_responses,
)

# Half of fewer images is too few to tell a class from a picture.
MIN_CONCEPT_IMAGES = 5

MAX_NAMED_IMAGES = 100_000  # that names are found with

# The share of the way from chance to 1 that the AUPRC of a name goes at least to stand beside a
# picture: in early layers names that pass their tests are hardly better than chance.
MIN_NAME_GAIN = 0.25


def fits_well(auprc: float, chance: float) -> bool:
    """Whether a name of that AUPRC, where chance gives another, may stand beside a picture."""
    return auprc >= chance + MIN_NAME_GAIN * (1 - chance)


@dataclass(frozen=True)
class UnitName:
    """What a unit is named after, how well it agrees with it, and the tests of the name.

    `chance` is the AUPRC of a unit that knows nothing, the share of the images that have the
    concept. `chance_correlation` is the unit's highest correlation with any of the concepts on
    random images, on average, and `correlation_limit` what it hardly ever exceeds. `count` images
    have the concept. `missing` and `extra` are the scores with half of the concept's labels gone,
    and with as many wrong ones added, as `checks` defines them.
    """

    text: str
    auprc: float
    correlation: float
    chance: float
    chance_correlation: float
    correlation_limit: float
    count: int
    missing: NameScores
    extra: NameScores

    @property
    def passes_missing_label(self) -> bool:
        """Whether both scores fall when half of the labels are gone."""
        return self.missing.is_below(self._scores)

    @property
    def passes_extra_label(self) -> bool:
        """Whether both scores fall when as many wrong labels are added."""
        return self.extra.is_below(self._scores)

    @property
    def is_above_chance(self) -> bool:
        """Whether the unit agrees with the concept more than with any on random images."""
        return self.correlation > self.correlation_limit and self.auprc > self.chance

    @property
    def survives(self) -> bool:
        """Whether the name may be shown."""
        return self.is_above_chance and self.passes_missing_label and self.passes_extra_label

    @property
    def fits_well(self) -> bool:
        """Whether the name agrees with its unit well enough to stand beside a picture."""
        return fits_well(self.auprc, self.chance)

    @property
    def _scores(self) -> NameScores:
        return NameScores(self.auprc, self.correlation)

    def to_row(self) -> dict[str, Any]:
        """The name and its numbers, as `labels` lists them."""
        return {
            "name": self.text,
            "auprc": self.auprc,
            "auprc_chance": self.chance,
            "correlation": self.correlation,
            "correlation_chance": self.chance_correlation,
            "correlation_limit": self.correlation_limit,
            "name_images": self.count,
            "passes_missing_label": self.passes_missing_label,
            "passes_extra_label": self.passes_extra_label,
        }


def name_units(
    scan: Scan,
    layer: str,
    concepts: ConceptTable | None = None,
    *,
    units: Sequence[int] | None = None,
    formulas: bool = False,
    min_images: int = MIN_CONCEPT_IMAGES,
    seed: int = 0,
) -> list[UnitName | None]:
    """The name of each unit of a layer of a scan, None for a unit without one.

    With `units` those of these only, in their order; they are the same as among all.

    `concepts` are by default the dataset's classes, or those that the network predicts. Of a scan
    of more than 100,000 images a random 100,000 count. Raises SightlineError for a scan without
    responses, for a layer that it did not follow, and where there is nothing to name units after.
    """
    table = collect_class_concepts(scan) if concepts is None else concepts
    if scan.images <= MAX_NAMED_IMAGES:
        responses = scan.responses(layer)
    else:
        generator = np.random.default_rng(seed)
        images = np.sort(generator.choice(scan.images, MAX_NAMED_IMAGES, replace=False))
        responses = scan.responses(layer, images=images.tolist())
        table = table.select_images(images)
    return name_responses(
        responses, table, units=units, formulas=formulas, min_images=min_images, seed=seed
    )


def name_responses(
    responses: FloatArray,
    concepts: ConceptTable,
    *,
    units: Sequence[int] | None = None,
    formulas: bool = False,
    min_images: int = MIN_CONCEPT_IMAGES,
    seed: int = 0,
) -> list[UnitName | None]:
    """The names of units by their responses, images×units; of all, or of some of them.

    Concepts that fewer than `min_images` images have, or more than two thirds, are left out.
    `formulas` also tries two of them, joined.
    """
    table = concepts.keep_testable(min_images)
    unit_count = responses.shape[1]
    if not table.texts:
        return [None] * (unit_count if units is None else len(units))
    agreement = correlate_concepts(responses, table.labels, seed)
    namer = UnitNamer(table, agreement, seed)
    if formulas:
        search = FormulaSearch.from_concepts(table, min_images)
        orders = make_image_orders(len(responses), unit_count, seed)
        namer = UnitNamer(table, agreement, seed, search, orders)
    if units is not None:
        return [namer.name_unit(unit, describe_responses(responses, unit)) for unit in units]
    names: list[UnitName | None] = []
    for block in split_units(responses):
        standardized = standardize_responses(responses[:, block])
        for offset, unit in enumerate(range(block.start, block.stop)):
            unit_responses = UnitResponses(
                np.ascontiguousarray(standardized[:, offset]), rank_responses(responses[:, unit])
            )
            names.append(namer.name_unit(unit, unit_responses))
    return names


@dataclass(frozen=True)
class UnitResponses:
    """A unit's responses to all images: with mean 0 and norm 1, and their ranks."""

    standardized: FloatArray
    ranks: IndexArray


def describe_responses(responses: FloatArray, unit: int) -> UnitResponses:
    """The responses of one unit out of images×units."""
    column = standardize_responses(responses[:, unit : unit + 1])
    return UnitResponses(np.ascontiguousarray(column[:, 0]), rank_responses(responses[:, unit]))


@dataclass(frozen=True)
class Candidate:
    """A name that a unit may get: its text, its images, and the best correlation by chance."""

    text: str
    images: IndexArray
    chance_correlation: float


@dataclass(frozen=True)
class UnitNamer:
    """Chooses the name of each unit among the concepts of a table.

    `orders` are the random orders of images that the chance of formulas is taken from.
    """

    concepts: ConceptTable
    agreement: ConceptCorrelations
    seed: int
    search: FormulaSearch | None = None
    orders: Sequence[IndexArray] = ()
    _spoiled: dict[str, SpoiledLabels] = field(default_factory=dict[str, SpoiledLabels])

    def name_unit(self, unit: int, responses: UnitResponses) -> UnitName | None:
        """The first of a unit's candidates that survives."""
        for candidate in self.iterate_candidates(unit, responses.standardized):
            name = self.test_candidate(candidate, responses)
            if name.survives:
                return name
        return None

    def iterate_candidates(self, unit: int, standardized: FloatArray) -> Iterator[Candidate]:
        """What a unit may be named after, the highest correlation first."""
        correlation = self.agreement.correlation[unit]
        chance = float(self.agreement.chance[unit])
        if self.search is not None:
            formula = self.search.find_best(standardized, correlation)
            if formula is not None:
                text = formula.describe(self.concepts)
                images = formula.get_images(self.concepts)
                yield Candidate(text, images, self.measure_formula_chance(standardized, chance))
        limit = float(self.agreement.limit[unit])
        for concept in find_highest(correlation[None], CANDIDATES_PER_UNIT)[0].tolist():
            if correlation[concept] <= limit:
                return
            images = self.concepts.get_images(concept)
            yield Candidate(self.concepts.texts[concept], images, chance)

    def measure_formula_chance(self, standardized: FloatArray, chance: float) -> float:
        """The unit's highest correlation with a formula on random images, on average."""
        search = self.search
        if search is None or not self.orders:
            return chance
        total = 0.0
        for order in self.orders:
            shuffled = standardized[order]
            correlation = search.correlate_singly(shuffled)
            formula = search.find_best(shuffled, correlation)
            total += formula.correlation if formula else float(correlation.max(initial=0))
        return total / len(self.orders)

    def test_candidate(self, candidate: Candidate, responses: UnitResponses) -> UnitName:
        """The scores of a name, and those with spoiled labels."""
        image_count = len(responses.ranks)
        images = candidate.images
        prevalence = len(images) / image_count
        limit = compute_limit(np.array(candidate.chance_correlation), self.agreement.spread)
        scores = score_labels(responses.standardized, responses.ranks, images)
        if candidate.text not in self._spoiled:
            self._spoiled[candidate.text] = spoil_labels(images, image_count, self.seed)
        spoiled = self._spoiled[candidate.text]
        return UnitName(
            candidate.text,
            scores.auprc,
            scores.correlation,
            chance=prevalence,
            chance_correlation=candidate.chance_correlation,
            correlation_limit=float(limit),
            count=len(images),
            missing=score_missing_labels(responses.standardized, responses.ranks, spoiled),
            extra=score_extra_labels(responses.standardized, responses.ranks, spoiled, prevalence),
        )
