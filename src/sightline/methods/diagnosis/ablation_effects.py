"""What each unit of a layer is needed for: the network's answers without it, over a scan.

Morcos et al. 2018 turn units off one by one and measure accuracy; Zhou et al. 2018 ("Revisiting the
importance of individual units in CNNs via ablation") find that a unit may matter little on the
whole and much for one class, so that both are measured here.

The network runs once up to the layer for each batch (`prefix_replay`), and from there on once for
each unit. A unit whose output is what it is filled with for all images of a batch changes nothing
and is left out.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sightline.data.scan.true_classes import UNKNOWN, find_true_classes
from sightline.data.store.reader import Scan
from sightline.errors import SightlineError, check_number_range, make_out_of_range_error
from sightline.models.ablation import AblationFill, UnitAxes, find_unit_axes
from sightline.models.model import Model
from sightline.models.tracing.prefix_replay import PrefixReplay, ReplayUnsupported

DEFAULT_IMAGES = 512

MAX_IMAGE_BATCH = 64

# What is kept of a pass for one batch takes at most so many bytes.
MAX_KEPT_BYTES = 500_000_000

# Images from which the size of a batch is found.
PILOT_IMAGES = 2

ImageProgress = Callable[[int, int], object]


@dataclass(frozen=True)
class AblationEffects:
    """What the network's answers are without each unit. Shares are in [0, 1].

    Attributes:
        layer: The layer's own name.
        units: The units that were turned off, one at a time, U.
        fill: What stood in their place.
        images: Ids of the images, n.
        class_names: Names of the classes that occur among them, K.
        class_numbers: Their numbers among the network's classes, K.
        class_counts: How many images each has, K.
        reference: What answers are compared with: the true classes, or the network's own answers.
        accuracy: The share of right answers with all units.
        class_accuracy: The same for the images of each class, K.
        unit_accuracy: Without each unit, U.
        unit_class_accuracy: Without each unit, for the images of each class, U×K.
        flips: The share of images whose predicted class is another one without the unit, U.
        probability_change: The mean change of the true class's probability, U×K.
    """

    layer: str
    units: NDArray[np.int64]
    fill: AblationFill
    images: NDArray[np.int64]
    class_names: tuple[str, ...]
    class_numbers: NDArray[np.int64]
    class_counts: NDArray[np.int64]
    reference: str
    accuracy: float
    class_accuracy: NDArray[np.float64]
    unit_accuracy: NDArray[np.float64]
    unit_class_accuracy: NDArray[np.float64]
    flips: NDArray[np.float64]
    probability_change: NDArray[np.float64]

    @property
    def accuracy_drops(self) -> NDArray[np.float64]:
        """How much accuracy is lost without each unit, U."""
        return self.accuracy - self.unit_accuracy

    @property
    def class_drops(self) -> NDArray[np.float64]:
        """How much of each class's accuracy is lost without each unit, U×K."""
        return self.class_accuracy - self.unit_class_accuracy

    def list_strongest(self, count: int) -> list[int]:
        """Positions of the units with the largest loss of accuracy, ties by flips."""
        order = np.lexsort((-self.flips, -self.accuracy_drops))
        return order[:count].tolist()

    def to_json(self) -> dict[str, Any]:
        """All numbers, as JSON holds them."""
        return {
            "layer": self.layer,
            "fill": self.fill,
            "images": len(self.images),
            "reference": self.reference,
            "accuracy": self.accuracy,
            "classes": {
                name: {"images": int(count), "accuracy": float(share)}
                for name, count, share in zip(
                    self.class_names, self.class_counts, self.class_accuracy, strict=True
                )
            },
            "units": [self._describe_unit(position) for position in range(len(self.units))],
        }

    def _describe_unit(self, position: int) -> dict[str, Any]:
        drops = self.class_drops[position]
        worst = int(drops.argmax())
        return {
            "unit": int(self.units[position]),
            "accuracy": float(self.unit_accuracy[position]),
            "accuracy_drop": float(self.accuracy_drops[position]),
            "flips": float(self.flips[position]),
            "most_affected_class": self.class_names[worst],
            "class_drop": float(drops[worst]),
            "class_drops": [round(float(drop), 6) for drop in drops],
            "probability_changes": [
                round(float(change), 6) for change in self.probability_change[position]
            ],
        }


@dataclass(frozen=True)
class UnitSweep:
    """Units of a layer that are turned off one after the other.

    Attributes:
        layer: The layer's own name.
        axes: Which axes of its output count its units.
        units: The units.
        fill: What stands in their place.
        means: The mean of every unit, for "mean"; None for that over each batch.
    """

    layer: str
    axes: UnitAxes
    units: tuple[int, ...]
    fill: AblationFill
    means: NDArray[np.float32] | None = None

    def make_substitute(self, feature: Tensor) -> Tensor:
        """What stands in the place of units, broadcastable to the layer's output."""
        if self.fill == "zero":
            return feature.new_zeros(())
        if self.fill == "resample":
            return feature.roll(1, self.axes.batch_axis)
        if self.means is not None:
            means = torch.from_numpy(np.asarray(self.means, dtype=np.float32))
            return self.axes.spread(means).to(feature)
        other_axes = [axis for axis in range(self.axes.ndim) if axis not in self.axes.lengths]
        return feature.mean(other_axes, keepdim=True)

    def mark_units(self, units: Sequence[int]) -> Tensor:
        """Which elements along the axes of units are those of some units."""
        is_off = torch.zeros(self.axes.count, dtype=torch.bool)
        is_off[list(units)] = True
        return self.axes.spread(is_off)


def measure_ablation_effects(
    model: Model,
    images: Callable[[Sequence[int]], Tensor],
    labels: NDArray[np.int64],
    layer: str,
    *,
    ids: Sequence[int],
    units: Sequence[int] | None = None,
    fill: AblationFill = "zero",
    means: NDArray[np.float32] | None = None,
    reference: str = "the true classes",
    callback: ImageProgress | None = None,
) -> AblationEffects:
    """Turns the units of a layer off one by one, and compares the answers with `labels`.

    Args:
        model: The network.
        images: Gives images by their ids, N×C×H×W in [0, 1].
        labels: The number of the true class of each of the ids.
        layer: The layer, by any of its names.
        ids: Which images.
        units: Which units; all by default.
        fill: What stands in a unit's place: 0; its mean, from `means` or over the first batch; or
            its map in the next image of the batch.
        means: The mean response of every unit, for "mean".
        reference: What the labels are, as a clause for captions.
        callback: Called with the number of images done and of all.

    Raises SightlineError for an unknown layer, for units that it does not have, and where the
    network's output is no class.
    """
    model.require_classes("ablate")
    name = model.layer(layer)
    axes = find_unit_axes(model, name)
    sweep = UnitSweep(name, axes, check_units(name, units, axes.count), fill, means)
    tally = EffectTally(len(sweep.units), labels, len(model.labels))
    done = 0
    for batch in iterate_batches(model, name, images, ids):
        batch_labels = torch.from_numpy(labels[done : done + len(batch)])
        passes = run_without_units(model, sweep, batch)
        tally.add_batch(batch_labels, passes)
        done += len(batch)
        if callback is not None:
            callback(done, len(ids))
    return tally.summarize(model.labels, sweep, np.asarray(ids), reference)


def check_units(layer: str, units: Sequence[int] | None, count: int) -> tuple[int, ...]:
    """The units to turn off; all by default. Raises SightlineError for others than there are."""
    if units is None:
        return tuple(range(count))
    for unit in units:
        if not 0 <= unit < count:
            raise make_out_of_range_error(f"unit of {layer}", unit, 0, count - 1)
    return tuple(sorted(set(units)))


def iterate_batches(
    model: Model,
    layer: str,
    images: Callable[[Sequence[int]], Tensor],
    ids: Sequence[int],
) -> Iterator[Tensor]:
    """The images in batches whose kept passes fit into the memory."""
    if model.findings.runs_one_by_one:
        batch_size = 1
    else:
        batch_size = choose_image_batch(model, layer, images(ids[:PILOT_IMAGES]))
    for start in range(0, len(ids), batch_size):
        yield images(ids[start : start + batch_size]).to(model.device)


def choose_image_batch(model: Model, layer: str, pilot: Tensor) -> int:
    """How many images at once, from what is kept of the pass of a few."""
    try:
        with PrefixReplay(model, layer) as replay:
            feature, _ = replay.record(pilot.to(model.device))
            kept_bytes = replay.kept_bytes + feature.untyped_storage().nbytes()
    except ReplayUnsupported:
        return min(MAX_IMAGE_BATCH, 16)
    per_image = max(1, kept_bytes // len(pilot))
    return int(min(MAX_IMAGE_BATCH, max(1, MAX_KEPT_BYTES // per_image)))


def run_without_units(
    model: Model, sweep: UnitSweep, images: Tensor
) -> Iterator[tuple[int, Tensor]]:
    """The logits of a batch with all units, as (−1, logits), then without each unit.

    Units are numbered by their position in `sweep.units`. Those that change nothing are left out.
    """
    with PrefixReplay(model, sweep.layer) as replay:
        feature, logits = replay.record_or_run_whole(images)
        yield -1, logits
        substitute = sweep.make_substitute(feature)
        for position, unit in enumerate(sweep.units):
            is_off = sweep.mark_units([unit]).to(feature.device)
            changed = torch.where(is_off, substitute, feature)
            if torch.equal(changed, feature):
                continue
            yield position, replay.run(changed)


class EffectTally:
    """Sums over the batches: right answers, changed answers and probabilities, by class."""

    def __init__(self, unit_count: int, labels: NDArray[np.int64], label_count: int) -> None:
        self.class_numbers, self.class_counts = np.unique(labels, return_counts=True)
        self.class_position = np.full(label_count, UNKNOWN)
        self.class_position[self.class_numbers] = np.arange(len(self.class_numbers))
        class_count = len(self.class_numbers)
        self.right = np.zeros(class_count)
        self.unit_right = np.zeros((unit_count, class_count))
        self.unit_flips = np.zeros(unit_count)
        self.probability_sums = np.zeros((unit_count, class_count))
        self.image_count = len(labels)

    def add_batch(self, labels: Tensor, passes: Iterator[tuple[int, Tensor]]) -> None:
        """Adds what `run_without_units` gives of a batch."""
        _, logits = next(passes)
        rows = self.class_position[labels.numpy()]
        predicted = logits.argmax(1).cpu()
        is_right = (predicted == labels).double().numpy()
        probability = pick_probability(logits, labels)
        counts = np.bincount(rows, is_right, len(self.right))
        self.right += counts
        # A unit that changes nothing is not run.
        self.unit_right += counts
        for position, changed_logits in passes:
            changed = changed_logits.argmax(1).cpu()
            difference = (changed == labels).double().numpy() - is_right
            self.unit_right[position] += np.bincount(rows, difference, len(self.right))
            self.unit_flips[position] += int((changed != predicted).sum())
            change = pick_probability(changed_logits, labels) - probability
            self.probability_sums[position] += np.bincount(rows, change, len(self.right))

    def summarize(
        self,
        labels: Sequence[str],
        sweep: UnitSweep,
        ids: NDArray[np.int64],
        reference: str,
    ) -> AblationEffects:
        """The shares."""
        return AblationEffects(
            layer=sweep.layer,
            units=np.asarray(sweep.units, dtype=np.int64),
            fill=sweep.fill,
            images=ids.astype(np.int64),
            class_names=tuple(str(labels[number]) for number in self.class_numbers.tolist()),
            class_numbers=self.class_numbers,
            class_counts=self.class_counts,
            reference=reference,
            accuracy=float(self.right.sum() / self.image_count),
            class_accuracy=self.right / self.class_counts,
            unit_accuracy=self.unit_right.sum(1) / self.image_count,
            unit_class_accuracy=self.unit_right / self.class_counts,
            flips=self.unit_flips / self.image_count,
            probability_change=self.probability_sums / self.class_counts,
        )


def pick_probability(logits: Tensor, labels: Tensor) -> NDArray[np.float64]:
    """The probability of each image's label, by the softmax of the logits."""
    probabilities = logits.double().softmax(1).cpu()
    return probabilities.gather(1, labels[:, None])[:, 0].numpy()


# ── over a scan ──


def ablate(
    scan: Scan | str | Path,
    layer: str = "penultimate",
    *,
    model: Model | None = None,
    units: Sequence[int] | None = None,
    fill: AblationFill = "zero",
    images: int = DEFAULT_IMAGES,
    device: str | None = None,
    callback: ImageProgress | None = None,
) -> AblationEffects:
    """What each unit of a layer is needed for, over the images of a scan.

    Where no class is known, answers are compared with the network's own, with all its units.

    Args:
        scan: The scan, or the path of its store.
        layer: The layer whose units are turned off one by one.
        model: The network, where the store can't name it.
        units: Which units; all by default.
        fill: "zero", "mean" or "resample": see `Model.ablated`; the latter two take the batch.
        images: At most so many images, evenly drawn, from 2 to 1,000,000.
        device: Where the network runs.
        callback: Called with the number of images done and of all.

    Raises SightlineError for unknown layers and units, for images that are gone, and for a network
    without classes.
    """
    if not isinstance(scan, Scan):
        scan = Scan.open(scan)
    check_number_range("images", images, 2, 1_000_000)
    if model is None:
        model = scan.model(device)
    else:
        scan.require(model)
    labels, reference = choose_reference_labels(scan)
    known = np.flatnonzero(labels >= 0)
    ids = draw_evenly(known, images)
    if len(ids) < 2:
        raise SightlineError(f"{scan.path.name} has {len(ids)} images of known class; 2 are needed")

    def read_images(wanted: Sequence[int]) -> Tensor:
        return torch.cat([scan.image(int(id)) for id in wanted])

    return measure_ablation_effects(
        model,
        read_images,
        labels[ids],
        layer,
        ids=ids.tolist(),
        units=units,
        fill=fill,
        reference=reference,
        callback=callback,
    )


def choose_reference_labels(scan: Scan) -> tuple[NDArray[np.int64], str]:
    """What answers are compared with: the true classes, or else the network's own answers."""
    try:
        classes = find_true_classes(scan)
    except SightlineError:
        best, _ = scan.top5
        return best[:, 0].numpy().astype(np.int64), "the network's own answers with all units"
    return classes.labels, "the true classes"


def draw_evenly(ids: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """At most `count` of the ids, evenly spaced."""
    if len(ids) <= count:
        return ids
    return ids[np.linspace(0, len(ids) - 1, count).round().astype(int)]
