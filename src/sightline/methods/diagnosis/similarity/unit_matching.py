"""Which unit of one layer is which unit of another: a one-to-one match by their responses.

Li et al. 2016 ("Convergent learning: do different neural networks learn the same
representations?") match units by the correlation of their responses to the same images, so that the
sum of all correlations is largest. What stays without a partner was born, has died, or was
split in two; what has its like in another layer has moved.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

ResponseMatrix = NDArray[np.floating]

# Units with mean 0 and length √n, images×units.
UnitMatrix = NDArray[np.float32]

# Partners correlate at least so; less is shared by many pairs of units.
MIN_CORRELATION = 0.5

# A second unit has to explain so much more of a unit's variance for it to count as split.
MIN_ADDED_SHARE = 0.1

# A unit that varies less than this share of its layer's median is dead.
MIN_RELATIVE_DEVIATION = 1e-4

# What never responds above 0 is dead if more of the images give its largest response.
MAX_TIED_SHARE = 0.1

Fate = Literal["kept", "died", "moved", "split", "merged", "dead"]
Origin = Literal["kept", "born", "moved", "split", "merged", "dead"]


@dataclass(frozen=True)
class UnitMatch:
    """The units of an old layer beside those of a new one.

    Attributes:
        old_layer: Name of the layer in the first network.
        new_layer: Name of the layer in the second one.
        partners: For each old unit its new one, −1 without one, P.
        correlations: Of each old unit with its partner, with its like where it moved, or else the
            largest with any of the layer, P.
        new_partners: For each new unit its old one, −1 without one, Q.
        new_correlations: As `correlations`, Q.
        fates: What became of each old unit, P.
        origins: Where each new unit comes from, Q.
        parts: The two new units of each old one that was split.
        sources: The two old units of each new one that they were merged into.
        moves: For old units that moved, the layer and unit of the new network that are like them.
        arrivals: For new units that moved, the layer and unit of the old network.
    """

    old_layer: str
    new_layer: str
    partners: NDArray[np.int64]
    correlations: NDArray[np.float64]
    new_partners: NDArray[np.int64]
    new_correlations: NDArray[np.float64]
    fates: tuple[Fate, ...]
    origins: tuple[Origin, ...]
    parts: Mapping[int, tuple[int, int]] = field(default_factory=dict[int, tuple[int, int]])
    sources: Mapping[int, tuple[int, int]] = field(default_factory=dict[int, tuple[int, int]])
    moves: Mapping[int, tuple[str, int]] = field(default_factory=dict[int, tuple[str, int]])
    arrivals: Mapping[int, tuple[str, int]] = field(default_factory=dict[int, tuple[str, int]])

    def list_fates(self, fate: Fate) -> list[int]:
        """The old units of one fate."""
        return [unit for unit, its_fate in enumerate(self.fates) if its_fate == fate]

    def list_origins(self, origin: Origin) -> list[int]:
        """The new units of one origin."""
        return [unit for unit, its_origin in enumerate(self.origins) if its_origin == origin]

    def to_json(self) -> dict[str, Any]:
        """What the match says, as JSON holds it."""
        return {
            "old_layer": self.old_layer,
            "new_layer": self.new_layer,
            "partners": self.partners.tolist(),
            "correlations": [round(float(value), 4) for value in self.correlations],
            "fates": list(self.fates),
            "origins": list(self.origins),
            "split": {str(unit): list(parts) for unit, parts in self.parts.items()},
            "merged": {str(unit): list(parts) for unit, parts in self.sources.items()},
            "moved": {str(unit): list(place) for unit, place in self.moves.items()},
        }


def standardize_units(responses: ResponseMatrix) -> NDArray[np.float32]:
    """ResponseMatrix n×p with mean 0 and length √n for each unit; 0 for dead units.

    Dead is what does not vary, and what never responds above 0 while many images give its largest
    response: a convolution that only its padding lifts to 0, which no ReLU lets through.
    """
    values = responses.astype(np.float32)
    largest = values.max(0)
    is_silent = (largest <= 0) & ((values == largest).mean(0) > MAX_TIED_SHARE)
    values -= values.mean(0, dtype=np.float64).astype(np.float32)
    deviations = np.sqrt(np.square(values).mean(0, dtype=np.float64))
    smallest = MIN_RELATIVE_DEVIATION * float(np.median(deviations)) + 1e-12
    scale = np.zeros(len(deviations), np.float32)
    is_alive = (deviations > smallest) & np.logical_not(is_silent)
    scale[is_alive] = 1 / deviations[is_alive]
    return values * scale


def correlate_units(old: NDArray[np.float32], new: NDArray[np.float32]) -> NDArray[np.float64]:
    """Pearson's correlation of every pair of standardized units, P×Q; 0 for dead units."""
    return (old.T @ new).astype(np.float64) / len(old)


def match_units(
    old_units: UnitMatrix, new_units: UnitMatrix, old_layer: str = "", new_layer: str = ""
) -> UnitMatch:
    """The one-to-one match of two layers' standardized units, n×P and n×Q, for the same images."""
    from scipy.optimize import linear_sum_assignment

    correlations = correlate_units(old_units, new_units)
    old_rows, new_rows = linear_sum_assignment(correlations, maximize=True)

    partners = np.full(old_units.shape[1], -1)
    new_partners = np.full(new_units.shape[1], -1)
    for unit, partner in zip(old_rows.tolist(), new_rows.tolist(), strict=True):
        if correlations[unit, partner] >= MIN_CORRELATION:
            partners[unit] = partner
            new_partners[partner] = unit
    is_dead = np.logical_not(old_units.any(axis=0))
    is_new_dead = np.logical_not(new_units.any(axis=0))
    fates: list[Fate] = []
    for unit, partner in enumerate(partners):
        fate: Fate = "dead" if is_dead[unit] else "kept" if partner >= 0 else "died"
        fates.append(fate)
    origins: list[Origin] = []
    for unit, partner in enumerate(new_partners):
        origin: Origin = "dead" if is_new_dead[unit] else "kept" if partner >= 0 else "born"
        origins.append(origin)
    match = UnitMatch(
        old_layer=old_layer,
        new_layer=new_layer,
        partners=partners,
        correlations=read_correlations(correlations, partners),
        new_partners=new_partners,
        new_correlations=read_correlations(correlations.T, new_partners),
        fates=tuple(fates),
        origins=tuple(origins),
    )
    return find_splits(match, old_units, new_units, correlations)


def read_correlations(
    correlations: NDArray[np.float64], partners: NDArray[np.int64]
) -> NDArray[np.float64]:
    """The correlation of each unit with its partner, or else the largest with any."""
    rows = np.arange(len(partners))
    with_partner = correlations[rows, np.maximum(partners, 0)]
    return np.where(partners >= 0, with_partner, correlations.max(1))


# ── units that became two, or one ──


def find_splits(
    match: UnitMatch,
    old: NDArray[np.float32],
    new: NDArray[np.float32],
    correlations: NDArray[np.float64],
) -> UnitMatch:
    """The match with the units that two others explain together better than one alone."""
    born = match.list_origins("born")
    died = match.list_fates("died")
    halves = find_pairs(born, match.partners, new, correlations)
    sources = find_pairs(died, match.new_partners, old, correlations.T)

    fates = list(match.fates)
    origins = list(match.origins)
    for unit, pair in halves.items():
        fates[unit] = "split"
        for half in pair:
            origins[half] = "split"
    for unit, pair in sources.items():
        if origins[unit] == "split":
            continue
        origins[unit] = "merged"
        for half in pair:
            fates[half] = "merged"
    return replace(match, fates=tuple(fates), origins=tuple(origins), parts=halves, sources=sources)


def find_pairs(
    candidates: Sequence[int],
    partners: NDArray[np.int64],
    units: NDArray[np.float32],
    correlations: NDArray[np.float64],
) -> dict[int, tuple[int, int]]:
    """The units that a candidate and another unit explain together.

    `candidates` are units without a partner on the side of `units`, n×Q; `correlations`, P×Q, are
    with the other side, whose `partners` are P. The other unit is the explained one's partner, or
    the unpaired candidate that is second most like it.
    """
    pairs: dict[int, tuple[int, int]] = {}
    for candidate in candidates:
        explained = int(correlations[:, candidate].argmax())
        partner = int(partners[explained])
        if partner < 0:
            rivals = [unit for unit in candidates if unit != candidate]
            if not rivals:
                continue
            partner = max(rivals, key=lambda unit: correlations[explained, unit])
        if explained in pairs:
            continue
        first = float(correlations[explained, partner])
        second = float(correlations[explained, candidate])
        between = float(units[:, partner] @ units[:, candidate]) / len(units)
        if is_explained_by_both(first, second, between):
            pairs[explained] = (min(partner, candidate), max(partner, candidate))
    return pairs


def is_explained_by_both(first: float, second: float, between: float) -> bool:
    """Whether two units explain a third together, each a part of it of its own.

    From the third's correlation with each and that of the two; the shares of variance are those of
    a linear regression.
    """
    unshared = 1 - between * between
    if unshared < MIN_ADDED_SHARE:
        return False
    first_weight = (first - second * between) / unshared
    second_weight = (second - first * between) / unshared
    share = first * first_weight + second * second_weight
    added = share - max(first, second) ** 2
    is_positive = first_weight > 0 and second_weight > 0
    return is_positive and added >= MIN_ADDED_SHARE and share >= MIN_CORRELATION**2


# ── units that are in another layer now ──


@dataclass(frozen=True)
class UnitLike:
    """The layer and unit of the other network that a unit is like, and their correlation."""

    place: tuple[str, int]
    correlation: float


@dataclass(frozen=True)
class LayerLikes:
    """For each unit of a layer the most like unit of a layer of the other network.

    `units` are their numbers, P, and `correlations` how like they are, P.
    """

    units: NDArray[np.int64]
    correlations: NDArray[np.float64]


# For each layer of one network its likes in each layer of the other.
NetworkLikes = dict[str, dict[str, LayerLikes]]


def find_likes(
    old: Mapping[str, UnitMatrix], new: Mapping[str, UnitMatrix]
) -> tuple[NetworkLikes, NetworkLikes]:
    """The likes of the first network's units in the second, and the reverse.

    `old` and `new` are the standardized units of all layers.
    """
    old_likes: NetworkLikes = {layer: {} for layer in old}
    new_likes: NetworkLikes = {layer: {} for layer in new}
    for old_layer, old_units in old.items():
        for new_layer, new_units in new.items():
            products = old_units.T @ new_units
            old_likes[old_layer][new_layer] = find_highest(products, len(old_units))
            new_likes[new_layer][old_layer] = find_highest(products.T, len(old_units))
    return old_likes, new_likes


def find_highest(products: NDArray[np.float32], image_count: int) -> LayerLikes:
    """The likes of each row's unit, from products of standardized units over so many images."""
    units = products.argmax(1)
    highest = products[np.arange(len(products)), units]
    return LayerLikes(units, highest.astype(np.float64) / image_count)


def find_moves(match: UnitMatch, old_likes: NetworkLikes, new_likes: NetworkLikes) -> UnitMatch:
    """The match with the units whose like is in another layer of the other network."""
    likes = choose_likes(match.list_fates("died"), match.new_layer, old_likes[match.old_layer])
    origin_likes = choose_likes(
        match.list_origins("born"), match.old_layer, new_likes[match.new_layer]
    )
    fates = list(match.fates)
    for unit in likes:
        fates[unit] = "moved"
    origins = list(match.origins)
    for unit in origin_likes:
        origins[unit] = "moved"
    return replace(
        match,
        fates=tuple(fates),
        origins=tuple(origins),
        correlations=take_correlations(match.correlations, likes),
        new_correlations=take_correlations(match.new_correlations, origin_likes),
        moves={unit: like.place for unit, like in likes.items()},
        arrivals={unit: like.place for unit, like in origin_likes.items()},
    )


def take_correlations(
    correlations: NDArray[np.float64], likes: Mapping[int, UnitLike]
) -> NDArray[np.float64]:
    """The correlations of units, with those of their likes."""
    result = correlations.copy()
    for unit, like in likes.items():
        result[unit] = like.correlation
    return result


def choose_likes(
    units: Sequence[int], own_layer: str, likes: Mapping[str, LayerLikes]
) -> dict[int, UnitLike]:
    """For some units of a layer the most like unit outside one layer, where one is like them."""
    chosen: dict[int, UnitLike] = {}
    for layer, layer_likes in likes.items():
        if layer == own_layer:
            continue
        for unit in units:
            correlation = float(layer_likes.correlations[unit])
            highest = chosen[unit].correlation if unit in chosen else MIN_CORRELATION
            if correlation >= highest:
                chosen[unit] = UnitLike((layer, int(layer_likes.units[unit])), correlation)
    return chosen
