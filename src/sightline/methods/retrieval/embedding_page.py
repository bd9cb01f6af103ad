"""The page on which a map of images is browsed: coordinates, names, classes and as many thumbnails as a budget allows, in one file."""

import base64
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.data.scan.access import load_center_crops
from sightline.data.store.reader import Scan
from sightline.images.io import encode_jpeg
from sightline.images.plotting.grid_assignment import make_picture_mosaic
from sightline.images.plotting.html import render_template

THUMBNAIL_SIDE, THUMBNAIL_COLUMNS = (
    48,
    32,
)  # pixels of a thumbnail, thumbnails along a side of a sheet

THUMBNAIL_JPEG_QUALITY = 80

MAX_GROUP_NAMES = 65_535  # different names a colouring can have


def render_scatter_page(
    scan: Scan, positions: Tensor, title: str, subtitle: str, megabytes: float
) -> str:
    """The text of a self-contained page with images at `places`, n×2 or n×3. Thumbnails are left out, evenly, beyond `megabytes`."""
    middle = (positions.amax(0) + positions.amin(0)) / 2
    centered = (positions - middle) / (positions - middle).abs().max().clamp_min(1e-12)
    shown, sheets = build_thumbnail_sheets(scan, megabytes * 1e6)
    data = {
        "places": encode_page_numbers(centered.float().numpy()),
        "dimensions": positions.shape[1],
        "names": [str(path) for path in strip_common_folder(scan.paths)],
        "shown": encode_page_numbers(np.asarray(shown, dtype=np.uint32)),
        "tile": THUMBNAIL_SIDE,
        "columns": THUMBNAIL_COLUMNS,
        "sheets": sheets,
        "groups": list(list_color_groups(scan)),
    }
    hint = "" if positions.shape[1] == 2 else "Right button or Alt and drag turns."
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return render_template("embedding.html", title=title, subtitle=subtitle, hint=hint, data=text)


def build_thumbnail_sheets(scan: Scan, max_bytes: float) -> tuple[list[int], list[str]]:
    """Which images are shown, and sheets of their thumbnails as data URIs of at most about `budget` bytes.

    The first sheet, evenly spread, tells how many the rest may have.
    """
    shown = pick_evenly_spaced(scan.images, THUMBNAIL_COLUMNS**2)
    first = encode_thumbnail_sheet(scan, shown)
    fits = int(max_bytes / len(first) * len(shown))
    if fits >= scan.images <= THUMBNAIL_COLUMNS**2:
        return shown, [first]
    shown = pick_evenly_spaced(scan.images, fits)
    return shown, [
        encode_thumbnail_sheet(scan, shown[start : start + THUMBNAIL_COLUMNS**2])
        for start in range(0, len(shown), THUMBNAIL_COLUMNS**2)
    ]


def pick_evenly_spaced(count: int, limit: int) -> list[int]:
    """At most `most` of `count` numbers, evenly spread."""
    return torch.linspace(0, count - 1, min(count, limit)).round().long().tolist()


def encode_thumbnail_sheet(scan: Scan, ids: Sequence[int]) -> str:
    """Thumbnails side by side, row by row, as one JPEG."""
    places = torch.arange(len(ids))
    picture = make_picture_mosaic(
        load_center_crops(scan, ids, THUMBNAIL_SIDE),
        torch.stack([places // THUMBNAIL_COLUMNS, places % THUMBNAIL_COLUMNS], 1),
        THUMBNAIL_COLUMNS,
    )
    rows = math.ceil(len(ids) / THUMBNAIL_COLUMNS)
    return (
        "data:image/jpeg;base64,"
        + base64.b64encode(
            encode_jpeg(picture[:, :, : rows * THUMBNAIL_SIDE], THUMBNAIL_JPEG_QUALITY)
        ).decode()
    )


def encode_page_numbers(numbers: np.ndarray[Any, Any]) -> str:
    """Numbers as the page reads them: little-endian, base64."""
    return base64.b64encode(
        np.ascontiguousarray(numbers).astype(numbers.dtype.newbyteorder("<")).tobytes()
    ).decode()


def strip_common_folder(paths: Sequence[Any]) -> list[str]:
    """Paths without the folder that all have."""
    names = [str(path) for path in paths]
    if len(names) < 2:
        return names
    first, last = min(names), max(names)
    alike = next(
        (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b),
        min(len(first), len(last)),
    )
    return [name[first.rfind("/", 0, alike) + 1 :] for name in names]


def list_color_groups(scan: Scan) -> Iterator[dict[str, Any]]:
    """What the images can be coloured by: label, prediction, and whether they agree."""
    predicted = scan.top5[0][:, 0].long()
    if scan.classes is not None:
        names = [*scan.class_names, "unknown"]
        yield make_color_group("label", [names[int(c)] for c in scan.classes])
    yield make_color_group("prediction", [scan.model_labels[int(c)] for c in predicted])
    if scan.classes is not None:
        right = [
            scan.class_names[int(c)] == scan.model_labels[int(p)] if c >= 0 else None
            for c, p in zip(scan.classes, predicted, strict=True)
        ]
        words = {True: "right", False: "wrong", None: "unknown"}
        if set(scan.class_names) & set(scan.model_labels):
            yield {
                **make_color_group(
                    "error", [words[r] for r in right], ("right", "wrong", "unknown")
                ),
                "colors": ["#4a8fd6", "#d33f2f", "#999999"],
            }


def make_color_group(
    label: str, names_by_image: Sequence[str], group_order: Sequence[str] = ()
) -> dict[str, Any]:
    """One colouring: the names, and which of them each image has."""
    names = list(group_order) or sorted(dict.fromkeys(names_by_image))[:MAX_GROUP_NAMES]
    number = {name: i for i, name in enumerate(names)}
    return {
        "label": label,
        "names": names,
        "of": encode_page_numbers(
            np.array([number.get(name, 0) for name in names_by_image], dtype=np.uint16)
        ),
    }
