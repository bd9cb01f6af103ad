"""What an image page measures when it is looked at: attributions with their tests, and which units
fire at each position."""

import base64
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.app.web.explorer.explorer import Explorer
from sightline.app.web.pages.content.facts import Numbers, read_unit_table
from sightline.app.web.pages.content.sheets import (
    SHEET_COLUMNS,
    SHEET_UNITS,
    add_layer_sheet,
    add_synthesis_sheet,
)
from sightline.errors import SightlineError, escape_for_display
from sightline.images.plotting.maps import find_heatmap_limit
from sightline.methods.evaluation.attribution_method import find_attribution_method
from sightline.methods.evaluation.summary import summarize_trust
from sightline.models.layers.feature_maps import reshape_to_unit_grid
from sightline.models.model import Model
from sightline.registry.method import METHODS

# The attributions of the matrix, quick ones first. Of the class activation maps a kind that is not
# Grad-CAM, which has a column of its own.
MATRIX_METHODS = ("saliency", "guided", "gradcam", "cam:layercam", "occlusion", "rise")

MAP_SIDE = 112  # pixels at most of an attribution as a page gets it

PLACE_LAYERS = 6  # layers whose units are listed at a position
PLACE_SIDE = 28  # positions along a side, at most
PLACE_UNITS = 3  # units at a position

STRENGTH_STEPS = 255


# ── maps as bytes ──


def encode_map(values: Tensor, max_side: int = MAP_SIDE) -> dict[str, Any]:
    """A map H×W for a page: bytes, row by row, and what they mean.

    Of a signed map 0 is −limit, 128 zero and 255 the limit; of others 0 is zero and 255 the limit.
    The limit is the 99th percentile of the magnitudes.
    """
    heatmap = shrink_map(values.detach().float().cpu(), max_side)
    is_signed = bool((heatmap < 0).any())
    limit = float(find_heatmap_limit(heatmap.abs())) or 1.0
    shares = (heatmap / limit).clamp(-1, 1)
    steps = 128 + 127 * shares if is_signed else 255 * shares
    content = steps.round().to(torch.uint8).numpy()
    return {
        "rows": heatmap.shape[0],
        "columns": heatmap.shape[1],
        "signed": is_signed,
        "limit": float(f"{limit:.3g}"),
        "bytes": encode_bytes(content),
    }


def shrink_map(values: Tensor, max_side: int) -> Tensor:
    """A map with at most so many rows and columns, by averaging."""
    height, width = values.shape
    scale = min(1.0, max_side / max(height, width))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    if size == (height, width):
        return values
    return F.adaptive_avg_pool2d(values[None, None], size)[0, 0]


def encode_bytes(values: Numbers) -> str:
    """The memory of an array, little-endian, in base64."""
    little_endian = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<"))
    return base64.b64encode(little_endian.tobytes()).decode()


# ── attributions ──


def add_attribution_scripts(explorer: Explorer, id: int, label: int) -> list[dict[str, str]]:
    """For each method its title, and the scripts that show its map and the test of it.

    Both are computed when their script is asked for, by a server. A map is there in a fraction of a
    second or in a few, its test takes about five times as long.
    """
    model = explorer.model
    if model is None:
        return []
    page = explorer.link("image", id=id).removesuffix(".html")
    scripts: list[dict[str, str]] = []
    for name in MATRIX_METHODS:
        method = find_attribution_method(name)
        file_name = name.replace(":", "-")
        map_name = f"{page.replace('images/', 'attribution-of/')}/{file_name}"
        test_name = f"{page.replace('images/', 'test-of/')}/{file_name}"

        def make_map(name: str = name) -> dict[str, Any]:
            key = {"numbers": "attribution map", "image": id, "class": label, "method": name}
            content = explorer.read_numbers(
                key, lambda: measure_attribution(explorer, model, id, label, name)
            )
            return content or {"missing": True}

        def make_test(name: str = name) -> dict[str, Any]:
            key = {"numbers": "attribution test", "image": id, "class": label, "method": name}
            content = explorer.read_numbers(
                key, lambda: run_attribution_test(explorer, model, id, label, name)
            )
            return content or {"missing": True}

        explorer.add_script(map_name, make_map)
        explorer.add_script(test_name, make_test)
        scripts.append(
            {
                "title": METHODS[method.name].title,
                "kind": "" if method.kind in METHODS[method.name].title.lower() else method.kind,
                "map": map_name,
                "test": test_name,
            }
        )
    return scripts


def measure_attribution(
    explorer: Explorer, model: Model, id: int, label: int, name: str
) -> dict[str, Any]:
    """The attribution of a class in an image of the scan."""
    method = find_attribution_method(name)
    try:
        image = explorer.read_input(id)
        attribution = method.compute_attribution(model, image, label, seed=0)
    except SightlineError as error:
        return {"problem": str(error)}
    return {"map": encode_map(attribution.heatmap)}


def run_attribution_test(
    explorer: Explorer, model: Model, id: int, label: int, name: str
) -> dict[str, Any]:
    """A short test of the attribution of a class in an image of the scan."""
    method = find_attribution_method(name)
    try:
        trust = summarize_trust(model, explorer.read_input(id), method, label)
    except SightlineError as error:
        return {"problem": str(error)}
    rows = [
        {
            "test": test,
            "good": good,
            "value": format_score(value),
            "chance": "" if chance is None else format_score(chance),
        }
        for test, good, value, chance in trust.rows
    ]
    level, word = judge_attribution(trust.numbers)
    return {"sentence": trust.sentence, "rows": rows, "level": level, "word": word}


def format_score(value: float) -> str:
    """A number with two decimals, without a negative zero."""
    return f"{value:.2f}".replace("-0.00", "0.00").replace("-", "−")


def judge_attribution(numbers: dict[str, float | str]) -> tuple[str, str]:
    """One word on an attribution, from the curves alone: better, as good or worse than chance."""
    deletion_gain = float(numbers["deletion_auc_chance"]) - float(numbers["deletion_auc"])
    insertion_gain = float(numbers["insertion_auc"]) - float(numbers["insertion_auc_chance"])
    gain = deletion_gain + insertion_gain
    if deletion_gain > 0 and insertion_gain > 0:
        return "strong", "better than chance"
    if gain > 0:
        return "weak", "mixed"
    return "failed", "no better than chance"


# ── units at each position ──


def add_place_script(explorer: Explorer, id: int) -> dict[str, str] | None:
    """The name and address of the script with the units that fire at each position of an image.

    None without the network.
    """
    model = explorer.model
    if model is None:
        return None
    name = explorer.link("image", id=id).removesuffix(".html").replace("images/", "places-of/")

    layers = pick_place_layers(explorer)
    sheets = [list_sheets(explorer, layer) for layer in layers]

    def make_content() -> dict[str, Any]:
        key = {"numbers": "places", "image": id, "layers": layers, "side": PLACE_SIDE}
        content = explorer.read_numbers(key, lambda: measure_places(explorer, model, id))
        if content is None:
            return {"missing": True}
        pictures = {"columns": SHEET_COLUMNS, "perSheet": SHEET_UNITS}
        described = [
            {**layer, **pictures, "sheets": own_sheets}
            for layer, own_sheets in zip(content.get("layers", []), sheets, strict=False)
        ]
        return {**content, "layers": described}

    return {"name": name, "address": explorer.add_script(name, make_content)}


def measure_places(explorer: Explorer, model: Model, id: int) -> dict[str, Any]:
    """The strongest units at each position of some layers, as shares of each unit's peak.

    A unit's peak is its strongest response in the whole scan, so that layers can be compared.
    """
    layers = pick_place_layers(explorer)
    try:
        image = explorer.read_input(id)
        with torch.no_grad():
            features = model.features(image, layers)
    except SightlineError as error:
        return {"problem": str(error)}
    described: list[dict[str, Any]] = []
    for layer in layers:
        grid = reshape_to_unit_grid(features[layer], image, model, model.layer(layer))[0]
        described.append(describe_places(explorer, layer, grid.float().cpu()))
    return {"layers": described}


def list_sheets(explorer: Explorer, layer: str) -> list[str]:
    """The sheets with a picture of each unit of a layer: its synthesis, or its strongest patch."""
    unit_count = explorer.scan.description.layers[layer].units
    sheets: list[str] = []
    for start in range(0, unit_count, SHEET_UNITS):
        synthesis_sheet = add_synthesis_sheet(explorer, layer, start, unit_count)
        sheets.append(synthesis_sheet or add_layer_sheet(explorer, layer, start, unit_count))
    return sheets


def pick_place_layers(explorer: Explorer) -> list[str]:
    """Layers with maps, evenly spread from first to last."""
    layers = explorer.scan.description.layers
    spatial = [name for name, layer in layers.items() if min(layer.map_shape) > 1]
    if not spatial:
        return []
    spread = np.linspace(0, len(spatial) - 1, min(PLACE_LAYERS, len(spatial)))
    return [spatial[index] for index in spread.round().astype(int).tolist()]


def describe_places(explorer: Explorer, layer: str, grid: Tensor) -> dict[str, Any]:
    """The strongest units at each position of maps U×h×w, as arrays of bytes."""
    table = read_unit_table(explorer, layer)
    peaks = torch.from_numpy(np.nan_to_num(table.peaks)).float()
    # A unit that never fires is never the strongest.
    scale = torch.where(peaks > 0, peaks, torch.full_like(peaks, torch.inf))
    shares = grid / scale[:, None, None]
    if max(shares.shape[1:]) > PLACE_SIDE:
        rows = min(PLACE_SIDE, shares.shape[1])
        columns = min(PLACE_SIDE, shares.shape[2])
        shares = F.adaptive_max_pool2d(shares[None], (rows, columns))[0]
    count = min(PLACE_UNITS, len(shares))
    strongest, units = shares.topk(count, dim=0)
    steps = (strongest.clamp(0, 1) * STRENGTH_STEPS).round().to(torch.uint8)
    first_unit = explorer.link("unit", layer=layer, unit=0)
    return {
        "name": escape_for_display(layer),
        "folder": first_unit.removesuffix("0.html"),
        "rowCount": shares.shape[1],
        "columnCount": shares.shape[2],
        "count": table.unit_count,
        "perPlace": count,
        "units": encode_bytes(units.permute(1, 2, 0).numpy().astype(np.uint16)),
        "strengths": encode_bytes(steps.permute(1, 2, 0).numpy()),
        "names": {
            str(unit): table.names[unit] for unit in units.unique().tolist() if table.names[unit]
        },
    }
