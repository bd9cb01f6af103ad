"""What each unit of a layer fires for: class selectivity (Morcos 2018, equation 1), the class of its strongest images, and where masks of
concepts are given, the concept inside of which it fires (Network Dissection, Bau 2017)."""

from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from sightline.data.scan.access import resolve_network, resolve_scan
from sightline.data.store.reader import Scan
from sightline.errors import SightlineError
from sightline.images.plotting.captioned_rows import FigureRow, compose_figure_rows
from sightline.images.plotting.maps import draw_bar_chart, draw_histogram
from sightline.methods.units.dissection import (
    MIN_DETECTOR_IOU,
    ConceptMasks,
    dissect_layer,
    render_concept_units,
)
from sightline.methods.units.patches import UnitExamples, select_unit_top_images
from sightline.models.model import Model
from sightline.models.tracing.crops import resize_for_sheet
from sightline.registry.method import register_method
from sightline.registry.parameter import ValueRange
from sightline.registry.result import Result


@register_method(
    chapter="analytical",
    title="Labels of units",
    question="Which class does each unit fire for, and does it fire for that class alone?",
    reading="Each row is a unit, the most selective first, with the parts of images that drive it most. Selectivity 0 means that all classes drive it alike, "
    "1 that only one does. See whether the patches show the class itself or what usually stands around it.",
    caution="A selective unit need not matter: networks often do as well without it (Morcos 2018). With few images of a class its mean is uncertain, and the "
    "largest of many uncertain means makes every unit look selective. A label says when a unit fires, not what it looks at.",
)
def labels(
    model: Model | Scan,
    *,
    folder: str | Path | None = None,
    store: str | Path | None = None,
    layer: str | None = None,
    k: Annotated[int, ValueRange(1, 25)] = 8,
    units: Annotated[int, ValueRange(1, 100)] = 6,
    masks: str | Path | None = None,
) -> Result:
    """Names every unit of a layer after the class that drives it most, and says how much that class stands out.

    Where the collection has classes `values["selectivity"]` is (best − rest) / (best + rest) for each unit, of its mean response to
    the class `["preferred"]` and the mean over all other classes. `["top_class"]` is the class that most of its strongest images (25, as many as
    the scan keeps) have, `["share"]` how many of them, `["chance"]` that class's share of the whole collection. Classes are
    indices into `["names"]`. Without known classes the network's own predictions stand in, and there is no selectivity.
    With masks `["iou"]` is units×concepts, of the places where a unit is above its `["threshold"]` (0.5 % of all) and the concept's
    masks: intersection over union; `["detectors"]` counts for each of the `["concepts"]` the units whose best it is, beyond 0.04.

    Args:
        folder: Collection to look at: a folder of images, each class in a folder of its own; None for tiles of the sample photographs.
        store: File that keeps the pass over the collection; alone, it is read as it is. None for one in the user's cache.
        layer: A layer of the scan; None for its last one.
        k: How many patches of a unit are shown.
        units: How many units are shown, the most selective first.
        masks: Folder of masks, CONCEPT/NAME.png for the image of that name, the concept where it is not black; None for none.
    """
    found = resolve_scan(model, folder, store, layer=layer)
    name = found.layer(layer) if layer is not None else found.layers[-1]
    top = found.top(name)
    classes = found.classes if found.classes is not None else found.top5[0][:, 0]
    names = found.class_names if found.classes is not None else found.model_labels
    most, share = find_commonest_class(
        torch.where(top.ids >= 0, classes[top.ids.clamp_min(0)], -1), len(names)
    )
    chance = (classes == most[:, None]).float().mean(1)
    values: dict[str, Tensor | list[str]] = {
        "top_class": most,
        "share": share,
        "chance": chance,
        "names": list(names),
    }
    order = share - chance
    if found.classes is not None:
        order, values["preferred"] = compute_class_selectivity(found.class_means(name))
        values["selectivity"] = order
    shown = order.argsort(descending=True, stable=True)[:units]
    net = resolve_network(model, found)
    rows: list[FigureRow] = []
    for unit in shown.tolist():
        cases = UnitExamples.from_scan(
            net, found, name, select_unit_top_images(top, unit, slice(k))
        )
        rows.append(
            FigureRow(
                format_label_title(values, unit),
                [resize_for_sheet(part) for part in cases.patches],
                cases.describe_examples(found),
            )
        )
    measure = (
        "class selectivity"
        if "selectivity" in values
        else "share of the commonest prediction among its strongest images, less chance"
    )
    histogram = draw_histogram(
        order.tolist(), order[shown].tolist(), f"{measure} of the units of {name}"
    )
    found_in = (
        label_units_by_concept(net, found, name, Path(masks), grid_shape=(units, k))
        if masks is not None
        else Result({}, {}, {})
    )
    return Result(
        {"labels": compose_figure_rows(rows), "selectivity": histogram, **found_in.panels},
        {**values, **found_in.values},
        {
            **found_in.captions,
            "labels": f"The {len(rows)} of {len(order)} units of {name} with the highest {measure}, over {found.images:,} images; of each the strongest "
            "patches with activation and class, gray beyond the image.",
            "selectivity": f"The {measure} of all units of {name}: median {float(order.median()):.2f}; marked are the units that are shown.",
        },
    )


def label_units_by_concept(
    model: Model, scan: Scan, layer: str, folder: Path, *, grid_shape: tuple[int, int]
) -> Result:
    """The concepts of a folder of masks inside of which units fire."""
    masks = ConceptMasks.from_folder(scan, folder)
    result = dissect_layer(model, scan, layer, masks)
    picture, shown = render_concept_units(
        model, scan, layer, masks, result, unit_count=grid_shape[0], images_per_unit=grid_shape[1]
    )
    counts, total = result.count_detectors(), len(result.iou)
    most = sorted(counts, key=lambda concept: -counts[concept])[:12]
    chart = draw_bar_chart(
        [f"{concept}: {counts[concept]} units" for concept in most],
        [counts[concept] / total for concept in most],
    )
    values = {
        "iou": result.iou,
        "threshold": result.thresholds,
        "concepts": result.concepts,
        "detectors": counts,
        "unused": result.unused_masks,
    }
    lost = (
        f" {len(result.unused_masks)} masks could not be used, the first: {result.unused_masks[0]}."
        if result.unused_masks
        else ""
    )
    where = f"{result.image_count:,} images with masks of {len(counts)} concepts"
    return Result(
        {"concepts": picture, "detectors": chart},
        values,
        {
            "concepts": f"The {len(shown)} of {total} units of {layer} that fire the most inside of a concept, on {where}: the images that drive each most, bright "
            f"where it is above the value that 0.5 % of its places exceed, the concept's masks outlined. IoU is intersection over union over all of them.{lost}",
            "detectors": f"Units of {layer} with an IoU beyond {MIN_DETECTOR_IOU} for their best concept: {sum(counts.values())} of {total}, by concept.",
        },
    )


def compute_class_selectivity(class_means: Tensor) -> tuple[Tensor, Tensor]:
    """Of mean responses, classes×units with NaN for a class without images: each unit's selectivity in [0, 1] and its best class."""
    # The paper averages maps after their ReLU. A scan's response is a map's maximum, perhaps before the ReLU: below zero it counts as none.
    known = ~class_means.isnan()
    if int(known[:, 0].sum()) < 2:
        raise SightlineError(
            "selectivity compares classes, and the images have only one; put each class into a folder of its own"
        )
    class_means = class_means.clamp_min(0).nan_to_num(0)
    best, preferred = class_means.where(known, -1).max(0)
    rest = (class_means.sum(0) - best) / (known.sum(0) - 1)
    return ((best - rest) / (best + rest).clamp_min(1e-30)).clamp(0, 1), preferred


def find_commonest_class(classes: Tensor, class_count: int) -> tuple[Tensor, Tensor]:
    """Of K×units classes the one that each unit has most often, and how much of its K that is; −1 is no class."""
    votes = torch.zeros(class_count + 1, classes.shape[1]).scatter_add_(
        0, classes + 1, torch.ones(classes.shape)
    )[1:]
    most, which = votes.max(0)
    return which, most / len(classes)


def format_label_title(values: dict[str, Tensor | list[str]], unit: int) -> str:
    """What is found of a unit, on a line."""
    label = {key: float(value[unit]) for key, value in values.items() if isinstance(value, Tensor)}
    names, words = values["names"], f"unit {unit}: "
    if "selectivity" in label:
        words += f"{names[int(label['preferred'])]}, selectivity {label['selectivity']:.2f}; "
    return (
        words
        + f"{label['share']:.0%} of its strongest images are {names[int(label['top_class'])]} ({label['chance']:.0%} by chance)"
    )
