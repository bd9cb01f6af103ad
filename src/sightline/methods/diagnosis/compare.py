"""Two networks over the same images: where they differ, in which units, and for which images.

Both are read from scans of one dataset with responses. Nothing is run, so that networks of any
architecture, or one network under two preprocessings, can be compared.
"""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline.data.scan.true_classes import find_true_classes, match_class_names
from sightline.data.store.reader import Scan
from sightline.errors import SightlineError, check_number_range, escape_for_display
from sightline.methods.diagnosis.similarity.cka import compute_cka_matrix, find_best_matches
from sightline.methods.diagnosis.similarity.neighbor_graphs import (
    ImageGroup,
    find_groups,
    rank_image_neighbors,
)
from sightline.methods.diagnosis.similarity.prediction_flips import (
    FlipGroup,
    NetworkAnswers,
    Performance,
    count_flips_by_class,
    find_flip_groups,
    measure_performance,
)
from sightline.methods.diagnosis.similarity.unit_changes import (
    ChangedUnit,
    UnitChange,
    count_born_units,
    list_unit_changes,
    rank_changed_units,
)
from sightline.methods.diagnosis.similarity.unit_matching import (
    UnitMatch,
    find_likes,
    find_moves,
    match_units,
    standardize_units,
)
from sightline.methods.diagnosis.unit_names import UnitNames, find_unit_names

DEFAULT_IMAGES = 5000

MIN_IMAGES = 20

# Partners that correlate at least so are taken for the same unit.
SAME_CORRELATION = 0.99

# Of the most changed units, so many are named.
NAMED_UNITS = 24

# Layers of two networks are paired by name where so many of the names are the same.
MIN_SHARED_NAMES = 0.6

StepProgress = Callable[[str, float], object]


@dataclass(frozen=True)
class Comparison:
    """What two networks have in common, and what not. Images are ids of both scans.

    Attributes:
        names: What the two networks are called, the first one first.
        image_count: How many images both scans have.
        ids: The images that were compared.
        layers: The layers of each network, in order.
        cka: Of every layer of the first with every one of the second, −0.1 … 1; NaN for constant
            layers.
        matches: Unit by unit, for pairs of layers.
        unit_changes: All units of the first network in these pairs, the most changed first.
        held_by_old: Groups of images that only the first network holds together.
        held_by_new: The same for the second one.
        class_names: The classes that answers are told by.
        flips: Groups of images with another answer.
        flip_units: For each of these groups the units that changed most.
        flip_share: The share of images with another answer.
        class_flips: How many images leave each class and come to it, classes×2.
        answers: Of both networks.
        truth: The true classes, −1 where unknown; None where no class is known.
        performances: Of both networks, where classes are known.
        notes: What could not be compared, and why.
        unit_names: Of both networks' units that are listed, by layer and unit, those that have a
            name.
    """

    names: tuple[str, str]
    image_count: int
    ids: NDArray[np.int64]
    layers: tuple[tuple[str, ...], tuple[str, ...]]
    cka: NDArray[np.float64]
    matches: tuple[UnitMatch, ...]
    unit_changes: tuple[UnitChange, ...]
    held_by_old: tuple[ImageGroup, ...]
    held_by_new: tuple[ImageGroup, ...]
    class_names: tuple[str, ...]
    flips: tuple[FlipGroup, ...]
    flip_units: tuple[tuple[ChangedUnit, ...], ...]
    flip_share: float
    class_flips: NDArray[np.int64]
    answers: tuple[NetworkAnswers, NetworkAnswers] | None
    truth: NDArray[np.int64] | None
    performances: tuple[Performance, Performance] | None
    notes: tuple[str, ...] = ()
    unit_names: tuple[UnitNames, UnitNames] = field(default_factory=lambda: ({}, {}))

    @property
    def is_same(self) -> bool:
        """Whether every unit has its partner, and no answer differs."""
        fates = {fate for match in self.matches for fate in (*match.fates, *match.origins)}
        is_matched = fates <= {"kept", "dead"}
        correlations = [change.correlation for change in self.changed_units]
        return is_matched and min(correlations, default=1) > SAME_CORRELATION and not self.flips

    def count_fates(self) -> dict[str, int]:
        """How many units of the first network have each fate, and how many were born."""
        counts = Counter(change.fate for change in self.unit_changes)
        born = count_born_units(self.matches)
        if born:
            counts["born"] = born
        return dict(counts)

    @property
    def changed_units(self) -> tuple[UnitChange, ...]:
        """Units of the first network that are not dead, the most changed first."""
        return tuple(change for change in self.unit_changes if change.fate != "dead")

    def to_json(self) -> dict[str, Any]:
        """All numbers, as JSON holds them."""
        return {
            "networks": list(self.names),
            "images": len(self.ids),
            "same": self.is_same,
            "layers": [list(names) for names in self.layers],
            "cka": [list(map(convert_similarity, row)) for row in self.cka.tolist()],
            "fates": self.count_fates(),
            "matches": [match.to_json() for match in self.matches],
            "changed_units": [
                convert_unit_change(change, self.unit_names[0])
                for change in self.changed_units[:100]
            ],
            "held_by_old": list(map(describe_image_group, self.held_by_old)),
            "held_by_new": list(map(describe_image_group, self.held_by_new)),
            "flip_share": self.flip_share,
            "flips": [
                {
                    **group.to_json(),
                    "units": [convert_changed_unit(unit, self.unit_names) for unit in units],
                }
                for group, units in zip(self.flips, self.flip_units, strict=True)
            ],
            "performances": list(map(convert_performance, self.performances or ())),
            "notes": list(self.notes),
        }


def convert_similarity(value: float) -> float | None:
    """A similarity of layers; JSON has no NaN."""
    return None if np.isnan(value) else round(value, 6)


def convert_unit_change(change: UnitChange, names: UnitNames) -> dict[str, Any]:
    """How much a unit changed, as JSON holds it."""
    return {
        "layer": change.layer,
        "unit": change.unit,
        "name": names.get((change.layer, change.unit)),
        "partner": list(change.partner) if change.partner else None,
        "correlation": round(change.correlation, 4),
        "fate": change.fate,
    }


def convert_performance(performance: Performance) -> dict[str, float]:
    """How good a network is, as JSON holds it."""
    return {
        "accuracy": performance.accuracy,
        "confidence": performance.confidence,
        "calibration_error": performance.calibration_error,
    }


def describe_image_group(group: ImageGroup) -> dict[str, Any]:
    """A group of images, as JSON holds it."""
    return {
        "images": group.members.tolist(),
        "together": round(group.together, 4),
        "apart": round(group.apart, 4),
    }


def convert_changed_unit(
    unit: ChangedUnit, unit_names: tuple[UnitNames, UnitNames]
) -> dict[str, Any]:
    """A changed unit, as JSON holds it."""
    old_names, new_names = unit_names
    return {
        "old_name": old_names.get(unit.old) if unit.old else None,
        "new_name": new_names.get(unit.new) if unit.new else None,
        "old": list(unit.old) if unit.old else None,
        "new": list(unit.new) if unit.new else None,
        "change": round(unit.change, 3),
        "surprise": round(unit.surprise, 2),
    }


# ── the comparison ──


def compare(
    old: Scan | str | Path,
    new: Scan | str | Path,
    *,
    images: int = DEFAULT_IMAGES,
    groups: int = 4,
    callback: StepProgress | None = None,
) -> Comparison:
    """Compares two networks by their scans of the same images.

    Args:
        old: The scan of the first network, or its path.
        new: The scan of the second network, of the same dataset.
        images: At most so many images, evenly drawn, from 20 to 20,000.
        groups: At most so many groups of each kind, from 1 to 20.
        callback: Called with the name of the step and the share that is done.

    Raises SightlineError for scans of different datasets, without responses, or of too few images.
    """
    old_scan = old if isinstance(old, Scan) else Scan.open(old)
    new_scan = new if isinstance(new, Scan) else Scan.open(new)
    check_number_range("images", images, MIN_IMAGES, 20_000)
    check_number_range("groups", groups, 1, 20)
    require_same_dataset(old_scan, new_scan)
    for scan in (old_scan, new_scan):
        require_usable(scan)
    report = callback or ignore_progress
    ids = np.unique(np.linspace(0, old_scan.images - 1, images).round().astype(np.int64))

    report("responses", 0.0)
    old_responses = read_responses(old_scan, ids)
    new_responses = read_responses(new_scan, ids)
    report("layers", 0.1)
    cka = compute_cka_matrix(
        old_responses,
        new_responses,
        lambda done, total: report("layers", 0.1 + 0.4 * done / total),
    )
    report("units", 0.5)
    old_units = standardize_layers(old_responses)
    new_units = standardize_layers(new_responses)
    matches = match_layers(old_units, new_units, cka)
    report("groups", 0.75)
    notes: list[str] = []
    held_by_old, held_by_new = find_held_groups(old_scan, new_scan, ids, groups, notes)
    report("answers", 0.9)
    both, class_names, truth = read_both_answers(old_scan, new_scan, ids, notes)
    flips: list[FlipGroup] = []
    class_flips = np.zeros((len(class_names), 2), np.int64)
    performances = None
    flip_share = 0.0
    if both is not None:
        flips = find_flip_groups(*both, class_names, truth, groups)
        class_flips = count_flips_by_class(*both, len(class_names))
        flip_share = float((both[0].labels != both[1].labels).mean())
        performances = measure_performances(both, truth)
    flip_units = rank_changed_units(old_units, new_units, matches, flips)
    unit_changes = list_unit_changes(matches)
    old_places, new_places = list_shown_units(unit_changes, flip_units)
    report("answers", 1.0)
    return Comparison(
        names=name_networks(old_scan, new_scan),
        image_count=old_scan.images,
        ids=ids,
        layers=(tuple(old_responses), tuple(new_responses)),
        cka=cka,
        matches=tuple(matches),
        unit_changes=tuple(unit_changes),
        held_by_old=tuple(held_by_old),
        held_by_new=tuple(held_by_new),
        class_names=class_names,
        flips=tuple(flips),
        flip_units=tuple(tuple(units) for units in flip_units),
        flip_share=flip_share,
        class_flips=class_flips,
        answers=both,
        truth=truth,
        performances=performances,
        notes=tuple(notes),
        unit_names=(find_unit_names(old_scan, old_places), find_unit_names(new_scan, new_places)),
    )


def ignore_progress(step: str, share: float) -> None:
    """What is called where nobody wants to know how far the comparison is."""


# ── what is read ──


def require_same_dataset(old: Scan, new: Scan) -> None:
    """Raises SightlineError unless both scans are of the same images."""
    old_dataset = old.description.dataset
    new_dataset = new.description.dataset
    if old_dataset.sha256 != new_dataset.sha256 or old.images != new.images:
        raise SightlineError(
            f"{old.path.name} is of {old.images} images of {describe_source(old)}, and "
            f"{new.path.name} of {new.images} of {describe_source(new)}; scan the same images with "
            "both networks"
        )


def describe_source(scan: Scan) -> str:
    """The dataset of a scan, as messages name it."""
    dataset = scan.description.dataset
    return escape_for_display(os.path.basename(dataset.source or "") or dataset.kind)


def require_usable(scan: Scan) -> None:
    """Raises SightlineError for a scan without responses, or with too few images."""
    if not scan.has_responses:
        raise SightlineError(
            f"{scan.path.name} was made without responses: scan again into another store"
        )
    if scan.images < MIN_IMAGES:
        raise SightlineError(
            f"{scan.path.name} has {scan.images} images; a comparison needs {MIN_IMAGES}: contrast "
            "compares two networks on one image"
        )


def read_responses(scan: Scan, ids: NDArray[np.int64]) -> dict[str, NDArray[np.floating]]:
    """The responses of all layers to the images, images × units, by layer."""
    wanted = None if len(ids) == scan.images else ids.tolist()
    return {layer: scan.responses(layer, images=wanted) for layer in scan.layers}


def name_networks(old: Scan, new: Scan) -> tuple[str, str]:
    """What the two networks are called; by their stores where both have one name."""
    old_name = escape_for_display(str(old.recipe.get("model")))
    new_name = escape_for_display(str(new.recipe.get("model")))
    if old_name != new_name:
        return old_name, new_name
    old_store = escape_for_display(old.path.stem)
    new_store = escape_for_display(new.path.stem)
    if old_store != new_store:
        return old_store, new_store
    return f"{old_name} (old)", f"{new_name} (new)"


# ── layers and units ──


def standardize_layers(
    responses: Mapping[str, NDArray[np.floating]],
) -> dict[str, NDArray[np.float32]]:
    """The units of all layers with mean 0 and length √n."""
    return {layer: standardize_units(values) for layer, values in responses.items()}


def match_layers(
    old: Mapping[str, NDArray[np.float32]],
    new: Mapping[str, NDArray[np.float32]],
    cka: NDArray[np.float64],
) -> list[UnitMatch]:
    """The units of every pair of layers, matched, with those that are in another layer now.

    `old` and `new` are the standardized units of all layers.
    """
    old_likes, new_likes = find_likes(old, new)
    matches: list[UnitMatch] = []
    for old_layer, new_layer in pair_layers(old, new, cka):
        match = match_units(old[old_layer], new[new_layer], old_layer, new_layer)
        matches.append(find_moves(match, old_likes, new_likes))
    return matches


def pair_layers(
    old: Mapping[str, NDArray[np.floating]],
    new: Mapping[str, NDArray[np.floating]],
    cka: NDArray[np.float64],
) -> list[tuple[str, str]]:
    """Which layer of the first network is looked at beside which of the second.

    Layers of the same name and number of units, where most have that. Else for each layer of either
    network the one of the other with the largest CKA, so that a layer may be in several pairs.
    """
    shared = [name for name in old if name in new and old[name].shape[1] == new[name].shape[1]]
    if len(shared) >= MIN_SHARED_NAMES * max(len(old), len(new)):
        return [(name, name) for name in shared]
    old_layers = list(old)
    new_layers = list(new)
    pairs: set[tuple[int, int]] = set()
    for new_position, old_position in enumerate(find_best_matches(cka).tolist()):
        pairs.add((old_position, new_position))
    for old_position, new_position in enumerate(find_best_matches(cka.T).tolist()):
        pairs.add((old_position, new_position))
    return [
        (old_layers[old_position], new_layers[new_position])
        for old_position, new_position in sorted(pairs)
        if old_position >= 0 and new_position >= 0
    ]


def list_shown_units(
    unit_changes: Sequence[UnitChange], flip_units: Sequence[Sequence[ChangedUnit]]
) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """The units of the first and of the second network that changed most."""
    old_units: list[tuple[str, int]] = []
    new_units: list[tuple[str, int]] = []
    for change in unit_changes[:NAMED_UNITS]:
        old_units.append((change.layer, change.unit))
        if change.partner is not None:
            new_units.append(change.partner)
    for unit in chain.from_iterable(flip_units):
        if unit.old is not None:
            old_units.append(unit.old)
        if unit.new is not None:
            new_units.append(unit.new)
    return old_units, new_units


# ── images ──


def find_held_groups(
    old: Scan, new: Scan, ids: NDArray[np.int64], count: int, notes: list[str]
) -> tuple[list[ImageGroup], list[ImageGroup]]:
    """Groups of images that only the first network holds together, and only the second one.

    By the features of the last layer that each scan keeps. A group of no more difference than
    those between a network and itself with half of its features is not shown.
    """
    features = [read_features(scan, ids) for scan in (old, new)]
    ranks = [rank_image_neighbors(values) for values in features]
    results: list[list[ImageGroup]] = []
    for near, far in ((0, 1), (1, 0)):
        chance = measure_chance_difference(features[near], ranks[near])
        groups = [
            group
            for group in find_groups(ranks[near], ranks[far], count)
            if group.together - group.apart > chance
        ]
        results.append([renumber_group(group, ids) for group in groups])
    if not results[0] and not results[1]:
        notes.append(
            "no group of images is held together by one network more than by the other, beyond "
            "what half of a network's own features differ by"
        )
    return results[0], results[1]


def read_features(scan: Scan, ids: NDArray[np.int64]) -> NDArray[np.floating]:
    """The features of the last layer that a scan keeps, images × numbers."""
    if scan.vector_layers:
        return scan.vectors(scan.vector_layers[-1]).numpy()[ids]
    return scan.responses(scan.layers[-1], images=ids.tolist())


def measure_chance_difference(features: NDArray[np.floating], ranks: NDArray[np.int32]) -> float:
    """The largest difference of any group between a network and itself with half its features."""
    generator = np.random.default_rng(0)
    feature_count = features.shape[1]
    half = generator.permutation(feature_count)[: max(1, feature_count // 2)]
    half_ranks = rank_image_neighbors(features[:, half])
    differences = [group.together - group.apart for group in find_groups(ranks, half_ranks)]
    return max(differences, default=0.0)


def renumber_group(group: ImageGroup, ids: NDArray[np.int64]) -> ImageGroup:
    """The group with ids of images in place of positions."""
    return ImageGroup(ids[group.members], group.together, group.apart, group.strength)


# ── answers ──


def read_both_answers(
    old: Scan, new: Scan, ids: NDArray[np.int64], notes: list[str]
) -> tuple[tuple[NetworkAnswers, NetworkAnswers] | None, tuple[str, ...], NDArray[np.int64] | None]:
    """The answers of both networks by the same classes, these, and the true ones.

    Classes are those of the first network; those of the second are found by name. Where they have
    none in common, answers are not compared.
    """
    class_names = list(map(str, old.model_labels))
    numbers = match_class_names(new.model_labels, class_names)
    if len(class_names) < 2 or len(new.model_labels) < 2 or numbers is None:
        notes.append(
            f"answers are not compared: the networks' classes ({len(old.model_labels)} and "
            f"{len(new.model_labels)}) have no name in common; layers, units and groups are"
        )
        return None, (), None
    for position, number in enumerate(numbers):
        if number < 0:
            numbers[position] = len(class_names)
            class_names.append(new.model_labels[position])
    old_labels, old_confidence = old.top5
    new_labels, new_confidence = new.top5
    old_answers = NetworkAnswers(
        old_labels[ids, 0].numpy(), old_confidence[ids, 0].double().numpy()
    )
    renamed = np.array(numbers)[new_labels[ids, 0].numpy()]
    new_answers = NetworkAnswers(renamed, new_confidence[ids, 0].double().numpy())
    try:
        truth = find_true_classes(old).labels[ids]
    except SightlineError as reason:
        notes.append(f"accuracy is not known: {reason}")
        truth = None
    return (old_answers, new_answers), tuple(class_names), truth


def measure_performances(
    both: tuple[NetworkAnswers, NetworkAnswers], truth: NDArray[np.int64] | None
) -> tuple[Performance, Performance] | None:
    """How good both networks are; None where no class is known."""
    if truth is None:
        return None
    first = measure_performance(both[0], truth)
    second = measure_performance(both[1], truth)
    return None if first is None or second is None else (first, second)
