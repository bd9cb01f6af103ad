"""The page of an image: what the network says of it, and what its units do."""

from typing import Any

import numpy as np
from torch import Tensor

from sightline.app.web.explorer.explorer import Explorer
from sightline.app.web.explorer.page import Page
from sightline.app.web.pages.content.attributions import add_attribution_scripts, add_place_script
from sightline.app.web.pages.content.facts import (
    name_image,
    name_image_group,
    read_image_groups,
    read_unit_table,
    round_share,
)
from sightline.app.web.pages.content.sheets import (
    make_unit_card,
    read_thumbnail,
    read_top_images,
)
from sightline.data.store.reader import Scan
from sightline.errors import escape_for_display
from sightline.images.transforms import resize_image

PICTURE_SIDE = 480  # pixels of the image on its page

SHOWN_LAYERS = 6  # whose strongest units are listed
UNITS_PER_LAYER = 8

CAUTION = (
    "A unit that fires here may have fired as much at something else: open it to see. Attributions "
    "show what a score depends on, not what the network understands, and they differ from method "
    "to method."
)


def build_image_page(explorer: Explorer, id: int) -> Page:
    """Everything that is known of one image."""
    scan = explorer.scan
    name = name_image(scan, id)
    groups = read_image_groups(scan)
    answers = list_best_classes(explorer, id)
    label = answers[0]["index"] if answers else 0
    height, width = scan.sizes[id].tolist()
    seen_height, seen_width = scan.size
    data = {
        "breadcrumb": [
            (escape_for_display(str(scan.recipe.get("model"))), explorer.link("network")),
            (name, ""),
        ],
        "name": name,
        "class": name_image_group(groups, id) if groups.noun == "class" else "",
        "id": id,
        "picture": add_image_picture(explorer, id),
        "side": PICTURE_SIDE,
        "size_text": f"{width}×{height} pixels; the network sees {seen_height}×{seen_width}",
        "previous": link_neighbor(explorer, id - 1),
        "next": link_neighbor(explorer, id + 1),
        "answers": answers,
        "layers": list_units_by_layer(explorer, id),
        "has_responses": scan.has_responses,
        "has_model": explorer.model is not None,
        "model_note": explorer.model_note,
        "settings": {
            "places": add_place_script(explorer, id),
            "attributions": add_attribution_scripts(explorer, id, label),
            "synthesis": explorer.has_synthesis,
        },
        "attribution_label": answers[0]["name"] if answers else "",
        "command": make_image_command(scan, id),
        "caution": CAUTION,
    }
    return Page("explorer/image.html", data, name)


def make_image_command(scan: Scan, id: int) -> str:
    """The command that shows the image's units by itself."""
    return f"sightline neighbors --store {scan.path.name} --id {id}"


def link_neighbor(explorer: Explorer, id: int) -> str:
    """The address of another image; empty where there is none."""
    is_known = 0 <= id < explorer.scan.images
    return explorer.link("image", id=id) if is_known and explorer.has_image_page(id) else ""


def add_image_picture(explorer: Explorer, id: int) -> str:
    """What the network sees, large; its thumbnail where the original is gone."""

    def make_picture() -> Tensor:
        picture = explorer.read_image(id)
        if picture is None:
            picture = read_thumbnail(explorer, id)
        height, width = picture.shape[-2:]
        scale = PICTURE_SIDE / max(height, width)
        return resize_image(picture, round(height * scale), round(width * scale))

    network = explorer.scan.description.network
    key = {"picture": "image", "sides": [*network.size, network.short_side, PICTURE_SIDE]}
    origin = {"image": explorer.digest_image(id)}
    return explorer.add_picture(key, make_picture, depends_on=origin, quality=80)


def list_best_classes(explorer: Explorer, id: int) -> list[dict[str, Any]]:
    """The network's best classes, best first."""
    scan = explorer.scan
    labels, probabilities = scan.top5
    return [
        {
            "index": label,
            "name": scan.model_labels[label],
            "share": round(100 * probability, 1),
            "value": round_share(probability),
            "address": explorer.link("class", index=label),
        }
        for label, probability in zip(labels[id].tolist(), probabilities[id].tolist(), strict=True)
    ]


# ── the units that fire ──


def list_units_by_layer(explorer: Explorer, id: int) -> list[dict[str, Any]]:
    """Some layers from first to last, with the units that stand out in this image."""
    layers = explorer.scan.layers
    spread = np.linspace(0, len(layers) - 1, min(SHOWN_LAYERS, len(layers)))
    described: list[dict[str, Any]] = []
    for index in np.unique(spread.round().astype(int)).tolist():
        layer = layers[index]
        cards = [
            make_unit_card(explorer, layer, unit, note)
            for unit, note in rank_units(explorer, layer, id)
        ]
        described.append(
            {
                "name": escape_for_display(layer),
                "address": explorer.link("layer", layer=layer),
                "units": cards,
            }
        )
    return described


def rank_units(explorer: Explorer, layer: str, id: int) -> list[tuple[int, str]]:
    """The units that respond to an image most, for what they do otherwise, each with a note.

    A response counts from the unit's median to its strongest one. Without the responses to all
    images, they are the units for which this image is among the strongest, by its rank.
    """
    facts = read_unit_table(explorer, layer).facts
    if facts is None:
        return rank_units_by_place(explorer.scan, layer, id)
    responses = explorer.scan.responses(layer, images=[id])[0].astype(np.float32)
    medians = facts.quantiles[:, facts.quantiles.shape[1] // 2]
    spans = facts.quantiles[:, -1] - medians
    shares = np.where(
        facts.is_dead | (spans <= 0), 0, (responses - medians) / np.maximum(spans, 1e-12)
    )
    order = np.argsort(-shares, kind="stable")[:UNITS_PER_LAYER]
    return [(int(unit), round_share(float(shares[unit]))) for unit in order if shares[unit] > 0]


def rank_units_by_place(scan: Scan, layer: str, id: int) -> list[tuple[int, str]]:
    """The units of which an image is among the strongest, with its place among them."""
    ids = read_top_images(scan, layer).ids.numpy()
    ranks, units = np.nonzero(ids == id)
    order = np.argsort(ranks, kind="stable")[:UNITS_PER_LAYER]
    return [(int(units[item]), f"its number {ranks[item] + 1}") for item in order]
