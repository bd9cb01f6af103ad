"""What a store holds, whether it is whole, and how it is made smaller."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..errors import SightlineError, first_line
from ..fitted import decoded
from . import layout
from .index import known
from .store import Scan, table
from .writing import Writer, locked

CHUNK = 1000  # rows looked at together


def info(path: str | Path) -> dict[str, Any]:
    """Facts of a store, JSON-able. Raises SightlineError as `Scan.open` does."""
    found = Scan.open(path)
    facts = found.facts
    return {
        "images": found.images,
        "errors": len(found.errors) if found.done else 0,
        "complete": found.complete,
        "done": found.done,
        "model": found.recipe.get("model"),
        "recipe": found.recipe,
        "network": found.network,
        "layers": {name: layer["units"] for name, layer in facts["layers"].items()},
        "vectors": facts["vectors"],
        "k": facts["k"],
        "classes": found.class_names,
        "collection": facts["collection"],
        "indexes": {name: asdict(index) for name, index in known(found).items()},
        "version": facts["version"],
        "bytes": sum(file.stat().st_size for file in found.path.rglob("*") if file.is_file()),
    }


def verify(path: str | Path) -> list[str]:
    """Everything that is wrong with a store, a line each; empty if it is whole. Reads all of it once."""
    found = Scan.open(path)
    if not found.done:
        return []
    wrong: list[str] = []
    for check in (_rows, _errors, _units):
        try:
            wrong += check(found)
        except (SightlineError, OSError, RuntimeError, ValueError) as error:
            wrong.append(first_line(error))
    return wrong


def compact(path: str | Path) -> tuple[int, int]:
    """Merges the pieces of a store's tables and drops left-overs; bytes before and after. Raises SightlineError while it is written."""
    before = info(path)
    with locked(Path(path)):
        Writer(Path(path), layout.read_facts(Path(path))).compact()
    return before["bytes"], info(path)["bytes"]


def _rows(found: Scan) -> list[str]:
    columns = ["id", "thumbnail", *(f"vector_{number}" for number in range(len(found.facts["vectors"])))]
    seen, wrong = 0, []
    query = table(found.path, layout.IMAGES).search().where(f"id < {found.images}").select(columns)
    for batch in query.to_batches(CHUNK):
        for row in batch.select(["id", "thumbnail"]).to_pylist():
            seen += 1
            try:
                decoded(row["thumbnail"], layout.THUMBNAIL)
            except SightlineError as error:
                wrong.append(f"the thumbnail of image {row['id']} is broken ({error})")
        for name in columns[2:]:
            if not bool(torch.from_numpy(batch[name].flatten().to_numpy(zero_copy_only=False).copy()).isfinite().all()):
                wrong.append(f"{name} holds values that are no numbers")
    ids = sorted(found._column("id").to_pylist()) if not wrong else []
    if seen != found.images or (ids and ids != list(range(found.images))):
        wrong.append(f"the table of images has {seen} rows; the state tells of {found.images}")
    return list(dict.fromkeys(wrong))


def _errors(found: Scan) -> list[str]:
    missing = found.done - found.images - len(found.errors)
    return [f"{missing} files are neither images nor errors"] if missing else []


def _units(found: Scan) -> list[str]:
    wrong: list[str] = []
    for layer in found.layers:
        values, ids, _ = found.top(layer)
        if bool((values[1:] > values[:-1]).any()):
            wrong.append(f"the strongest images of {layer} are out of order")
        if bool((ids >= found.images).any()):
            wrong.append(f"{layer} names images that are not in the store")
    return wrong
