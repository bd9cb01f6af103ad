"""What a store looks like on disk, version 1. `docs/store.md` is its description in prose.

OUT.scan/scan.json            what the pass is of: network, collection, layers, numbers (written once, first)
OUT.scan/images.lance         one row per image, in the order of the collection (LanceDB)
OUT.scan/errors.lance         one row per file that could not be read
OUT.scan/state.safetensors    the units' strongest responses and how far the pass has come: the commit
OUT.scan/index.json           which indexes of vectors there are, how they are asked, and their recall
OUT.scan/lock                 held by the process that writes
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sightline.errors import SightlineError, get_first_error_line
from sightline.models.model import Model

STORE_FORMAT, STORE_VERSION = "sightline scan", 1

FACTS_FILE, STATE_FILE, LOCK_FILE, INDEX_FILE, IMAGES_TABLE, ERRORS_TABLE = (
    "scan.json",
    "state.safetensors",
    "lock",
    "index.json",
    "images",
    "errors",
)

QUANTILE_LEVELS = tuple(number / 10 for number in range(11))

THUMBNAIL_SIZE = 96  # pixels


def compute_network_facts(model: Model, side: int) -> dict[str, Any]:
    """What decides a network's numbers: the digest of all its weights, and its preprocessing."""
    found = hashlib.sha256()
    for name, value in sorted(model.network.state_dict().items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    mean, std = (
        [float(f"{number:.6g}") for number in value.flatten().tolist()]
        for value in (model.mean, model.std)
    )
    return {
        "weights": found.hexdigest(),
        "mean": mean,
        "std": std,
        "side": side,
        "short": max(side, round(side * model.resize / model.size)),
    }


def make_images_schema(vectors: Mapping[str, int]) -> Any:
    """Columns of the images table; vector_0, vector_1, … are the layers of `vectors` in order."""
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("id", pa.int64()),
            pa.field("position", pa.int64()),
            pa.field("path", pa.string()),
            pa.field("sha256", pa.string()),
            pa.field("class", pa.int32()),
            pa.field("height", pa.int32()),
            pa.field("width", pa.int32()),
            pa.field("labels", pa.list_(pa.int32())),
            pa.field("probabilities", pa.list_(pa.float32())),
            pa.field("thumbnail", pa.binary()),
            *(
                pa.field(f"vector_{number}", pa.list_(pa.float32(), length))
                for number, length in enumerate(vectors.values())
            ),
        ]
    )


def make_errors_schema() -> Any:
    """Columns of the errors table."""
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("position", pa.int64()),
            pa.field("path", pa.string()),
            pa.field("reason", pa.string()),
        ]
    )


def make_zero_counters() -> dict[str, int]:
    """The tallies of a pass that has not begun: positions done, images kept, errors, whether it is complete."""
    return {"done": 0, "images": 0, "errors": 0, "complete": 0}


def is_store_or_empty(path: Path) -> bool:
    """Whether an existing path is a store, or an empty folder that may be one."""
    return path.is_dir() and (
        path.joinpath(FACTS_FILE).exists()
        or {entry.name for entry in path.iterdir()} <= {LOCK_FILE}
    )


def read_store_facts(path: Path) -> dict[str, Any]:
    """The content of `scan.json`. Raises SightlineError for no store, one made by a newer version, a damaged one."""
    try:
        told = json.loads(path.joinpath(FACTS_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SightlineError(
            f"{path} is no store{'' if path.exists() else ': there is nothing'}; sightline scan makes one"
        ) from error
    except (OSError, ValueError) as error:
        raise SightlineError(
            f"the store {path} is damaged: {FACTS_FILE} can't be read ({get_first_error_line(error)})"
        ) from error
    if (
        not isinstance(told, dict)
        or told.get("format") != STORE_FORMAT
        or not isinstance(told.get("version"), int)
    ):
        raise SightlineError(f"{path} is no store: its {FACTS_FILE} is something else")
    if told["version"] > STORE_VERSION:
        raise SightlineError(
            f"the store {path} was made by a newer version (layout {told['version']}; this one reads {STORE_VERSION})"
        )
    return told


def require_same_facts(path: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises SightlineError if a store was made of something else than what is wanted now, naming the first difference."""
    if stored["network"]["weights"] != wanted["network"]["weights"] or stored["model"].get(
        "model"
    ) != wanted["model"].get("model"):
        same = stored["model"].get("model") == wanted["model"].get("model")
        other = (
            f"other weights of {stored['model'].get('model')}"
            if same
            else f"{stored['model'].get('model')}, not {wanted['model'].get('model')}"
        )
        raise SightlineError(f"the store {path} was made with {other}; give another --store")
    for part, words in DIFFERENCE_MESSAGES.items():
        if part in wanted and stored[part] != wanted[part]:
            raise SightlineError(
                f"the store {path} was made with {words} ({shorten_fact(stored[part])}, now {shorten_fact(wanted[part])}); give another --store"
            )


DIFFERENCE_MESSAGES = {
    "network": "another preprocessing",
    "layers": "other layers",
    "vectors": "other vectors",
    "k": "another k",
    "class_k": "another number per class",
    "sample": "another sample",
    "batch": "another batch",
    "collection": "another collection, or its files have changed since",
    "class_names": "other classes",
}


def shorten_fact(value: Any) -> str:
    """A fact on one short line."""
    return f"{', '.join(value) if isinstance(value, dict) and len(value) > 5 else value!s:.80}"


def explain_disk_error(error: Exception) -> str:
    """What another library's message says about a file system, in a few words: «No space left on device»."""
    found = re.search(r"([A-Z][\w ]+) \(os error \d+\)", str(error))
    return found[1] if found else getattr(error, "strerror", None) or get_first_error_line(error)
