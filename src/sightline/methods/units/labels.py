"""What each unit of a layer fires for.

Its class selectivity (Morcos 2018, equation 1), the class of its strongest images, the concept that
its responses to all images agree with, if that name survives two tests (Oikarinen 2025), and with
masks of concepts, the concept that it fires inside of (Network Dissection, Bau 2017).
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from sightline.data.scan.access import resolve_network, resolve_scan
from sightline.data.scan.true_classes import list_class_names
from sightline.data.store.reader import Scan, TopImages
from sightline.errors import SightlineError
from sightline.images.plotting.captioned_rows import FigureRow, compose_figure_rows
from sightline.images.plotting.charts import draw_bar_chart, draw_histogram
from sightline.images.plotting.figures import FigureData, Histogram, PictureRows
from sightline.methods.units.dissection import (
    MIN_DETECTOR_IOU,
    ConceptMasks,
    Dissection,
    dissect_layer,
    render_concept_units,
)
from sightline.methods.units.naming.names import UnitName, name_units
from sightline.methods.units.naming.sources import collect_concepts
from sightline.methods.units.patches import (
    UnitExamples,
    require_followed_layers,
    select_unit_top_images,
)
from sightline.models.heads.labels import find_label_index
from sightline.models.model import Model
from sightline.models.tracing.crops import resize_for_sheet
from sightline.registry.method import register_method
from sightline.registry.parameter import ValueRange
from sightline.registry.result import Result

MAX_LISTED_CONCEPTS = 12  # bars of the chart of detectors


@register_method(
    chapter="analytical",
    title="Labels of units",
    question="Which class does each unit fire for, and does it fire for that class alone?",
    reading="Each row is a unit, the most selective first, with the image patches that drive it "
    "most. Selectivity 0 means that all classes drive it alike, 1 that only one does. See whether "
    "the patches show the class itself or what usually stands around it.",
    caution="A selective unit need not matter: networks often do as well without it (Morcos 2018). "
    "With few images of a class its mean is uncertain, and the largest of many uncertain means "
    "makes every unit look selective. A label says when a unit fires, not what it looks at.",
    former_names={"units": "max_units"},
)
def labels(
    model: Model | Scan,
    *,
    folder: str | Path | None = None,
    store: str | Path | None = None,
    layer: str | None = None,
    label: int | str | None = None,
    k: Annotated[int, ValueRange(1, 25)] = 8,
    max_units: Annotated[int, ValueRange(1, 100)] = 6,
    masks: str | Path | None = None,
    groups: str | Path | None = None,
    attributes: str | Path | None = None,
    words: str | Path | None = None,
    clip: str | Path | None = None,
    formulas: bool = False,
) -> Result:
    """Names every unit of a layer after what drives it most.

    Where the scan keeps responses, each row of `values["units"]` has a `name`: the concept with
    which the unit's responses to all images correlate most, if the name survives; else it is None.
    Concepts are the classes, and what `groups`, `attributes` and `words` add. A name survives if
    its `auprc` (area under the precision-recall curve) and its `correlation` both fall when half of
    the concept's images are no longer counted as such (`passes_missing_label`) and when as many
    wrong ones are (`passes_extra_label`), and if the correlation exceeds `correlation_chance`, the
    best of the same concepts on random images. `auprc_chance` is the share of the images that have
    the concept, `name_images` their number.

    Where the dataset has classes, `values["selectivity"]` is (best − rest) / (best + rest) for each
    unit: best is its mean response to the class `["preferred"]`, rest the mean over all other
    classes.

    `values["top_class"]` is the most frequent class among a unit's strongest images (25, as many as
    the scan keeps), `["share"]` how frequent it is among them, and `["chance"]` in the whole
    dataset. Classes are indices into `["names"]`. Without known classes the network's own
    predictions stand in, and there is no selectivity.

    `values["predicted_class"]` is the network's most frequent prediction for a unit's strongest
    images, an index into `["predicted_names"]`, and `["predicted_share"]` how frequent it is among
    them. `values["units"]` lists all units with these numbers, and names in place of indices.

    `values["shown_units"]` has the numbers of the units in the figure, in its order.

    With masks, `values["iou"]`, units×concepts, is the intersection over union of the positions
    where a unit is above its `["threshold"]` (0.5 % of all) and the masks of the concept.
    `["detectors"]` counts for each of the `["concepts"]` the units whose best concept it is, with
    an IoU above 0.04. `["unused"]` lists the masks that could not be used.

    Args:
        folder: Dataset to look at: a folder of images, each class in a folder of its own; None for
            parts of the sample pictures.
        store: File that keeps the pass over the dataset; alone, it is read as it is. None for one
            in the user's cache.
        layer: A layer of the scan; None for its last one.
        label: Class whose units are shown: one of the dataset's or of the network's; None for all.
        k: How many patches of a unit are shown.
        max_units: How many units are shown at most, the most selective first.
        masks: Folder of masks, CONCEPT/NAME.png for the image of that name, the concept where it is
            not black; None for none.
        groups: CSV table of groups of classes, in each row a class or a group and then the groups
            that it is in; "wordnet" for the ancestors in WordNet, which nltk must have; None for
            none.
        attributes: CSV table of attributes of the images: a column of files, then columns of 1 and
            0 or of words; None for none.
        words: File of words, one a line, that `clip` looks for in the images; None for none.
        clip: Folder of a CLIP network that open_clip or transformers saved; None for none.
        formulas: Whether a unit may be named after two concepts joined by and, or, and not.
    """
    scan = resolve_scan(model, folder, store, layer=layer)
    require_followed_layers(scan)
    layer_name = scan.layers[-1] if layer is None else scan.layer(layer)
    network = resolve_network(model, scan)
    top_images = scan.top(layer_name)
    unit_labels = label_units(scan, layer_name, top_images)
    asks_for_names = formulas or any((groups, attributes, words, clip))
    if scan.has_responses or asks_for_names:
        concepts = collect_concepts(
            scan, groups=groups, attributes=attributes, words=words, clip=clip
        )
        names = name_units(scan, layer_name, concepts, formulas=formulas)
        unit_labels = replace(unit_labels, unit_names=names)
    score_name, scores = unit_labels.scores

    ranked_units = scores.argsort(descending=True, stable=True)
    if label is not None:
        ranked_units = ranked_units[unit_labels.find_units_of(label)[ranked_units]]
    shown_units = ranked_units[:max_units]
    rows: list[FigureRow] = []
    for unit in shown_units.tolist():
        strongest = select_unit_top_images(top_images, unit, slice(k))
        examples = UnitExamples.from_scan(network, scan, layer_name, strongest)
        patches = [resize_for_sheet(patch) for patch in examples.patches]
        title = unit_labels.describe_unit(unit)
        rows.append(FigureRow(title, patches, examples.describe_examples(scan)))
    histogram = Histogram(
        scores.tolist(), scores[shown_units].tolist(), f"{score_name} of the units of {layer_name}"
    )
    panels = {
        "labels": compose_figure_rows(rows),
        "selectivity": draw_histogram(histogram.values, histogram.marks, histogram.x_label),
    }
    figures: dict[str, FigureData] = {"labels": PictureRows(rows), "selectivity": histogram}
    values = {**unit_labels.collect_values(), "shown_units": shown_units.tolist()}
    subject = "the strongest patches with activation and class, gray beyond the image"
    if top_images.positions is None:
        subject = "the strongest images, whole, with activation and class"
    named = "" if label is None else f", of those named {label}"
    captions = {
        "labels": f"The {len(rows)} of {len(scores)} units of {layer_name} with the highest "
        f"{score_name}{named}, over {scan.images:,} images; for each {subject}."
        f"{unit_labels.describe_names()}",
        "selectivity": f"The {score_name} of all units of {layer_name}: median "
        f"{float(scores.median()):.2f}. Ticks mark the units that are shown.",
    }
    if masks is not None:
        concept_masks = ConceptMasks.from_folder(scan, Path(masks))
        concept_result = label_units_by_concept(
            network, scan, layer_name, concept_masks, unit_count=max_units, images_per_unit=k
        )
        panels |= concept_result.panels
        values |= concept_result.values
        captions |= concept_result.captions
    return Result(panels, values, captions, figures=figures)


# ── by class ──


@dataclass(frozen=True)
class UnitLabels:
    """What classes say of each unit. Classes are indices into `names`.

    `top_class` is the most frequent class among the strongest images, `share` its share of them and
    `chance` its share of the dataset. `selectivity` and `preferred` are None without known classes.
    `predicted_class` and `predicted_share` are the same of the network's predictions, indices into
    `predicted_names`; None for a network without classes.
    `unit_names` has a name for each unit, None where none survives; None without responses.
    """

    names: list[str]
    top_class: Tensor
    share: Tensor
    chance: Tensor
    selectivity: Tensor | None
    preferred: Tensor | None
    predicted_names: list[str] | None = None
    predicted_class: Tensor | None = None
    predicted_share: Tensor | None = None
    unit_names: list[UnitName | None] | None = None

    @property
    def scores(self) -> tuple[str, Tensor]:
        """What units are ranked by: its name and its values."""
        if self.selectivity is not None:
            return "class selectivity", self.selectivity
        name = "share of the commonest prediction among its strongest images, less chance"
        return name, self.share - self.chance

    def describe_unit(self, unit: int) -> str:
        """The label of a unit, in one line."""
        text = (
            f"{self.share[unit]:.0%} of its strongest images are "
            f"{self.names[int(self.top_class[unit])]} ({self.chance[unit]:.0%} by chance)"
        )
        title = f"unit {unit}{self.describe_name(unit)}"
        if self.selectivity is None or self.preferred is None:
            return f"{title}: {text}"
        preferred = self.names[int(self.preferred[unit])]
        return (
            f"{title}: {preferred}, selectivity {self.selectivity[unit]:.2f}; {text}"
            f"{self.describe_prediction(unit)}"
        )

    def describe_name(self, unit: int) -> str:
        """« «tench» (AUPRC 0.82, chance 0.10)», « (no name)», or nothing without responses."""
        if self.unit_names is None:
            return ""
        name = self.unit_names[unit]
        if name is None:
            return " (no name)"
        return f" «{name.text}» (AUPRC {name.auprc:.2f}, chance {name.chance:.2f})"

    def describe_names(self) -> str:
        """A sentence on how many units have a name; empty without responses."""
        if self.unit_names is None:
            return ""
        count = sum(name is not None for name in self.unit_names)
        return (
            f" {count} of {len(self.unit_names)} units have a name in «» that survives a test with "
            "missing and one with extra labels."
        )

    def describe_prediction(self, unit: int) -> str:
        """«; the network calls 80% of them tench», or nothing for a network without classes."""
        row = self.describe_row(unit)
        if "predicted_class" not in row:
            return ""
        return f"; the network calls {row['predicted_share']:.0%} of them {row['predicted_class']}"

    def find_units_of(self, label: int | str) -> Tensor:
        """Which units, as truth values, are named after a class by one of their names.

        The class is one of the dataset's or of the network's, or a unit's name. Raises
        SightlineError for a class that none has, and for one that no unit is named after.
        """
        is_named = self.find_units_by_name(str(label))
        is_name = bool(is_named.any())
        problems: list[SightlineError] = []
        groups = [(self.names, [self.top_class, self.preferred], "the dataset")]
        if self.predicted_names is not None:
            groups.append((self.predicted_names, [self.predicted_class], "the network"))
        for names, indices, owner in groups:
            try:
                class_index = find_label_index(names, label, owner)
            except SightlineError as error:
                problems.append(error)
                continue
            for index in indices:
                if index is not None:
                    is_named |= index == class_index
        if len(problems) == len(groups) and not is_name:
            raise problems[0]
        if not bool(is_named.any()):
            raise SightlineError(f"no unit is named after {label!r}; leave label out to see all")
        return is_named

    def find_units_by_name(self, text: str) -> Tensor:
        """Which units, as truth values, have this name, in whatever case."""
        is_named = torch.zeros_like(self.top_class, dtype=torch.bool)
        for unit, name in enumerate(self.unit_names or ()):
            is_named[unit] = name is not None and name.text.casefold() == text.casefold()
        return is_named

    def collect_values(self) -> dict[str, Any]:
        """The fields that are known, by name, and `units`, a row for each unit."""
        fields = {name: value for name, value in vars(self).items() if value is not None}
        values = {name: value for name, value in fields.items() if name != "unit_names"}
        return {**values, "units": [self.describe_row(unit) for unit in range(len(self.share))]}

    def describe_row(self, unit: int) -> dict[str, Any]:
        """What is known of a unit, with the names of classes."""
        row: dict[str, Any] = {
            "unit": unit,
            "top_class": self.names[int(self.top_class[unit])],
            "share": float(self.share[unit]),
            "chance": float(self.chance[unit]),
        }
        if self.selectivity is not None and self.preferred is not None:
            row["preferred"] = self.names[int(self.preferred[unit])]
            row["selectivity"] = float(self.selectivity[unit])
        if (
            self.predicted_names is not None
            and self.predicted_class is not None
            and self.predicted_share is not None
        ):
            row["predicted_class"] = self.predicted_names[int(self.predicted_class[unit])]
            row["predicted_share"] = float(self.predicted_share[unit])
        if self.unit_names is not None:
            unit_name = self.unit_names[unit]
            row |= {"name": None} if unit_name is None else unit_name.to_row()
        return row


def label_units(scan: Scan, layer: str, top_images: TopImages) -> UnitLabels:
    """Labels by class; by the network's predictions if the dataset has no known classes."""
    predicted_names: list[str] | None = None
    predicted_class, predicted_share = None, None
    if scan.model_labels:
        predicted_names = list(scan.model_labels)
        predicted_class, predicted_share = find_strongest_class(
            top_images, scan.top5[0][:, 0], len(predicted_names)
        )
    if scan.classes is None:
        classes, names = scan.top5[0][:, 0], list(scan.model_labels)
        selectivity, preferred = None, None
    else:
        classes, names = scan.classes, list_class_names(scan)
        selectivity, preferred = compute_class_selectivity(scan.class_means(layer))
    top_class, share = find_strongest_class(top_images, classes, len(names))
    chance = (classes == top_class[:, None]).float().mean(1)
    return UnitLabels(
        names,
        top_class,
        share,
        chance,
        selectivity,
        preferred,
        predicted_names,
        predicted_class,
        predicted_share,
    )


def find_strongest_class(
    top_images: TopImages, classes: Tensor, class_count: int
) -> tuple[Tensor, Tensor]:
    """The most frequent class of each unit's strongest images, and its share of them."""
    is_image = top_images.ids >= 0
    top_classes = torch.where(is_image, classes[top_images.ids.clamp_min(0)], -1)
    return find_commonest_class(top_classes, class_count)


def compute_class_selectivity(class_means: Tensor) -> tuple[Tensor, Tensor]:
    """Each unit's selectivity, in [0, 1], and its preferred class.

    `class_means` are mean responses, classes×units, NaN for a class without images. Raises
    SightlineError if fewer than two classes have images.
    """
    has_images = ~class_means.isnan()
    if int(has_images[:, 0].sum()) < 2:
        raise SightlineError(
            "selectivity compares classes, and the images have only one; "
            "put each class into a folder of its own"
        )
    # Departure from the paper, which averages maps after their ReLU: a scan's response is the
    # maximum of a map, perhaps before the ReLU, so a negative mean counts as 0.
    means = class_means.clamp_min(0).nan_to_num(0)
    best, preferred = means.where(has_images, -1).max(0)
    rest_mean = (means.sum(0) - best) / (has_images.sum(0) - 1)
    selectivity = (best - rest_mean) / (best + rest_mean).clamp_min(1e-30)
    return selectivity.clamp(0, 1), preferred


def find_commonest_class(classes: Tensor, class_count: int) -> tuple[Tensor, Tensor]:
    """The most frequent class of each unit's K images, and its share of the K.

    `classes` is K×units; −1 is no class.
    """
    ones = torch.ones(classes.shape)
    votes = torch.zeros(class_count + 1, classes.shape[1]).scatter_add_(0, classes + 1, ones)
    vote_counts, commonest = votes[1:].max(0)
    return commonest, vote_counts / len(classes)


# ── by concept ──


def label_units_by_concept(
    model: Model,
    scan: Scan,
    layer: str,
    masks: ConceptMasks,
    *,
    unit_count: int,
    images_per_unit: int,
) -> Result:
    """The concepts inside of which units fire: panels "concepts" and "detectors"."""
    dissection = dissect_layer(model, scan, layer, masks)
    figure, shown_units = render_concept_units(
        model,
        scan,
        layer,
        masks,
        dissection,
        unit_count=unit_count,
        images_per_unit=images_per_unit,
    )
    counts = dissection.count_detectors()
    total = len(dissection.iou)
    commonest = sorted(counts, key=lambda concept: -counts[concept])[:MAX_LISTED_CONCEPTS]
    chart = draw_bar_chart(
        [f"{concept}: {counts[concept]} units" for concept in commonest],
        [counts[concept] / total for concept in commonest],
    )
    values = {
        "iou": dissection.iou,
        "threshold": dissection.thresholds,
        "concepts": dissection.concepts,
        "detectors": counts,
        "unused": dissection.unused_masks,
    }
    captions = {
        "concepts": f"The {len(shown_units)} of {total} units of {layer} with the highest IoU, on "
        f"{dissection.image_count:,} images with masks of {len(counts)} concepts: the images that "
        "drive each most, bright where it is above the value that 0.5 % of its responses exceed, "
        "the concept's masks outlined. IoU is intersection over union, over all images with masks."
        f"{describe_unused_masks(dissection)}",
        "detectors": f"Units of {layer} with an IoU above {MIN_DETECTOR_IOU} for their best "
        f"concept: {sum(counts.values())} of {total}, by concept.",
    }
    return Result({"concepts": figure, "detectors": chart}, values, captions)


def describe_unused_masks(dissection: Dissection) -> str:
    """A sentence on the masks that could not be used; empty if there are none."""
    unused = dissection.unused_masks
    if not unused:
        return ""
    return f" {len(unused)} masks could not be used, the first: {unused[0]}."
