"""Whether what a group of mistakes has in common is their cause: answers without it, and with it.

Three tests, each beside what happens by chance. Units are turned off, beside as many random units
of the same layers. The place where a unit responds most is covered in the mistakes, beside places
of the same size elsewhere in the same images. And that patch is put onto right images of other
classes, beside patches from elsewhere in the same mistakes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sightline.methods.diagnosis.ablation_effects import UnitSweep
from sightline.methods.diagnosis.enriched_units import EnrichedUnit, draw_random_units
from sightline.models.ablation import find_unit_axes
from sightline.models.layers.feature_maps import reshape_to_unit_grid
from sightline.models.model import Model
from sightline.models.tracing.crops import find_receptive_window
from sightline.models.tracing.prefix_replay import PrefixReplay

Units = list[tuple[str, int]]

# Sets of random units, and random places, that stand for chance.
RANDOM_UNIT_SETS = 40
RANDOM_PLACES = 20

# Units that are turned off together at most, and the share of the best one's effect that each has.
MAX_UNITS_TOGETHER = 8
MIN_EFFECT_SHARE = 0.2

# A test is passed where so large a share of the answers changes, and more than by any random draw
# but one in twenty.
MIN_CHANGED_SHARE = 0.25
MAX_CHANCE = 0.05

# A patch is as wide as what a unit sees, within these shares of the image's side: a unit of an
# early layer sees a part of what it stands for, one of a late layer mostly uses its view's middle.
MIN_COVERED_SHARE = 0.25
MAX_COVERED_SHARE = 0.35


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
        reference: Right images M×C×H×W, over which a unit that is off has its mean.
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

    One layer's units are chosen: those of the layer where they lower it most together.
    """
    effects: dict[str, list[tuple[float, int]]] = {}
    for layer in dict.fromkeys(candidate.layer for candidate in candidates):
        units = [candidate.unit for candidate in candidates if candidate.layer == layer]
        margins = measure_margins(model, wrong, layer, units)
        drops = (margins[:1] - margins[1:]).mean(1)
        effects[layer] = sorted(zip(drops.tolist(), units, strict=True), reverse=True)
    chosen: Units = []
    largest = 0.0
    for layer, ranked in effects.items():
        best = ranked[0][0]
        strongest = [
            (drop, unit)
            for drop, unit in ranked[:MAX_UNITS_TOGETHER]
            if drop > 0 and drop >= MIN_EFFECT_SHARE * best
        ]
        total = sum(drop for drop, _ in strongest)
        if total > largest:
            largest = total
            chosen = [(layer, unit) for _, unit in strongest]
    return chosen


def measure_margins(
    model: Model, wrong: WrongAnswers, layer: str, units: Sequence[int]
) -> NDArray[np.float64]:
    """How far the predicted class is ahead of the next, with all units and without each of them.

    (1 + units)×images.
    """
    sets = [[unit] for unit in units]
    results = run_without_each(model, wrong.images, layer, sets, wrong.reference)
    return np.stack([compute_margin(logits, wrong.predicted) for logits in results])


def compute_margin(logits: Tensor, label: int) -> NDArray[np.float64]:
    """The logit of a class less the largest of the others, for each image."""
    others = logits.double().clone()
    others[:, label] = -torch.inf
    margin = logits[:, label].double() - others.amax(1)
    return margin.cpu().numpy()


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
    axes = find_unit_axes(model, model.layer(layer))
    sweep = UnitSweep(model.layer(layer), axes, (), "mean")
    substitute = measure_resting_values(model, sweep, reference)
    logits: list[Tensor] = []
    with PrefixReplay(model, sweep.layer) as replay:
        feature, clean = replay.record_or_run_whole(images)
        logits.append(clean)
        for units in unit_sets:
            is_off = torch.zeros(1, dtype=torch.bool)
            for unit in units:
                is_off = is_off | sweep.mark_unit(unit)
            changed = torch.where(is_off.to(feature.device), substitute, feature)
            logits.append(replay.run(changed))
    return logits


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
    axes = find_unit_axes(model, model.layer(layer))
    draws = draw_random_units({layer: axes.count}, units, RANDOM_UNIT_SETS, seed)
    sets = [[unit for _, unit in drawn] for drawn in (units, *draws)]
    results = run_without_each(model, wrong.images, layer, sets, wrong.reference)
    answers = np.stack([logits.argmax(1).cpu().numpy() for logits in results[1:]])
    return make_test("units off", answers != wrong.predicted, answers == wrong.truth)


# ── patches ──


@dataclass(frozen=True)
class Patches:
    """The place in each image where a unit responds most: top, left and the common size."""

    tops: NDArray[np.int64]
    lefts: NDArray[np.int64]
    height: int
    width: int

    def cut(self, images: Tensor) -> Tensor:
        """What the images show there, N×C×height×width."""
        pieces = [
            images[row, :, top : top + self.height, left : left + self.width]
            for row, (top, left) in enumerate(zip(self.tops, self.lefts, strict=True))
        ]
        return torch.stack(pieces)

    def mark(self, images: Tensor) -> Tensor:
        """Which pixels lie there, N×1×H×W."""
        mask = torch.zeros(len(images), 1, *images.shape[-2:], dtype=torch.bool)
        for row, (top, left) in enumerate(zip(self.tops, self.lefts, strict=True)):
            mask[row, :, top : top + self.height, left : left + self.width] = True
        return mask


def locate_patches(model: Model, images: Tensor, layer: str, unit: int) -> Patches:
    """Where a unit responds most in each image: 25 to 35 % of its sides around that place."""
    name = model.layer(layer)
    with torch.no_grad():
        feature = model.run(images, [name])[name]
    maps = reshape_to_unit_grid(feature, images, model, name)[:, unit]
    height, width = images.shape[-2:]
    flat = maps.flatten(1).argmax(1).cpu().numpy()
    rows, columns = np.divmod(flat, maps.shape[2])
    boxes = np.array(
        [
            find_receptive_window(model, name, int(row), int(column), images)
            for row, column in zip(rows, columns, strict=True)
        ]
    )
    patch_height = fit_patch_length(int(boxes[0, 2] - boxes[0, 0]), height)
    patch_width = fit_patch_length(int(boxes[0, 3] - boxes[0, 1]), width)
    centre_rows = (boxes[:, 0] + boxes[:, 2]) / 2
    centre_columns = (boxes[:, 1] + boxes[:, 3]) / 2
    tops = np.round(centre_rows - patch_height / 2).clip(0, height - patch_height)
    lefts = np.round(centre_columns - patch_width / 2).clip(0, width - patch_width)
    return Patches(tops.astype(np.int64), lefts.astype(np.int64), patch_height, patch_width)


def fit_patch_length(seen: int, length: int) -> int:
    """How long a patch is, for a unit that sees so many of an image's pixels along one side."""
    smallest = round(MIN_COVERED_SHARE * length)
    largest = round(MAX_COVERED_SHARE * length)
    return max(1, smallest, min(seen, largest))


def draw_places(patches: Patches, image_size: tuple[int, int], seed: int) -> Patches:
    """Other places of the same size, away from the patches where the image is large enough."""
    generator = np.random.default_rng(seed)
    height, width = image_size
    tops = np.empty_like(patches.tops)
    lefts = np.empty_like(patches.lefts)
    for row, (top, left) in enumerate(zip(patches.tops, patches.lefts, strict=True)):
        for _ in range(20):
            tops[row] = generator.integers(0, height - patches.height + 1)
            lefts[row] = generator.integers(0, width - patches.width + 1)
            is_apart = (
                abs(tops[row] - top) >= patches.height or abs(lefts[row] - left) >= patches.width
            )
            if is_apart:
                break
    return Patches(tops, lefts, patches.height, patches.width)


def cover_with_mean(images: Tensor, patches: Patches) -> Tensor:
    """The images with their own mean color in the place of the patches."""
    mask = patches.mark(images).to(images.device)
    means = images.mean((2, 3), keepdim=True)
    return torch.where(mask, means, images)


def inpaint(images: Tensor, patches: Patches) -> Tensor:
    """The images with the patches filled in from around them (Telea 2004); 3 channels only."""
    import cv2

    mask = patches.mark(images)[:, 0].numpy().astype(np.uint8)
    pixels = (images.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    filled = [
        cv2.inpaint(np.ascontiguousarray(picture), piece, 3, cv2.INPAINT_TELEA)
        for picture, piece in zip(pixels.permute(0, 2, 3, 1).numpy(), mask, strict=True)
    ]
    result = torch.from_numpy(np.stack(filled)).permute(0, 3, 1, 2).float() / 255
    return torch.where(patches.mark(images), result, images.cpu()).to(images.device)


def paste(images: Tensor, pieces: Tensor, patches: Patches) -> Tensor:
    """The images with a piece each at the place of the patches."""
    pasted = images.clone()
    for row, (top, left) in enumerate(zip(patches.tops, patches.lefts, strict=True)):
        pasted[row, :, top : top + patches.height, left : left + patches.width] = pieces[row]
    return pasted


def predict(model: Model, images: Tensor) -> NDArray[np.int64]:
    """The predicted class of each image."""
    with torch.no_grad():
        parts = [model.run(part, ["logits"])["logits"].argmax(1) for part in images.split(64)]
    return torch.cat(parts).cpu().numpy()


def try_removal(model: Model, wrong: WrongAnswers, patches: Patches, kind: str) -> CausalTest:
    """Covers or inpaints the patches of mistakes, beside other places of the same images."""
    fill: Callable[[Tensor, Patches], Tensor]
    fill = inpaint if kind == "patch inpainted" else cover_with_mean
    size = (wrong.images.shape[-2], wrong.images.shape[-1])
    places = [patches, *[draw_places(patches, size, draw) for draw in range(RANDOM_PLACES)]]
    answers = np.stack([predict(model, fill(wrong.images, place)) for place in places])
    return make_test(kind, answers != wrong.predicted, answers == wrong.truth)


def try_pasting(model: Model, wrong: WrongAnswers, patches: Patches, targets: Tensor) -> CausalTest:
    """Puts the patches of mistakes onto right images of other classes, at the same places.

    Beside patches from elsewhere in the same mistakes. `targets` are as many images as there are
    mistakes, or fewer.
    """
    count = min(len(wrong.images), len(targets))
    sources = wrong.images[:count]
    size = (sources.shape[-2], sources.shape[-1])
    shown = Patches(patches.tops[:count], patches.lefts[:count], patches.height, patches.width)
    places = [shown, *[draw_places(shown, size, 100 + draw) for draw in range(RANDOM_PLACES)]]
    pasted = [paste(targets[:count], place.cut(sources), shown) for place in places]
    answers = np.stack([predict(model, images) for images in pasted])
    changed = answers == wrong.predicted
    return make_test("patch pasted", changed, np.zeros_like(changed))


@dataclass(frozen=True)
class ClassShare:
    """How much units count for a class in mistakes and in right answers.

    Attributes:
        in_mistakes: How far the class's lead over the next one falls without the units, on average,
            as a share of its mean lead in right answers.
        in_right: The same for the right answers.
        right_images: How many right answers were asked.
        broken: How many of these change without the units.
    """

    in_mistakes: float
    in_right: float
    right_images: int
    broken: int


def measure_class_share(
    model: Model, wrong: WrongAnswers, right: Tensor, units: Units
) -> ClassShare:
    """How much units of one layer count for the class that mistakes are taken for.

    `right` are right images of that class.
    """
    layer = units[0][0]
    sets = [[unit for _, unit in units]]
    leads = [
        [
            compute_margin(logits, wrong.predicted)
            for logits in run_without_each(model, images, layer, sets, wrong.reference)
        ]
        for images in (wrong.images, right)
    ]
    mistakes_drop = float((leads[0][0] - leads[0][1]).mean())
    right_drop = float((leads[1][0] - leads[1][1]).mean())
    right_lead = max(float(leads[1][0].mean()), 1e-6)
    broken = int(((leads[1][0] >= 0) & (leads[1][1] < 0)).sum())
    return ClassShare(mistakes_drop / right_lead, right_drop / right_lead, len(right), broken)
