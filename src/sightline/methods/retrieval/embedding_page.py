"""The page to browse a map of images: positions, names, classes and thumbnails in one file."""

import base64
import json
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.data.scan.access import load_center_crops
from sightline.data.scan.true_classes import (
    TrueClasses,
    find_true_classes,
    list_class_names,
)
from sightline.data.search.nearest import pick_evenly_spaced
from sightline.data.store.reader import Scan
from sightline.errors import SightlineError, escape_for_display
from sightline.images.plotting.grid_assignment import make_picture_mosaic
from sightline.images.plotting.html import make_webp_uri, render_template

THUMBNAIL_SIDE = 48  # pixels

SHEET_COLUMNS = 32  # thumbnails along a side of a sheet
SHEET_THUMBNAILS = SHEET_COLUMNS**2

MAX_GROUP_NAMES = 65_535  # names that 16 bits can number

ERROR_GROUPS = ("right", "wrong", "unknown")
# Okabe and Ito's blue and vermilion, which the colour-blind can tell apart.
ERROR_COLORS = ("#0072b2", "#d55e00", "#8a8578")


def render_scatter_page(
    scan: Scan, positions: Tensor, title: str, subtitle: str, megabytes: float
) -> str:
    """The text of a self-contained page with an image at each position, n×2 or n×3.

    Thumbnails take at most about `megabytes`; images beyond that, evenly spread, are points.
    """
    center = (positions.amax(0) + positions.amin(0)) / 2
    half_extent = (positions - center).abs().max().clamp_min(1e-12)
    scaled = (positions - center) / half_extent
    pictured_ids, sheets = build_thumbnail_sheets(scan, megabytes * 1e6)
    data = {
        "positions": encode_numbers(scaled.float().numpy()),
        "dimensions": positions.shape[1],
        "names": list(map(escape_for_display, strip_common_folder(scan.paths))),
        "pictured": encode_numbers(np.asarray(pictured_ids, dtype=np.uint32)),
        "thumbnailSide": THUMBNAIL_SIDE,
        "sheetColumns": SHEET_COLUMNS,
        "sheets": sheets,
        "groups": list(list_color_groups(scan)),
    }
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return render_template(
        "embedding.html",
        title=title,
        subtitle=subtitle,
        hint="Right button or Alt and drag turns." if positions.shape[1] == 3 else "",
        data=text.replace("<", "\\u003c"),  # a name can't end the script element
    )


# ── thumbnails ──


def build_thumbnail_sheets(scan: Scan, max_bytes: float) -> tuple[list[int], list[str]]:
    """The ids of the images with a thumbnail, and sheets of thumbnails as data URIs.

    The size of a first sheet, of evenly spread images, tells how many fit into `max_bytes`.
    """
    first_ids = pick_evenly_spaced(scan.images, SHEET_THUMBNAILS).tolist()
    first_sheet = encode_thumbnail_sheet(scan, first_ids)
    fitting = int(max_bytes / len(first_sheet) * len(first_ids))
    if scan.images <= min(fitting, SHEET_THUMBNAILS):
        return first_ids, [first_sheet]
    ids = pick_evenly_spaced(scan.images, fitting).tolist()
    sheets = [
        encode_thumbnail_sheet(scan, ids[start : start + SHEET_THUMBNAILS])
        for start in range(0, len(ids), SHEET_THUMBNAILS)
    ]
    return ids, sheets


def encode_thumbnail_sheet(scan: Scan, ids: Sequence[int]) -> str:
    """Thumbnails side by side, row by row, as one WebP in a data URI."""
    return make_webp_uri(draw_thumbnail_sheet(scan, ids))


def draw_thumbnail_sheet(scan: Scan, ids: Sequence[int]) -> Tensor:
    """Thumbnails side by side, row by row: 1×3×H×W."""
    numbers = torch.arange(len(ids))
    cells = torch.stack([numbers // SHEET_COLUMNS, numbers % SHEET_COLUMNS], 1)
    thumbnails = load_center_crops(scan, ids, THUMBNAIL_SIDE)
    square_sheet = make_picture_mosaic(thumbnails, cells, SHEET_COLUMNS)
    row_count = math.ceil(len(ids) / SHEET_COLUMNS)
    return square_sheet[:, :, : row_count * THUMBNAIL_SIDE]


# ── the data of the page ──


def encode_numbers(numbers: np.ndarray[Any, Any]) -> str:
    """Numbers as the page reads them: little-endian, in base64."""
    little_endian = np.ascontiguousarray(numbers).astype(numbers.dtype.newbyteorder("<"))
    return base64.b64encode(little_endian.tobytes()).decode()


def strip_common_folder(paths: Sequence[Any]) -> list[str]:
    """Paths without the folder that all have in common."""
    names = [str(path) for path in paths]
    if len(names) < 2:
        return names
    common_text = os.path.commonprefix(names)  # noqa: RUF071 (it is cut after its last slash)
    folder_length = common_text.rfind("/") + 1
    return [name[folder_length:] for name in names]


def list_color_groups(scan: Scan) -> Iterator[dict[str, Any]]:
    """What the images can be coloured by: class, prediction, and whether the two agree.

    Classes are those of the dataset, or of the WordNet ids that its files' names begin with. An
    image whose class the network lacks is neither right nor wrong.
    """
    best_labels = scan.top5[0][:, 0].numpy()
    predictions = [scan.model_labels[label] for label in best_labels.tolist()]
    truth = read_true_classes(scan)
    if scan.classes is not None:
        names = [*list_class_names(scan), "unknown"]  # the class −1 is the last name
        yield make_color_group("label", [names[index] for index in scan.classes.tolist()])
    elif truth is not None:
        names = [*truth.names, "unknown"]
        yield make_color_group("label", [names[index] for index in truth.labels.tolist()])

    yield make_color_group("prediction", predictions)
    if truth is not None:
        is_right = truth.labels == best_labels
        outcomes = np.where(is_right, "right", np.where(truth.known, "wrong", "unknown")).tolist()
        group = make_color_group("error", outcomes, ERROR_GROUPS)
        yield {**group, "colors": list(ERROR_COLORS)}


def read_true_classes(scan: Scan) -> TrueClasses | None:
    """The images' true classes; None where none of them is one of the network's."""
    try:
        return find_true_classes(scan)
    except SightlineError:
        return None


def make_color_group(
    label: str, names_by_image: Sequence[str], group_order: Sequence[str] = ()
) -> dict[str, Any]:
    """One colouring: its names, and for each image the index of its name.

    The names are sorted unless `group_order` gives them.
    """
    names = list(group_order) or sorted(set(names_by_image))[:MAX_GROUP_NAMES]
    index_of = {name: index for index, name in enumerate(names)}
    indices = [index_of.get(name, 0) for name in names_by_image]
    return {
        "label": label,
        "names": names,
        "of": encode_numbers(np.array(indices, dtype=np.uint16)),
    }
