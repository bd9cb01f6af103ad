"""The page of a class: what the network takes for it, and which units speak for it."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from sightline.app.web.explorer.explorer import Explorer
from sightline.app.web.explorer.page import Page
from sightline.app.web.pages.content.facts import (
    ImageGroups,
    Numbers,
    count_things,
    describe_image,
    format_number,
    read_image_groups,
    read_unit_table,
    round_share,
)
from sightline.app.web.pages.content.sheets import make_unit_card
from sightline.app.web.pages.unit import find_source
from sightline.data.store.reader import Scan
from sightline.errors import escape_for_display
from sightline.models.tracing.connections import find_classifier, read_channel_weights

IMAGE_COUNT = 11  # best images, and worst ones
UNIT_COUNT = 6  # units for the class, and against it
SELECTIVE_COUNT = 12  # units that tell this class from the others best
CONFUSION_COUNT = 6

CAUTION = (
    "These are the images of this scan, not of the world: a class of a few images says little. "
    "A unit with a large weight counts only where it also responds."
)


@dataclass(frozen=True)
class ClassImages:
    """The images that are about a class.

    Attributes:
        members: Ids of the images of this class; None where the dataset does not tell.
        answered: Ids of the images that the network calls so.
        answers: The network's best class of every image.
        probabilities: What the network gives this class, for every image; 0 beyond its five best.
    """

    members: Numbers | None
    answered: Numbers
    answers: Numbers
    probabilities: Numbers


def build_class_page(explorer: Explorer, index: int) -> Page:
    """Everything that is known of one class of the network."""
    scan = explorer.scan
    name = scan.model_labels[index]
    groups = read_image_groups(scan)
    images = find_class_images(scan, groups, index)
    data = {
        "breadcrumb": [
            (escape_for_display(str(scan.recipe.get("model"))), explorer.link("network")),
            (name, ""),
        ],
        "name": name,
        "index": index,
        "previous": explorer.link("class", index=index - 1) if index else "",
        "next": explorer.link("class", index=index + 1)
        if index + 1 < len(scan.model_labels)
        else "",
        "synthesis": explorer.synthesis("logits", index, 1),
        "facts": describe_class(images),
        "rows": describe_image_rows(explorer, groups, images),
        "weights": describe_classifier_weights(explorer, index),
        "selective": describe_selective_units(explorer, groups, index),
        "has_responses": scan.has_responses,
        "has_selectivity": scan.classes is not None and images.members is not None,
        "confusions": describe_confusions(explorer, groups, images, index),
        "has_classes": images.members is not None,
        "synthesis_command": f"sightline synthesis {index} --model {scan.recipe.get('model')}",
        "caution": CAUTION,
    }
    return Page("explorer/class.html", data, name)


# ── images ──


def find_class_images(scan: Scan, groups: ImageGroups, index: int) -> ClassImages:
    """The images of a class, and those that the network calls so."""
    labels, probabilities = scan.top5
    answers = labels[:, 0].numpy() if labels.shape[1] else np.full(scan.images, -1)
    is_class = labels.numpy() == index
    own_probabilities = np.where(is_class, probabilities.numpy(), 0).sum(1)
    members = None
    if groups.noun == "class":
        own_groups = [group for group, label in enumerate(groups.labels) if label == index]
        members = np.flatnonzero(np.isin(groups.indices, own_groups)) if own_groups else None
    return ClassImages(members, np.flatnonzero(answers == index), answers, own_probabilities)


def describe_class(images: ClassImages) -> list[tuple[str, str]]:
    """Counts and shares of a class, as pairs of name and text."""
    facts = [("The network calls so", count_things(len(images.answered), "image"))]
    members = images.members
    if members is None or not len(members):
        return facts
    is_right = np.isin(members, images.answered)
    facts.insert(0, ("Images of this class", f"{len(members):,}"))
    facts.append(("Right among them", round_share(float(is_right.mean()))))
    if len(images.answered):
        precision = float(is_right.sum()) / len(images.answered)
        facts.append(("Right when it says so", round_share(precision)))
    return facts


def describe_image_rows(
    explorer: Explorer, groups: ImageGroups, images: ClassImages
) -> list[dict[str, Any]]:
    """Rows of images: the best and the worst of the class, with the network's answers."""
    candidates = images.answered if images.members is None else images.members
    order = candidates[np.argsort(-images.probabilities[candidates], kind="stable")]
    best = order[:IMAGE_COUNT]
    worst = order[::-1][: max(0, min(IMAGE_COUNT, len(order) - len(best)))]
    if images.members is None:
        titles = ("Surest images", "Least sure images")
    else:
        titles = ("Best images of the class", "Worst images of the class")
    rows = [
        {"title": title, "images": describe_images(explorer, groups, images, ids)}
        for title, ids in zip(titles, (best, worst), strict=True)
        if len(ids)
    ]
    if images.members is not None:
        wrong = np.setdiff1d(images.answered, images.members)
        order = wrong[np.argsort(-images.probabilities[wrong], kind="stable")][:IMAGE_COUNT]
        if len(order):
            described = describe_images(explorer, groups, images, order)
            rows.append({"title": "Images of other classes that it calls so", "images": described})
    return rows


def describe_images(
    explorer: Explorer, groups: ImageGroups, images: ClassImages, ids: Numbers
) -> list[dict[str, Any]]:
    """Images with what the network says of them."""
    labels = explorer.scan.model_labels
    described: list[dict[str, Any]] = []
    for id in ids.tolist():
        answer = int(images.answers[id])
        described.append(
            {
                **describe_image(explorer, groups, id),
                "probability": round_share(float(images.probabilities[id])),
                "answer": labels[answer] if answer >= 0 else "",
                "is_right": id in images.answered,
            }
        )
    return described


def describe_confusions(
    explorer: Explorer, groups: ImageGroups, images: ClassImages, index: int
) -> dict[str, list[dict[str, Any]]]:
    """What the images of the class are taken for, and which other classes are taken for it."""
    labels = explorer.scan.model_labels
    taken_for: list[dict[str, Any]] = []
    taken_from: list[dict[str, Any]] = []
    if images.members is not None and len(images.members):
        wrong_answers = images.answers[images.members]
        wrong_answers = wrong_answers[wrong_answers != index]
        for answer, count in count_largest(wrong_answers):
            share = count / len(images.members)
            taken_for.append(make_bar(labels[answer], share, count, explorer, answer))
        wrong = np.setdiff1d(images.answered, images.members)
        for group, count in count_largest(groups.indices[wrong]):
            share = count / len(images.answered)
            bar = make_bar(groups.names[group], share, count, explorer, groups.labels[group])
            taken_from.append(bar)
    return {"taken_for": taken_for, "taken_from": taken_from}


def count_largest(values: Numbers) -> list[tuple[int, int]]:
    """The most frequent values and how often they occur; negative ones are left out."""
    classes = values[values >= 0]
    if not len(classes):
        return []
    counts = np.bincount(classes)
    order = np.argsort(-counts, kind="stable")[:CONFUSION_COUNT]
    return [(int(value), int(counts[value])) for value in order if counts[value]]


def make_bar(name: str, share: float, count: int, explorer: Explorer, label: int) -> dict[str, Any]:
    """A row of a chart of bars: a class, and a share of images."""
    return {
        "name": name,
        "share": round(100 * share, 1),
        "value": f"{round_share(share)} ({count:,})",
        "address": explorer.link("class", index=label) if label >= 0 else "",
    }


# ── units ──


def describe_classifier_weights(explorer: Explorer, index: int) -> dict[str, Any] | None:
    """The units whose weights speak for and against the class; None without a linear classifier
    that reads units of the scan."""
    model = explorer.model
    if model is None:
        return None
    classifier = find_classifier(model)
    if classifier is None:
        return None
    layers = tuple(explorer.scan.layers)
    source = find_source(model, layers, classifier)
    if source is None:
        return None
    weights = read_channel_weights(model, classifier)[index].numpy()
    order = np.argsort(-weights, kind="stable")
    scale = float(np.abs(weights).max()) or 1.0
    chosen = [*order[:UNIT_COUNT], *order[-UNIT_COUNT:]]
    rows = [
        {
            **make_unit_card(explorer, source, int(unit), ""),
            "share": round(100 * float(weights[unit]) / scale, 1),
            "value": format_number(float(weights[unit])),
        }
        for unit in dict.fromkeys(chosen)
    ]
    return {"layer": escape_for_display(source), "rows": rows}


def describe_selective_units(
    explorer: Explorer, groups: ImageGroups, index: int
) -> list[dict[str, Any]]:
    """The units of all layers that tell this class from the others best."""
    own_groups = [group for group, label in enumerate(groups.labels) if label == index]
    ranked: list[tuple[float, str, int]] = []
    for layer in explorer.scan.layers:
        facts = read_unit_table(explorer, layer).facts
        if facts is None:
            continue
        is_own = np.isin(facts.selective_class, own_groups) & np.isfinite(facts.selectivity)
        ranked += [
            (float(facts.selectivity[unit]), layer, int(unit)) for unit in np.flatnonzero(is_own)
        ]
    ranked.sort(key=lambda item: -item[0])
    return [
        make_unit_card(explorer, layer, unit, f"selectivity {selectivity:.2f}")
        for selectivity, layer, unit in ranked[:SELECTIVE_COUNT]
    ]
