"""Pictures in rows with words: a title over each row, a line or two under each picture."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import image as images
from .render import drawn, resized

TITLE, WORDS, GAP, MARGIN = 24, 32, 8, 10  # pixels


@dataclass(frozen=True)
class Row:
    """A title, pictures 1×3×H×W of any size, and words for each of them; the first `lead` are set apart by a wide gap."""

    title: str
    pictures: Sequence[Tensor]
    words: Sequence[str]
    lead: int = 0


def plate(rows: Sequence[Row], tile: int = 96) -> Tensor:
    """The rows below each other, each picture fitted into a square of `tile` pixels: 1×3×H×W."""
    from matplotlib.figure import Figure

    wide = max(len(row.pictures) * (tile + GAP) + (3 * GAP if row.lead else 0) for row in rows)
    width, height = wide + 2 * MARGIN - GAP, sum(high(row, tile) for row in rows) + MARGIN
    canvas, texts = torch.ones(1, 3, height, width), list[tuple[float, float, str, float, str]]()
    top = MARGIN // 2
    for row in rows:
        texts.append((MARGIN, top + TITLE / 2, row.title, 10, "left"))
        top += TITLE if row.title else 0
        for i, (picture, words) in enumerate(zip(row.pictures, row.words, strict=True)):
            left = MARGIN + i * (tile + GAP) + (3 * GAP if i >= row.lead > 0 else 0)
            small = framed(picture, tile)
            canvas[:, :, top : top + tile, left : left + tile] = small
            texts.append((left + tile / 2, top + tile + WORDS / 2, fitted(words, tile), 7, "center"))
        top += high(row, tile) - (TITLE if row.title else 0)
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    figure.figimage(canvas[0].permute(1, 2, 0).numpy(), origin="upper")
    for x, y, words, size, side in texts:
        figure.text(x / width, 1 - y / height, words, size=size, ha=side, va="center", color="#222222", linespacing=1.1)
    return drawn(figure)


def high(row: Row, tile: int) -> int:
    """Pixels that a row takes."""
    return (TITLE if row.title else 0) + tile + (WORDS if any(row.words) else GAP)


def framed(picture: Tensor, tile: int) -> Tensor:
    """The picture as large as it fits into a square, white around it."""
    height, width = picture.shape[-2:]
    scale = tile / max(height, width)
    small = resized(images.check(picture).cpu(), max(1, round(height * scale)), max(1, round(width * scale)))
    above, before = (tile - small.shape[2]) // 2, (tile - small.shape[3]) // 2
    square = torch.ones(1, 3, tile, tile)
    square[:, :, above : above + small.shape[2], before : before + small.shape[3]] = small
    return square


def fitted(words: str, tile: int) -> str:
    """Each line cut to what a tile is wide enough for."""
    most = max(8, tile // 6)
    return "\n".join(line if len(line) <= most else line[: most - 1] + "…" for line in words.split("\n"))
