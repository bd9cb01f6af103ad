"""The page on which a map of images is browsed: coordinates, names, classes and as many thumbnails as a budget allows, in one file."""

import base64
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ... import image as images
from ...gridding import mosaic
from ...pages import rendered
from ...scans import Scan
from .scanned import squares

TILE, COLUMNS = 48, 32  # pixels of a thumbnail, thumbnails along a side of a sheet
QUALITY = 80
MOST = 65_535  # different names a colouring can have


def page(found: Scan, places: Tensor, title: str, subtitle: str, megabytes: float) -> str:
    """The text of a self-contained page with images at `places`, n×2 or n×3. Thumbnails are left out, evenly, beyond `megabytes`."""
    middle = (places.amax(0) + places.amin(0)) / 2
    centered = (places - middle) / (places - middle).abs().max().clamp_min(1e-12)
    shown, sheets = thumbnails(found, megabytes * 1e6)
    data = {
        "places": packed(centered.float().numpy()),
        "dimensions": places.shape[1],
        "names": [str(path) for path in short(found.paths)],
        "shown": packed(np.asarray(shown, dtype=np.uint32)),
        "tile": TILE,
        "columns": COLUMNS,
        "sheets": sheets,
        "groups": list(groups(found)),
    }
    hint = "" if places.shape[1] == 2 else "Right button or Alt and drag turns."
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return rendered("embedding.html", title=title, subtitle=subtitle, hint=hint, data=text)


def thumbnails(found: Scan, budget: float) -> tuple[list[int], list[str]]:
    """Which images are shown, and sheets of their thumbnails as data URIs of at most about `budget` bytes.

    The first sheet, evenly spread, tells how many the rest may have.
    """
    shown = spread(found.images, COLUMNS**2)
    first = sheet(found, shown)
    fits = int(budget / len(first) * len(shown))
    if fits >= found.images <= COLUMNS**2:
        return shown, [first]
    shown = spread(found.images, fits)
    return shown, [sheet(found, shown[start : start + COLUMNS**2]) for start in range(0, len(shown), COLUMNS**2)]


def spread(count: int, most: int) -> list[int]:
    """At most `most` of `count` numbers, evenly spread."""
    return torch.linspace(0, count - 1, min(count, most)).round().long().tolist()


def sheet(found: Scan, ids: Sequence[int]) -> str:
    """Thumbnails side by side, row by row, as one JPEG."""
    places = torch.arange(len(ids))
    picture = mosaic(squares(found, ids, TILE), torch.stack([places // COLUMNS, places % COLUMNS], 1), COLUMNS)
    rows = math.ceil(len(ids) / COLUMNS)
    return "data:image/jpeg;base64," + base64.b64encode(images.jpeg(picture[:, :, : rows * TILE], QUALITY)).decode()


def packed(numbers: np.ndarray[Any, Any]) -> str:
    """Numbers as the page reads them: little-endian, base64."""
    return base64.b64encode(np.ascontiguousarray(numbers).astype(numbers.dtype.newbyteorder("<")).tobytes()).decode()


def short(paths: Sequence[Any]) -> list[str]:
    """Paths without the folder that all have."""
    names = [str(path) for path in paths]
    if len(names) < 2:
        return names
    first, last = min(names), max(names)
    alike = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return [name[first.rfind("/", 0, alike) + 1 :] for name in names]


def groups(found: Scan) -> Iterator[dict[str, Any]]:
    """What the images can be coloured by: label, prediction, and whether they agree."""
    predicted = found.top5[0][:, 0].long()
    if found.classes is not None:
        names = [*found.class_names, "unknown"]
        yield grouping("label", [names[int(c)] for c in found.classes])
    yield grouping("prediction", [found.model_labels[int(c)] for c in predicted])
    if found.classes is not None:
        right = [
            found.class_names[int(c)] == found.model_labels[int(p)] if c >= 0 else None
            for c, p in zip(found.classes, predicted, strict=True)
        ]
        words = {True: "right", False: "wrong", None: "unknown"}
        if set(found.class_names) & set(found.model_labels):
            yield {
                **grouping("error", [words[r] for r in right], ("right", "wrong", "unknown")),
                "colors": ["#4a8fd6", "#d33f2f", "#999999"],
            }


def grouping(label: str, each: Sequence[str], order: Sequence[str] = ()) -> dict[str, Any]:
    """One colouring: the names, and which of them each image has."""
    names = list(order) or sorted(dict.fromkeys(each))[:MOST]
    number = {name: i for i, name in enumerate(names)}
    return {"label": label, "names": names, "of": packed(np.array([number.get(name, 0) for name in each], dtype=np.uint16))}
