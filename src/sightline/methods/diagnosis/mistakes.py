"""From a mistake to its cause: groups of errors, the units behind them, and a test of the cause.

Images of a scan that are taken for one class and lie together in feature space, more of them wrong
than the network's own confidence says (`error_groups`); the units that respond to them as to that
class itself (`enriched_units`); and what the network answers without these units, or with
their strongest patch covered or pasted elsewhere (`causal_tests`).
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sightline.data.scan.true_classes import find_true_classes
from sightline.data.store.reader import Scan
from sightline.errors import SightlineError, check_number_range, join_words
from sightline.methods.diagnosis.causal_tests import (
    CausalTest,
    ClassShare,
    WrongAnswers,
    choose_cause_units,
    measure_class_share,
    try_pasting,
    try_removal,
    try_units,
)
from sightline.methods.diagnosis.compare import StepProgress
from sightline.methods.diagnosis.enriched_units import EnrichedUnit, find_enriched_units
from sightline.methods.diagnosis.error_groups import (
    MIN_GROUP_ERRORS,
    ErrorGroup,
    count_tested_classes,
    find_error_groups,
)
from sightline.methods.diagnosis.image_patches import Patches, locate_patches
from sightline.methods.diagnosis.unit_names import UnitNames, find_unit_names
from sightline.models.ablation import list_unit_numbers
from sightline.models.model import Model

MIN_IMAGES = 50
MIN_ERRORS = 5

# Images of a group that the tests run on, at most.
MAX_TESTED_IMAGES = 48

# Units of a cause count for the class at least as much as this share of its lead in right answers.
MIN_CLASS_SHARE = 0.3

# Right answers for other classes change without the units of a cause at most this share as often as
# the mistakes: a unit that everything rests on is no cause of these.
MAX_OTHER_SHARE = 0.5

# Right images over which a unit that is off has its mean.
REFERENCE_IMAGES = 24

# Right images that a unit's responses are compared with, at least.
MIN_RIGHT_IMAGES = 5

# Layers whose units are tested, the most enriched ones.
MAX_TESTED_LAYERS = 4

# Units of each group that are named, beside those of its cause.
NAMED_UNITS = 8

# True classes that a sentence names.
SHOWN_CLASSES = 3

# Images of unknown class that are named for labelling, for each group.
MAX_LABELLED = 12

# Wrong answers that are named one by one, those that the network is surest of.
MAX_SUREST = 24

ReadImages = Callable[[Sequence[int]], Tensor]


@dataclass(frozen=True)
class Evidence:
    """What is known of n images of known class. Ids are those of the scan.

    Attributes:
        ids: n.
        features: n×d.
        responses: n×units by layer.
        labels: True classes, n.
        predicted: Predicted classes, n.
        confidence: Their probabilities, n.
        class_names: The network's classes.
    """

    ids: NDArray[np.int64]
    features: NDArray[np.floating]
    responses: Mapping[str, NDArray[np.floating]]
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    confidence: NDArray[np.float64]
    class_names: tuple[str, ...]

    @property
    def is_wrong(self) -> NDArray[np.bool_]:
        """Whether an image's predicted class is not the true one."""
        return self.labels != self.predicted


@dataclass(frozen=True)
class MistakeGroup:
    """A group of mistakes and what was found of its cause.

    Attributes:
        group: The mistakes, as positions of the evidence.
        ids: Their ids, the most confident first.
        class_name: What they are taken for.
        truth: What each of them is.
        true_classes: What they are, with how many of each, the most frequent first.
        units: Units that respond to them as to the class, the surest first.
        cause: The units among them that the class rests on most; empty without any.
        tests: What was tried, each beside chance.
        share: How much the cause counts for the class, here and in right answers.
        patches: Where the first unit of the cause responds most, in the tested images; or None.
        to_label: Ids of images of unknown class that look like this group.
        sentence: All of it in one sentence.
    """

    group: ErrorGroup
    ids: NDArray[np.int64]
    class_name: str
    truth: tuple[str, ...]
    true_classes: tuple[tuple[str, int], ...]
    units: tuple[EnrichedUnit, ...] = ()
    cause: tuple[tuple[str, int], ...] = ()
    tests: tuple[CausalTest, ...] = ()
    share: ClassShare | None = None
    patches: Patches | None = None
    to_label: tuple[int, ...] = ()
    sentence: str = ""

    @property
    def has_cause(self) -> bool:
        """Whether the mistakes change without the units, and not without random ones.

        The units have to count for the class as much as a good part of its lead in right answers:
        answers near the border of two classes change by little. And right answers for other classes
        have to change far less often.
        """
        share = self.share
        test = self.units_test
        if share is None or test is None or not test.is_passed:
            return False
        changed_share = test.changed / test.images
        others_share = share.others_broken / max(1, share.other_images)
        is_specific = others_share <= MAX_OTHER_SHARE * changed_share
        return share.in_mistakes >= MIN_CLASS_SHARE and is_specific

    @property
    def units_test(self) -> CausalTest | None:
        """The test in which the units of the cause are turned off."""
        return next((test for test in self.tests if test.kind == "units off"), None)

    def to_json(self, unit_names: UnitNames) -> dict[str, Any]:
        """All of it, as JSON holds it."""
        return {
            **self.group.to_json(),
            "taken_for": self.class_name,
            "true_classes": dict(self.true_classes),
            "images_wrong": self.ids.tolist(),
            "units": [
                {
                    "layer": unit.layer,
                    "unit": unit.unit,
                    "name": unit_names.get((unit.layer, unit.unit)),
                    "separation": round(unit.separation, 4),
                    "score": round(unit.score, 2),
                    "class_separation": round(unit.class_separation, 4),
                }
                for unit in self.units
            ],
            "cause": [list(unit) for unit in self.cause],
            "has_cause": self.has_cause,
            "tests": [test.to_json() for test in self.tests],
            "share": None if self.share is None else vars(self.share),
            "to_label": list(self.to_label),
            "sentence": self.sentence,
        }


@dataclass(frozen=True)
class SureMistake:
    """A wrong answer that the network is sure of.

    Attributes:
        id: The image.
        truth: What it is.
        answer: What it is taken for.
        confidence: The probability of that, 0 to 1.
    """

    id: int
    truth: str
    answer: str
    confidence: float

    @property
    def caption(self) -> str:
        """«church, taken for gas pump, 98% sure»."""
        return f"{self.truth}, taken for {self.answer}, {self.confidence:.0%} sure"


@dataclass(frozen=True)
class Mistakes:
    """The groups of a network's mistakes over a scan.

    Attributes:
        network: What the network is called.
        image_count: How many images have a known class.
        unknown_count: How many have none.
        error_count: How many are wrong.
        groups: Groups with a cause first, then by how far they are beyond chance.
        source: How the true classes are known.
        notes: What was not done, and why.
        unit_names: Of the groups' units, by layer and unit, those that have a name.
        surest: The wrong answers that the network is surest of, in a group or not.
    """

    network: str
    image_count: int
    unknown_count: int
    error_count: int
    groups: tuple[MistakeGroup, ...]
    source: str
    notes: tuple[str, ...] = ()
    unit_names: UnitNames = field(default_factory=UnitNames)
    surest: tuple[SureMistake, ...] = ()

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return 1 - self.error_count / self.image_count

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON holds it."""
        return {
            "network": self.network,
            "images": self.image_count,
            "unknown": self.unknown_count,
            "errors": self.error_count,
            "accuracy": round(self.accuracy, 6),
            "classes": self.source,
            "groups": [group.to_json(self.unit_names) for group in self.groups],
            "surest": [
                {**vars(mistake), "confidence": round(mistake.confidence, 4)}
                for mistake in self.surest
            ],
            "notes": list(self.notes),
        }


# ── the groups and their causes ──


def explain_mistakes(
    model: Model,
    evidence: Evidence,
    read_images: ReadImages,
    *,
    group_count: int = 6,
    seed: int = 0,
    callback: StepProgress | None = None,
) -> list[MistakeGroup]:
    """The groups of mistakes with their causes; groups with a cause come first.

    `read_images` gives images N×C×H×W by their ids.
    """
    groups = find_error_groups(
        evidence.features,
        evidence.predicted,
        evidence.confidence,
        evidence.is_wrong,
        group_count=group_count,
        seed=seed,
    )
    examiner = GroupExaminer(model, evidence, read_images, seed)
    explained: list[MistakeGroup] = []
    for number, group in enumerate(groups):
        if callback is not None:
            callback("causes", number / len(groups))
        explained.append(examiner.explain_group(group))
    return sorted(explained, key=lambda item: (not item.has_cause, -item.group.excess))


@dataclass(frozen=True)
class GroupExaminer:
    """Finds the cause of groups of mistakes. The attributes are those of `explain_mistakes`."""

    model: Model
    evidence: Evidence
    read_images: ReadImages
    seed: int

    def read(self, positions: NDArray[np.int64]) -> Tensor:
        """The images at these positions of the evidence."""
        ids = self.evidence.ids[positions].tolist()
        return self.read_images(ids).to(self.model.device)

    def explain_group(self, group: ErrorGroup) -> MistakeGroup:
        """One group with its units, and the tests of these."""
        evidence = self.evidence
        truth = tuple(evidence.class_names[label] for label in evidence.labels[group.members])
        right = find_right_images(evidence, group.predicted)
        other_images = find_other_images(evidence, group)
        enriched = find_enriched_units(evidence.responses, group.members, right, other_images)
        units = select_layers(enriched)
        explained = MistakeGroup(
            group=group,
            ids=evidence.ids[group.members],
            class_name=evidence.class_names[group.predicted],
            truth=truth,
            true_classes=tuple(Counter(truth).most_common()),
            units=tuple(units),
        )
        if units:
            explained = self.test_units(explained, right)
        return replace(explained, sentence=compose_sentence(explained))

    def test_units(self, explained: MistakeGroup, right: NDArray[np.int64]) -> MistakeGroup:
        """The group with the units that its answers rest on, and all tests of these."""
        model = self.model
        group = explained.group
        tested = group.members[:MAX_TESTED_IMAGES]
        wrong = WrongAnswers(
            images=self.read(tested),
            truth=self.evidence.labels[tested],
            predicted=group.predicted,
            reference=self.read(self.draw_reference(group.predicted)),
        )
        cause = choose_cause_units(model, wrong, explained.units)
        if not cause:
            return explained
        patches = locate_patches(model, wrong.images, *cause[0])
        tests = [try_units(model, wrong, cause, self.seed), *self.try_patches(wrong, patches)]
        share = measure_class_share(
            model,
            wrong,
            right=self.read(right[:MAX_TESTED_IMAGES]),
            others=self.read(self.draw_other_right_images(group.predicted, MAX_TESTED_IMAGES)),
            units=cause,
        )
        return replace(
            explained,
            cause=tuple(cause),
            tests=tuple(tests),
            share=share,
            patches=patches,
        )

    def draw_reference(self, predicted: int) -> NDArray[np.int64]:
        """Some right images of other classes, or of all where there are none."""
        chosen = self.draw_other_right_images(predicted, REFERENCE_IMAGES)
        if len(chosen):
            return chosen
        return np.flatnonzero(~self.evidence.is_wrong)[:REFERENCE_IMAGES]

    def draw_other_right_images(self, predicted: int, count: int) -> NDArray[np.int64]:
        """At most so many right images of other classes than the predicted one."""
        evidence = self.evidence
        candidates = np.flatnonzero(~evidence.is_wrong & (evidence.predicted != predicted))
        generator = np.random.default_rng(self.seed)
        return generator.choice(candidates, min(count, len(candidates)), replace=False)

    def try_patches(self, wrong: WrongAnswers, patches: Patches) -> list[CausalTest]:
        """Covers and inpaints the patches in the mistakes, and pastes them onto right images."""
        tests = [try_removal(self.model, wrong, patches, "patch covered")]
        if wrong.images.shape[1] == 3:
            tests.append(try_removal(self.model, wrong, patches, "patch inpainted"))
        target_rows = self.draw_other_right_images(wrong.predicted, len(wrong.images))
        if len(target_rows):
            tests.append(try_pasting(self.model, wrong, patches, self.read(target_rows)))
        return tests


def find_right_images(evidence: Evidence, label: int) -> NDArray[np.int64]:
    """Right images of a class, evenly drawn; of all classes where it has too few."""
    right = np.flatnonzero(~evidence.is_wrong & (evidence.predicted == label))
    if len(right) < MIN_RIGHT_IMAGES:
        right = np.flatnonzero(~evidence.is_wrong)
    return right


def find_other_images(evidence: Evidence, group: ErrorGroup) -> NDArray[np.int64]:
    """Right images of the classes that the mistakes are of; of all others where they are few."""
    is_other = ~evidence.is_wrong & (evidence.predicted != group.predicted)
    is_alike = is_other & np.isin(evidence.labels, evidence.labels[group.members])
    chosen = is_alike if is_alike.sum() >= MIN_RIGHT_IMAGES else is_other
    return np.flatnonzero(chosen)


def select_layers(units: Sequence[EnrichedUnit]) -> list[EnrichedUnit]:
    """The units of the layers with the most enriched ones."""
    layers = list(dict.fromkeys(unit.layer for unit in units))[:MAX_TESTED_LAYERS]
    return [unit for unit in units if unit.layer in layers]


def compose_sentence(group: MistakeGroup) -> str:
    """What was found in plain words.

    «23 of 31 images taken for gas pump are wrong (9 church, 6 golf ball and 8 others); of images of
    other classes with such confidence 12 would be. Without units 12 and 40 of layer4, 14 of 23 of
    the wrong answers change (1.2 without random units) and 11 are right then…»
    """
    errors = group.group
    region_count = len(errors.region)
    region = f"{region_count} images taken for {group.class_name}"
    if region_count < errors.class_count:
        region += " that lie together in feature space"
    expected = errors.expected_share * region_count
    sentence = (
        f"{len(errors.members)} of {region} are wrong ({name_true_classes(group.true_classes)}); "
        f"of images of other classes with such confidence {expected:.0f} would be."
    )
    test = group.units_test
    share = group.share
    if test is None or share is None:
        return (
            f"{sentence} No unit responds to the mistakes as to {group.class_name}, and more than "
            "to other classes."
        )
    units = list_unit_numbers([unit for _, unit in group.cause])
    return (
        f"{sentence} Without {units} of {group.cause[0][0]}, {test.changed} of {test.images} of "
        f"the wrong answers change ({test.random_changed:.1f} without random units) and "
        f"{test.corrected} are right then; {share.broken} of {share.right_images} right answers "
        f"for {group.class_name} change, and {share.others_broken} of {share.other_images} for "
        "other classes."
    )


def name_true_classes(true_classes: Sequence[tuple[str, int]]) -> str:
    """«9 church, 6 golf ball and 8 others»."""
    named = [f"{count} {name}" for name, count in true_classes[:SHOWN_CLASSES]]
    remaining = sum(count for _, count in true_classes[SHOWN_CLASSES:])
    if remaining:
        named.append(f"{remaining} others")
    return join_words(named)


# ── over a scan ──


def mistakes(
    scan: Scan | str | Path,
    *,
    model: Model | None = None,
    layers: Sequence[str] | None = None,
    groups: int = 6,
    seed: int = 0,
    device: str | None = None,
    callback: StepProgress | None = None,
) -> Mistakes:
    """Groups of a network's mistakes over a scan, with a test of what causes them.

    Args:
        scan: The scan, or the path of its store, with responses and classes.
        model: The network, where the store can't name it.
        layers: Layers whose units may be a cause; all that the scan followed by default.
        groups: At most so many groups, from 1 to 20.
        seed: Of all that is drawn.
        device: Where the network runs.
        callback: Called with the name of the step and the share that is done.

    Raises SightlineError for a scan without classes or responses, with fewer than 50 images of
    known class or fewer than 5 mistakes, and for images that are gone.
    """
    if not isinstance(scan, Scan):
        scan = Scan.open(scan)
    check_number_range("groups", groups, 1, 20)
    truth = find_true_classes(scan)
    if not scan.has_responses:
        raise SightlineError(
            f"{scan.path.name} was made without responses: scan again into another store"
        )
    evidence = gather_scan_evidence(scan, truth.labels, layers)
    if model is None:
        model = scan.model(device)
    else:
        scan.require(model)
    opened = scan

    def read_images(ids: Sequence[int]) -> Tensor:
        return torch.cat([opened.image(id) for id in ids])

    explained = explain_mistakes(
        model, evidence, read_images, group_count=groups, seed=seed, callback=callback
    )
    unknown = np.flatnonzero(~truth.known)
    explained = [add_images_to_label(group, scan, unknown) for group in explained]
    notes: list[str] = []
    if not explained:
        notes.append(explain_no_group(evidence))
    if not len(unknown):
        notes.append("every image has a class, so that none is named for labelling")
    return Mistakes(
        network=model.name,
        image_count=len(evidence.ids),
        unknown_count=len(unknown),
        error_count=int(evidence.is_wrong.sum()),
        groups=tuple(explained),
        source=truth.source,
        notes=tuple(notes),
        unit_names=find_unit_names(scan, list_shown_units(explained)),
        surest=find_surest_mistakes(evidence),
    )


def list_shown_units(groups: Sequence[MistakeGroup]) -> list[tuple[str, int]]:
    """The units of the groups' causes, and the surest ones of each group."""
    places: list[tuple[str, int]] = []
    for group in groups:
        places += group.cause
        places += [(unit.layer, unit.unit) for unit in group.units[:NAMED_UNITS]]
    return places


def gather_scan_evidence(
    scan: Scan, labels: NDArray[np.int64], layers: Sequence[str] | None
) -> Evidence:
    """What a scan tells of its images of known class. Raises SightlineError for too few."""
    ids = np.flatnonzero(labels >= 0)
    if len(ids) < MIN_IMAGES:
        raise SightlineError(
            f"{scan.path.name} has {len(ids)} images of known class; groups of mistakes need "
            f"{MIN_IMAGES}: occlusion and saliency explain one image"
        )
    best, probabilities = scan.top5
    predicted = best[ids, 0].numpy().astype(np.int64)
    error_count = int((predicted != labels[ids]).sum())
    if error_count < MIN_ERRORS:
        raise SightlineError(
            f"{error_count} of {len(ids)} images in {scan.path.name} are mistakes; groups need "
            f"{MIN_ERRORS}. sightline ablate says which units the right answers rest on"
        )
    if error_count == len(ids):
        raise SightlineError(
            f"none of {len(ids)} answers in {scan.path.name} is right: the images' classes may be "
            "other ones than the network's, or in another order"
        )
    chosen = scan.layers if layers is None else [scan.layer(layer) for layer in layers]
    responses = {layer: scan.responses(layer, images=ids.tolist()) for layer in chosen}
    if scan.vector_layers:
        features = scan.vectors(scan.vector_layers[0]).numpy()[ids]
    else:
        features = responses[chosen[-1]]
    return Evidence(
        ids=ids,
        features=features,
        responses=responses,
        labels=labels[ids],
        predicted=predicted,
        confidence=probabilities[ids, 0].double().numpy(),
        class_names=tuple(scan.model_labels),
    )


def find_surest_mistakes(evidence: Evidence) -> tuple[SureMistake, ...]:
    """The wrong answers of the highest confidence, the surest first."""
    wrong = np.flatnonzero(evidence.is_wrong)
    order = np.argsort(-evidence.confidence[wrong], kind="stable")
    return tuple(
        SureMistake(
            id=int(evidence.ids[position]),
            truth=evidence.class_names[evidence.labels[position]],
            answer=evidence.class_names[evidence.predicted[position]],
            confidence=float(evidence.confidence[position]),
        )
        for position in wrong[order][:MAX_SUREST].tolist()
    )


def explain_no_group(evidence: Evidence) -> str:
    """Why there is no group of mistakes."""
    class_count = count_tested_classes(evidence.predicted, evidence.is_wrong)
    if not class_count:
        return (
            f"no class is predicted for {MIN_GROUP_ERRORS} wrong images or more, so that there is "
            "no group to test: scan more images of each class"
        )
    noun = "class that is" if class_count == 1 else "classes that are"
    return (
        f"no group of mistakes is beyond chance: among the images of the {class_count} {noun} "
        f"predicted for {MIN_GROUP_ERRORS} wrong images or more, the network is wrong about as "
        "often as images of such confidence are"
    )


def add_images_to_label(
    group: MistakeGroup, scan: Scan, unknown: NDArray[np.int64]
) -> MistakeGroup:
    """The group with images of unknown class that are taken for its class, too.

    Those to which the units of its cause respond most come first; without a cause, the least
    confident ones.
    """
    best, probabilities = scan.top5
    alike = unknown[best[unknown, 0].numpy() == group.group.predicted]
    if not len(alike):
        return group
    if group.cause:
        layer = group.cause[0][0]
        units = [unit for _, unit in group.cause]
        values = scan.responses(layer, units=units, images=alike.tolist()).astype(np.float32)
        order = np.argsort(-values.mean(1), kind="stable")
    else:
        order = np.argsort(probabilities[alike, 0].numpy(), kind="stable")
    return replace(group, to_label=tuple(alike[order][:MAX_LABELLED].tolist()))
