"""Pictures in rows with words: a title over each row, a line or two under each picture."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sightline.images.io import check_image
from sightline.images.plotting.maps import rasterize_figure, resize_picture

TITLE_HEIGHT, CAPTION_HEIGHT, TILE_GAP, FIGURE_MARGIN = 24, 32, 8, 10  # pixels


@dataclass(frozen=True)
class FigureRow:
    """A title, pictures 1×3×H×W of any size, and words for each of them; the first `lead` are set apart by a wide gap."""

    title: str
    pictures: Sequence[Tensor]
    captions: Sequence[str]
    lead_count: int = 0


def compose_figure_rows(rows: Sequence[FigureRow], tile_side: int = 96) -> Tensor:
    """The rows below each other, each picture fitted into a square of `tile` pixels: 1×3×H×W."""
    from matplotlib.figure import Figure

    wide = max(
        len(row.pictures) * (tile_side + TILE_GAP) + (3 * TILE_GAP if row.lead_count else 0)
        for row in rows
    )
    width, height = (
        wide + 2 * FIGURE_MARGIN - TILE_GAP,
        sum(measure_row_height(row, tile_side) for row in rows) + FIGURE_MARGIN,
    )
    canvas, texts = torch.ones(1, 3, height, width), list[tuple[float, float, str, float, str]]()
    top = FIGURE_MARGIN // 2
    for row in rows:
        texts.append((FIGURE_MARGIN, top + TITLE_HEIGHT / 2, row.title, 10, "left"))
        top += TITLE_HEIGHT if row.title else 0
        for i, (picture, words) in enumerate(zip(row.pictures, row.captions, strict=True)):
            left = (
                FIGURE_MARGIN
                + i * (tile_side + TILE_GAP)
                + (3 * TILE_GAP if i >= row.lead_count > 0 else 0)
            )
            small = fit_in_tile(picture, tile_side)
            canvas[:, :, top : top + tile_side, left : left + tile_side] = small
            texts.append(
                (
                    left + tile_side / 2,
                    top + tile_side + CAPTION_HEIGHT / 2,
                    truncate_caption(words, tile_side),
                    7,
                    "center",
                )
            )
        top += measure_row_height(row, tile_side) - (TITLE_HEIGHT if row.title else 0)
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    figure.figimage(canvas[0].permute(1, 2, 0).numpy(), origin="upper")
    for x, y, words, size, side in texts:
        figure.text(
            x / width,
            1 - y / height,
            words,
            size=size,
            ha=side,
            va="center",
            color="#222222",
            linespacing=1.1,
        )
    return rasterize_figure(figure)


def measure_row_height(row: FigureRow, tile_side: int) -> int:
    """Pixels that a row takes."""
    return (
        (TITLE_HEIGHT if row.title else 0)
        + tile_side
        + (CAPTION_HEIGHT if any(row.captions) else TILE_GAP)
    )


def fit_in_tile(picture: Tensor, tile_side: int) -> Tensor:
    """The picture as large as it fits into a square, white around it."""
    height, width = picture.shape[-2:]
    scale = tile_side / max(height, width)
    small = resize_picture(
        check_image(picture).cpu(), max(1, round(height * scale)), max(1, round(width * scale))
    )
    above, before = (tile_side - small.shape[2]) // 2, (tile_side - small.shape[3]) // 2
    square = torch.ones(1, 3, tile_side, tile_side)
    square[:, :, above : above + small.shape[2], before : before + small.shape[3]] = small
    return square


def truncate_caption(caption: str, tile_side: int) -> str:
    """Each line cut to what a tile is wide enough for."""
    most = max(8, tile_side // 6)
    return "\n".join(
        line if len(line) <= most else line[: most - 1] + "…" for line in caption.split("\n")
    )
