"""The page of the map: all images by what the network makes of them."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.app.web.explorer.explorer import Explorer
from sightline.app.web.explorer.page import Page
from sightline.app.web.pages.content.facts import keep_numbers
from sightline.data.search.nearest import pick_evenly_spaced
from sightline.data.search.projection import (
    MIN_PROJECTED_VECTORS,
    PROJECTION_NAMES,
    measure_faithfulness,
    project_vectors,
)
from sightline.data.store.reader import Scan
from sightline.errors import escape_for_display
from sightline.methods.retrieval.embedding_page import (
    SHEET_COLUMNS,
    SHEET_THUMBNAILS,
    THUMBNAIL_SIDE,
    draw_thumbnail_sheet,
    encode_numbers,
    list_color_groups,
    strip_common_folder,
)

NEIGHBORHOOD_SIZE = 10  # neighbours that the measures ask for

MAX_PICTURES = 8 * SHEET_THUMBNAILS  # images beyond them, evenly spread, are points

CAUTION = (
    "The layout keeps neighbourhoods, not distances: gaps between groups and the sizes of groups "
    "mean little (Wattenberg 2016)."
)


def build_map_page(explorer: Explorer) -> Page:
    """The map's frame; positions and names come as a script."""
    scan = explorer.scan
    problem = explain_missing_image_map(scan)
    script = ""
    if not problem:
        ids = pick_evenly_spaced(scan.images, MAX_PICTURES).tolist()
        sheets = [
            add_thumbnail_sheet(explorer, ids[start : start + SHEET_THUMBNAILS])
            for start in range(0, len(ids), SHEET_THUMBNAILS)
        ]
        script = explorer.add_script("map", lambda: collect_map(explorer, ids, sheets))
    data = {
        "breadcrumb": [
            (escape_for_display(str(scan.recipe.get("model"))), explorer.link("network")),
            ("map", ""),
        ],
        "problem": problem,
        "script": script,
        "command": f"sightline embedding --store {scan.path.name}",
        "caution": CAUTION,
    }
    return Page("explorer/map.html", data, "Map of the images")


def explain_missing_image_map(scan: Scan) -> str:
    """Why there is no map of the images; empty where there is one."""
    if not scan.vector_layers:
        return "The scan kept no features of the images: scan again with vectors=."
    if scan.images < MIN_PROJECTED_VECTORS:
        return f"A map needs at least {MIN_PROJECTED_VECTORS} images; there are {scan.images}."
    return ""


def add_thumbnail_sheet(explorer: Explorer, ids: list[int]) -> str:
    """Thumbnails of images, side by side, row by row."""
    digests = [explorer.digest_image(id) for id in ids]
    key = {"picture": "map", "images": digests, "side": THUMBNAIL_SIDE, "columns": SHEET_COLUMNS}

    def draw_sheet() -> Tensor:
        return draw_thumbnail_sheet(explorer.scan, ids)

    return explorer.add_picture(key, draw_sheet, depends_on={})


def collect_map(explorer: Explorer, pictured_ids: list[int], sheets: list[str]) -> dict[str, Any]:
    """Positions, names, groups and links of the images, as `showMap` of the page reads them."""
    scan = explorer.scan
    layer = scan.vector_layers[-1]
    key = {"numbers": "image map", "layer": layer}
    layout = keep_numbers(explorer, key, lambda: compute_layout(scan, layer))
    positions = np.array(layout["positions"], np.float32)
    has_page = [explorer.has_image_page(id) for id in range(scan.images)]
    return {
        "positions": encode_numbers(positions),
        "dimensions": positions.shape[1],
        "names": list(map(escape_for_display, strip_common_folder(scan.paths))),
        "pictured": encode_numbers(np.array(pictured_ids, np.uint32)),
        "thumbnailSide": THUMBNAIL_SIDE,
        "sheetColumns": SHEET_COLUMNS,
        "sheets": sheets,
        "groups": list(list_color_groups(scan)),
        "linked": encode_numbers(np.array(has_page, np.uint8)),
        "description": describe_layout(layout, escape_for_display(layer), scan.images),
    }


def compute_layout(scan: Scan, layer: str) -> dict[str, Any]:
    """The images in the plane by their features: positions in [−1, 1], and how good they are."""
    vectors = scan.vectors(layer)
    projection = project_vectors(vectors, "tsne", 2, seed=0)
    positions = projection.positions
    center = (positions.amax(0) + positions.amin(0)) / 2
    extent = (positions - center).abs().max().clamp_min(1e-12)
    scaled: Tensor = ((positions - center) / extent * 1e4).round() / 1e4
    measures = measure_faithfulness(vectors, positions, NEIGHBORHOOD_SIZE)
    return {
        "positions": scaled.to(torch.float64).tolist(),
        "method": PROJECTION_NAMES[projection.kind],
        "trustworthiness": float(measures["trustworthiness"]),
        "preserved": float(measures["preserved"]),
        "note": projection.note,
    }


def describe_layout(layout: dict[str, Any], layer: str, image_count: int) -> str:
    """How the map was made, and how far its neighbourhoods can be trusted."""
    neighbors = min(NEIGHBORHOOD_SIZE, image_count - 1)
    text = (
        f"{layout['method']} of the features of {layer}: {layout['preserved']:.0%} of the "
        f"{neighbors} nearest images are among the {neighbors} nearest here (trustworthiness "
        f"{layout['trustworthiness']:.2f})."
    )
    return f"{text} {layout['note']}".strip()
