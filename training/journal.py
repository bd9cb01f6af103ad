"""Checkpoints that hold their log: killed at any moment, no row is lost and none is there twice."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sightline.images.files import replace_atomically, write_text

LogRow = Mapping[str, float]


def save_checkpoint(
    path: Path, state: Mapping[str, Any], log_path: Path, rows: Sequence[LogRow]
) -> None:
    """Writes the log as JSON lines, then the checkpoint with its rows; each whole or not at all."""
    write_log(log_path, rows)
    with replace_atomically(path) as temporary:
        torch.save({**state, "rows": list(rows)}, temporary)


def load_checkpoint(path: Path, log_path: Path) -> dict[str, Any]:
    """Reads a checkpoint and writes its rows as the log, which may be ahead of it."""
    state = torch.load(path, weights_only=True)
    write_log(log_path, state["rows"])
    return state


def write_log(path: Path, rows: Sequence[LogRow]) -> None:
    write_text("".join(json.dumps(row) + "\n" for row in rows), path)
