"""Whether what a group of mistakes has in common is their cause: answers without it, and with it.

Three tests, each beside what happens by chance. Units are turned off, beside as many random units
of the same layers. The place where a unit responds most is covered in the mistakes, beside places
of the same size elsewhere in the same images. And that patch is put onto right images of other
classes, beside patches from elsewhere in the same mistakes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sightline.methods.diagnosis.ablation_effects import UnitSweep
from sightline.methods.diagnosis.enriched_units import EnrichedUnit, draw_random_units
from sightline.methods.diagnosis.image_patches import (
    Patches,
    cover_with_mean,
    draw_places,
    inpaint,
    paste,
)
from sightline.models.ablation import find_unit_axes
from sightline.models.model import Model
from sightline.models.tracing.prefix_replay import PrefixReplay

Units = list[tuple[str, int]]

# Sets of random units, and random places, that stand for chance.
RANDOM_UNIT_SETS = 40
RANDOM_PLACES = 20

# Removing and pasting a patch are tried beside other random places.
FIRST_REMOVAL_SEED = 0
FIRST_PASTING_SEED = 100

# A lead in right answers that is divided by, at least.
SMALLEST_LEAD = 1e-6

# Images that are predicted at once.
PREDICTED_TOGETHER = 64

# Units that are turned off together at most, and the share of the best one's effect that each has.
MAX_UNITS_TOGETHER = 8
MIN_EFFECT_SHARE = 0.2

# A test is passed where so large a share of the answers changes, and more than by any random draw
# but one in twenty.
MIN_CHANGED_SHARE = 0.25
MAX_CHANCE = 0.05


@dataclass(frozen=True)
class CausalTest:
    """How many of a group's answers change by one intervention, and by chance.

    Attributes:
        kind: "units off", "patch covered", "patch inpainted" or "patch pasted".
        images: How many answers there are.
        changed: How many are another class; for a pasted patch, how many become the group's class.
        corrected: How many are the true class then; 0 for a pasted patch.
        random_changed: The mean number that random draws change.
        random_corrected: The mean number that random draws correct.
        p_value: The share of random draws that change at least as many.
    """

    kind: str
    images: int
    changed: int
    corrected: int
    random_changed: float
    random_corrected: float
    p_value: float

    @property
    def is_passed(self) -> bool:
        """Whether the intervention changes many answers, and more than chance does."""
        return self.changed >= MIN_CHANGED_SHARE * self.images and self.p_value <= MAX_CHANCE

    def to_json(self) -> dict[str, Any]:
        """The test, as JSON holds it."""
        return {
            "kind": self.kind,
            "images": self.images,
            "changed": self.changed,
            "corrected": self.corrected,
            "random_changed": round(self.random_changed, 2),
            "random_corrected": round(self.random_corrected, 2),
            "p_value": round(self.p_value, 4),
            "passed": self.is_passed,
        }


def make_test(kind: str, changed: NDArray[np.bool_], corrected: NDArray[np.bool_]) -> CausalTest:
    """The test from what changes and what is corrected, (1 + draws)×images, chance from row 1."""
    counts = changed.sum(1)
    random_counts = counts[1:]
    p_value = (1 + int((random_counts >= counts[0]).sum())) / len(counts)
    corrected_counts = corrected.sum(1)
    return CausalTest(
        kind=kind,
        images=changed.shape[1],
        changed=int(counts[0]),
        corrected=int(corrected_counts[0]),
        random_changed=float(random_counts.mean()),
        random_corrected=float(corrected_counts[1:].mean()),
        p_value=p_value,
    )


@dataclass(frozen=True)
class WrongAnswers:
    """Mistakes of one kind.

    Attributes:
        images: N×C×H×W.
        truth: Their true classes, N.
        predicted: What all of them are taken for.
        reference: Right images of other classes M×C×H×W, over which a unit that is off has its
            mean.
    """

    images: Tensor
    truth: NDArray[np.int64]
    predicted: int
    reference: Tensor


# ── units ──


def choose_cause_units(
    model: Model, wrong: WrongAnswers, candidates: Sequence[EnrichedUnit]
) -> Units:
    """The candidates whose absence lowers the predicted class most, at most eight.

    What right answers for other classes lose without them is taken off, so that units that all
    answers rest on are not chosen. One layer's units are: those of the layer without whose units
    most mistakes change, and fewest other answers.
    """
    cause: Units = []
    best_score = (0.0, 0.0)
    for layer in dict.fromkeys(candidate.layer for candidate in candidates):
        units = [candidate.unit for candidate in candidates if candidate.layer == layer]
        drops = measure_specific_drops(model, wrong, layer, units)
        strongest = select_strongest(drops)
        layer_cause = [(layer, units[position]) for position in strongest]
        if not layer_cause:
            continue
        score = (
            measure_specificity(model, wrong, layer_cause),
            float(drops[strongest].sum()),
        )
        if score > best_score:
            best_score = score
            cause = layer_cause
    return cause


def measure_specificity(model: Model, wrong: WrongAnswers, units: Units) -> float:
    """By how much more of the mistakes than of other right answers change without units; 0 … 1.

    Where it is 0 for all layers, the one whose units the lead falls most without is chosen.
    """
    mistake_share = count_changes(model, wrong.images, wrong, units) / len(wrong.images)
    other_share = count_changes(model, wrong.reference, wrong, units) / len(wrong.reference)
    return max(0.0, mistake_share - other_share)


def select_strongest(drops: NDArray[np.float64]) -> list[int]:
    """Positions of the largest drops, at most eight, that are a good part of the largest."""
    order = np.argsort(-drops, kind="stable")[:MAX_UNITS_TOGETHER]
    smallest = MIN_EFFECT_SHARE * drops[order[0]]
    return [int(position) for position in order if drops[position] > max(0.0, smallest)]


def measure_specific_drops(
    model: Model, wrong: WrongAnswers, layer: str, units: Sequence[int]
) -> NDArray[np.float64]:
    """By how much mistakes lose more of their lead without each unit than other right answers."""
    mistake_drops = measure_lead_drops(model, wrong.images, wrong.reference, layer, units)
    reference_drops = measure_lead_drops(model, wrong.reference, wrong.reference, layer, units)
    return mistake_drops - np.maximum(reference_drops, 0)


def measure_lead_drops(
    model: Model, images: Tensor, reference: Tensor, layer: str, units: Sequence[int]
) -> NDArray[np.float64]:
    """By how much the lead of each image's predicted class falls without each unit, on average."""
    unit_sets = [[unit] for unit in units]
    logits, *logits_without = run_without_each(model, images, layer, unit_sets, reference)
    labels = logits.argmax(1)
    lead = compute_leads(logits, labels).mean()
    return np.array([lead - compute_leads(values, labels).mean() for values in logits_without])


def compute_leads(logits: Tensor, labels: Tensor | int) -> NDArray[np.float64]:
    """The logit of each image's label, or of one label, less the largest of the others."""
    values = logits.double()
    positions = torch.as_tensor(labels, device=logits.device).expand(len(logits))[:, None]
    others = values.scatter(1, positions, -torch.inf)
    leads = values.gather(1, positions)[:, 0] - others.amax(1)
    return leads.cpu().numpy()


def run_without_each(
    model: Model,
    images: Tensor,
    layer: str,
    unit_sets: Sequence[Sequence[int]],
    reference: Tensor,
) -> list[Tensor]:
    """Logits with all units, and without each set of a layer's units.

    A unit that is off is 0 in a layer that has no negative output, such as that of a ReLU. In
    others, such as a convolution in front of a norm, 0 is not off: there it has its mean over the
    reference images.
    """
    name = model.layer(layer)
    sweep = UnitSweep(name, find_unit_axes(model, name), (), "mean")
    substitute = measure_resting_values(model, sweep, reference)
    with PrefixReplay(model, name) as replay:
        feature, clean_logits = replay.record_or_run_whole(images)
        results = [clean_logits]
        for units in unit_sets:
            is_off = sweep.mark_units(units).to(feature.device)
            without_units = torch.where(is_off, substitute, feature)
            results.append(replay.run(without_units))
    return results


def measure_resting_values(model: Model, sweep: UnitSweep, reference: Tensor) -> Tensor:
    """What units have that are off, in the axes of the layer's output."""
    with torch.no_grad():
        feature = model.run(reference, [sweep.layer])[sweep.layer]
    if float(feature.min()) >= 0:
        return feature.new_zeros(())
    return sweep.make_substitute(feature)


def try_units(model: Model, wrong: WrongAnswers, units: Units, seed: int = 0) -> CausalTest:
    """Turns units of one layer off in mistakes, beside as many random units of the layer."""
    layer = units[0][0]
    unit_count = find_unit_axes(model, model.layer(layer)).count
    random_sets = draw_random_units({layer: unit_count}, units, RANDOM_UNIT_SETS, seed)
    unit_sets = [list_units(unit_set) for unit_set in [units, *random_sets]]
    _, *results = run_without_each(model, wrong.images, layer, unit_sets, wrong.reference)
    answers = np.stack([logits.argmax(1).cpu().numpy() for logits in results])
    return make_test("units off", answers != wrong.predicted, answers == wrong.truth)


def list_units(layer_units: Units) -> list[int]:
    """The numbers of units of one layer."""
    return [unit for _, unit in layer_units]


# ── patches ──


def predict(model: Model, images: Tensor) -> NDArray[np.int64]:
    """The predicted class of each image."""
    labels: list[Tensor] = []
    with torch.no_grad():
        for batch in images.split(PREDICTED_TOGETHER):
            logits = model.run(batch, ["logits"])["logits"]
            labels.append(logits.argmax(1))
    return torch.cat(labels).cpu().numpy()


def try_removal(model: Model, wrong: WrongAnswers, patches: Patches, kind: str) -> CausalTest:
    """Covers or inpaints the patches of mistakes, beside other places of the same images."""
    fill = inpaint if kind == "patch inpainted" else cover_with_mean
    answers: list[NDArray[np.int64]] = []
    for places in [patches, *draw_random_places(wrong.images, patches, FIRST_REMOVAL_SEED)]:
        answers.append(predict(model, fill(wrong.images, places)))
    labels = np.stack(answers)
    return make_test(kind, labels != wrong.predicted, labels == wrong.truth)


def try_pasting(model: Model, wrong: WrongAnswers, patches: Patches, targets: Tensor) -> CausalTest:
    """Puts the patches of mistakes onto right images of other classes, at the same places.

    Beside patches from elsewhere in the same mistakes. `targets` are as many images as there are
    mistakes, or fewer.
    """
    count = min(len(wrong.images), len(targets))
    sources = wrong.images[:count]
    source_patches = patches.take_first(count)
    answers: list[NDArray[np.int64]] = []
    for places in [
        source_patches,
        *draw_random_places(sources, source_patches, FIRST_PASTING_SEED),
    ]:
        pasted = paste(targets[:count], places.cut(sources), source_patches)
        answers.append(predict(model, pasted))
    changed = np.stack(answers) == wrong.predicted
    return make_test("patch pasted", changed, np.zeros_like(changed))


def draw_random_places(images: Tensor, patches: Patches, first_seed: int) -> list[Patches]:
    """Sets of other places in the same images, each by a seed of its own."""
    height, width = images.shape[-2:]
    seeds = range(first_seed, first_seed + RANDOM_PLACES)
    return [draw_places(patches, (height, width), seed) for seed in seeds]


@dataclass(frozen=True)
class ClassShare:
    """How much units count for a class in mistakes, in its right answers and in other answers.

    Attributes:
        in_mistakes: How far the class's lead over the next one falls without the units, on average,
            as a share of its mean lead in right answers.
        in_right: The same for the right answers.
        right_images: How many right answers for the class were asked.
        broken: How many of these change without the units.
        other_images: How many right answers for other classes were asked.
        others_broken: How many of these change without the units.
    """

    in_mistakes: float
    in_right: float
    right_images: int
    broken: int
    other_images: int
    others_broken: int


def measure_class_share(
    model: Model, wrong: WrongAnswers, right: Tensor, others: Tensor, units: Units
) -> ClassShare:
    """How much units of one layer count for the class that mistakes are taken for.

    `right` are right images of that class, `others` right images of other classes.
    """
    mistake_leads, mistake_leads_without = measure_leads(model, wrong.images, wrong, units)
    right_leads, right_leads_without = measure_leads(model, right, wrong, units)
    right_lead = max(float(right_leads.mean()), SMALLEST_LEAD)
    mistake_drop = float((mistake_leads - mistake_leads_without).mean())
    right_drop = float((right_leads - right_leads_without).mean())
    is_broken = (right_leads >= 0) & (right_leads_without < 0)
    return ClassShare(
        in_mistakes=mistake_drop / right_lead,
        in_right=right_drop / right_lead,
        right_images=len(right),
        broken=int(is_broken.sum()),
        other_images=len(others),
        others_broken=count_changes(model, others, wrong, units),
    )


def measure_leads(
    model: Model, images: Tensor, wrong: WrongAnswers, units: Units
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The lead of the mistakes' class in each image, with the units of a layer and without them."""
    layer = units[0][0]
    results = run_without_each(model, images, layer, [list_units(units)], wrong.reference)
    leads, leads_without = (compute_leads(logits, wrong.predicted) for logits in results)
    return leads, leads_without


def count_changes(model: Model, images: Tensor, wrong: WrongAnswers, units: Units) -> int:
    """How many images are predicted another class without units of a layer."""
    if not len(images):
        return 0
    layer = units[0][0]
    results = run_without_each(model, images, layer, [list_units(units)], wrong.reference)
    labels, labels_without = (logits.argmax(1) for logits in results)
    return int((labels != labels_without).sum())
