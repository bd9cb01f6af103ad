"""What became of units between two networks: of all of them, and of those behind a group of flips.

Where a layer stands beside several of the other network, a unit counts once, by its best match.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sightline.methods.diagnosis.similarity.prediction_flips import FlipGroup
from sightline.methods.diagnosis.similarity.unit_matching import (
    Fate,
    UnitMatch,
    UnitMatrix,
)

# Units whose responses changed most, for each group of flips.
UNITS_PER_GROUP = 4

# Of several matches of one unit the one with the first of these fates counts.
FATE_ORDER: tuple[Fate, ...] = ("kept", "moved", "split", "merged", "died", "dead")


@dataclass(frozen=True)
class UnitChange:
    """A unit of the first network, and how much of it is left in the second.

    Attributes:
        layer, unit: Of the first network.
        partner: Layer and unit of the second network, or None.
        correlation: With the partner, or else the largest with any unit of the layers beside its
            own.
        fate: What became of it.
    """

    layer: str
    unit: int
    partner: tuple[str, int] | None
    correlation: float
    fate: str


def list_unit_changes(matches: Sequence[UnitMatch]) -> list[UnitChange]:
    """All units of the first network, the most changed first.

    Units without a like come before others, and among them those of early layers: what changes
    there changes much that follows.
    """
    best_changes: dict[tuple[str, int], UnitChange] = {}
    for change in iterate_unit_changes(matches):
        key = (change.layer, change.unit)
        best = best_changes.get(key)
        if best is None or order_by_likeness(change) < order_by_likeness(best):
            best_changes[key] = change
    lost: list[UnitChange] = []
    kept: list[UnitChange] = []
    for change in best_changes.values():
        same_kind = kept if change.fate == "kept" else lost
        same_kind.append(change)
    layers = list(dict.fromkeys(match.old_layer for match in matches))
    positions = {layer: position for position, layer in enumerate(layers)}
    lost.sort(key=lambda change: (positions[change.layer], change.correlation))
    kept.sort(key=lambda change: change.correlation)
    return [*lost, *kept]


def order_by_likeness(change: UnitChange) -> tuple[int, float]:
    """What sorts the matches of one unit, the best first."""
    return FATE_ORDER.index(change.fate), -change.correlation


def iterate_unit_changes(matches: Sequence[UnitMatch]) -> Iterator[UnitChange]:
    """What became of each unit of the first network, by each match of its layer."""
    for match in matches:
        for unit, fate in enumerate(match.fates):
            partner = match.moves.get(unit)
            partner_unit = int(match.partners[unit])
            if partner is None and partner_unit >= 0:
                partner = (match.new_layer, partner_unit)
            correlation = float(match.correlations[unit])
            yield UnitChange(match.old_layer, unit, partner, correlation, fate)


def count_born_units(matches: Sequence[UnitMatch]) -> int:
    """How many units of the second network nothing in the first one responded like."""
    is_born: dict[tuple[str, int], bool] = {}
    for match in matches:
        for unit, origin in enumerate(match.origins):
            key = (match.new_layer, unit)
            is_born[key] = origin == "born" and is_born.get(key, True)
    return sum(is_born.values())


# ── units behind a group of flips ──


@dataclass(frozen=True)
class ChangedUnit:
    """A unit whose responses to a group of images changed.

    Attributes:
        old: Layer and unit of the first network; None where it has no such unit.
        new: Layer and unit of the second network; None where it has no such unit.
        change: How much stronger it responds to the group in the second network than in the first,
            in standard deviations over all images.
        surprise: The change against that for the other images, in standard errors.
    """

    old: tuple[str, int] | None
    new: tuple[str, int] | None
    change: float
    surprise: float


def rank_changed_units(
    old: Mapping[str, UnitMatrix],
    new: Mapping[str, UnitMatrix],
    matches: Sequence[UnitMatch],
    groups: Sequence[FlipGroup],
) -> list[list[ChangedUnit]]:
    """For each group the units whose responses to its images changed most.

    `old` and `new` are the standardized units of all layers: responses are in standard deviations
    over all images, so that networks of other scales can be compared. Of a unit without a partner
    its whole response counts as changed.
    """
    changes: list[list[ChangedUnit]] = [[] for _ in groups]
    if not groups:
        return changes
    lost_units = list_lost_units(matches)
    best_matches = find_best_new_matches(matches)
    for position, match in enumerate(matches):
        old_units = old[match.old_layer]
        new_units = new[match.new_layer]
        own_units = np.flatnonzero(best_matches[match.new_layer] == position)
        lost = lost_units.pop(match.old_layer, np.array([], np.int64))
        for group_changes, group in zip(changes, groups, strict=True):
            group_changes.extend(
                list_new_changes(match, old_units, new_units, own_units, group.members)
            )
            group_changes.extend(list_lost_changes(match.old_layer, old_units, lost, group.members))
    return [
        sorted(group_changes, key=lambda unit: -abs(unit.surprise))[:UNITS_PER_GROUP]
        for group_changes in changes
    ]


def find_best_new_matches(matches: Sequence[UnitMatch]) -> dict[str, NDArray[np.int64]]:
    """For each layer of the second network the position of each unit's best match."""
    best_matches: dict[str, NDArray[np.int64]] = {}
    highest: dict[str, NDArray[np.float64]] = {}
    for position, match in enumerate(matches):
        layer = match.new_layer
        # A partner counts more than any correlation without one.
        score = match.new_correlations + 2 * (match.new_partners >= 0)
        if layer not in highest:
            highest[layer] = score
            best_matches[layer] = np.full(len(score), position)
            continue
        is_better = score > highest[layer]
        best_matches[layer][is_better] = position
        highest[layer] = np.maximum(highest[layer], score)
    return best_matches


def list_lost_units(matches: Sequence[UnitMatch]) -> dict[str, NDArray[np.int64]]:
    """The units of each layer of the first network that have no partner in any match."""
    is_lost: dict[str, NDArray[np.bool_]] = {}
    for match in matches:
        has_partner = match.partners >= 0
        is_dead = np.array([fate == "dead" for fate in match.fates])
        is_candidate = np.logical_not(has_partner | is_dead)
        is_lost[match.old_layer] = is_candidate & is_lost.get(match.old_layer, True)
    return {layer: np.flatnonzero(lost) for layer, lost in is_lost.items()}


def list_new_changes(
    match: UnitMatch,
    old_units: NDArray[np.float32],
    new_units: NDArray[np.float32],
    units: NDArray[np.int64],
    members: NDArray[np.int64],
) -> list[ChangedUnit]:
    """The units of a new layer whose responses to a group changed most against their partners'."""
    partners = match.new_partners[units]
    is_paired = partners >= 0
    difference = new_units[:, units]
    difference[:, is_paired] -= old_units[:, partners[is_paired]]
    changes: list[ChangedUnit] = []
    for column, change, surprise in find_largest_changes(difference, members):
        partner = int(partners[column])
        old_unit = (match.old_layer, partner) if partner >= 0 else None
        new_unit = (match.new_layer, int(units[column]))
        changes.append(ChangedUnit(old_unit, new_unit, change, surprise))
    return changes


def list_lost_changes(
    layer: str,
    old_units: NDArray[np.float32],
    lost: NDArray[np.int64],
    members: NDArray[np.int64],
) -> list[ChangedUnit]:
    """The lost units of an old layer that responded most to a group."""
    changes: list[ChangedUnit] = []
    for column, change, surprise in find_largest_changes(-old_units[:, lost], members):
        changes.append(ChangedUnit((layer, int(lost[column])), None, change, surprise))
    return changes


def find_largest_changes(
    difference: NDArray[np.float32], members: NDArray[np.int64]
) -> list[tuple[int, float, float]]:
    """Unit, mean change and its surprise for the units of one layer that changed most.

    `difference` is images × units, `members` are rows of it.
    """
    if not difference.shape[1] or len(members) == len(difference):
        return []
    is_member = np.zeros(len(difference), bool)
    is_member[members] = True
    inside = difference[is_member].mean(0)
    outside = difference[~is_member].mean(0)
    # The spread of all images: a unit that a single member drives is constant for the others.
    error = difference.std(0) / np.sqrt(len(members)) + 1e-3
    surprise = (inside - outside) / error
    strongest = np.argsort(-np.abs(surprise), kind="stable")[:UNITS_PER_GROUP]
    return [(unit, float(inside[unit]), float(surprise[unit])) for unit in strongest.tolist()]
