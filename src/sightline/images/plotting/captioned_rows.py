"""Figures of pictures in rows: a title over each row, a caption under each picture."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sightline.images.plotting.charts import TEXT_COLOR, rasterize_figure
from sightline.images.transforms import resize_image
from sightline.images.validation import check_image

# All in pixels.
TITLE_HEIGHT = 24  # of one line
TITLE_LINE_HEIGHT = 15  # of each further line
CAPTION_HEIGHT = 32
TILE_GAP = 8
LEAD_GAP = 3 * TILE_GAP
FIGURE_MARGIN = 10

TITLE_FONT_SIZE = 10
CAPTION_FONT_SIZE = 7
CAPTION_CHARACTER_WIDTH = 6
TITLE_CHARACTER_WIDTH = 7.2

MAX_TITLE_LINES = 3


@dataclass(frozen=True)
class FigureRow:
    """A title, pictures 1×3×H×W of any size, and a caption for each.

    The first `lead_count` pictures are set apart by a wide gap.
    """

    title: str
    pictures: Sequence[Tensor]
    captions: Sequence[str]
    lead_count: int = 0


@dataclass(frozen=True)
class PlacedText:
    """A text of a figure; x and y in pixels from the top left corner."""

    x: float
    y: float
    text: str
    font_size: int
    alignment: str


def compose_figure_rows(rows: Sequence[FigureRow], tile_side: int = 96) -> Tensor:
    """The rows below each other, each picture fitted into a square of `tile_side`: 1×3×H×W."""
    content_width = max(_measure_row_width(row, tile_side) for row in rows)
    rows = [replace(row, title=_wrap_title(row.title, content_width)) for row in rows]
    content_height = sum(_measure_row_height(row, tile_side) for row in rows)
    width = content_width + 2 * FIGURE_MARGIN
    height = content_height + FIGURE_MARGIN
    canvas = torch.ones(1, 3, height, width)
    texts: list[PlacedText] = []
    top = FIGURE_MARGIN // 2
    for row in rows:
        texts += _place_row(row, top, tile_side, canvas)
        top += _measure_row_height(row, tile_side)
    return _draw_texts(canvas, texts)


def _measure_row_width(row: FigureRow, tile_side: int) -> int:
    lead_gap = LEAD_GAP if row.lead_count else 0
    return len(row.pictures) * (tile_side + TILE_GAP) - TILE_GAP + lead_gap


def _measure_row_height(row: FigureRow, tile_side: int) -> int:
    space_below = CAPTION_HEIGHT if any(row.captions) else TILE_GAP
    return _measure_title_height(row.title) + tile_side + space_below


def _wrap_title(title: str, width: int) -> str:
    """The title in lines of this width in pixels, the last of which may end in «…»."""
    max_length = max(20, int(width / TITLE_CHARACTER_WIDTH))
    lines = textwrap.wrap(title, max_length, max_lines=MAX_TITLE_LINES, placeholder=" …")
    return "\n".join(lines)


def _measure_title_height(title: str) -> int:
    if not title:
        return 0
    return TITLE_HEIGHT + TITLE_LINE_HEIGHT * title.count("\n")


def _place_row(row: FigureRow, top: int, tile_side: int, canvas: Tensor) -> list[PlacedText]:
    """Draws the row's pictures onto the canvas; returns its texts."""
    title_height = _measure_title_height(row.title)
    title_y = top + max(TITLE_HEIGHT, title_height) / 2
    texts = [PlacedText(FIGURE_MARGIN, title_y, row.title, TITLE_FONT_SIZE, "left")]
    top += title_height
    bottom = top + tile_side
    left = FIGURE_MARGIN
    for number, (picture, caption) in enumerate(zip(row.pictures, row.captions, strict=True)):
        if number == row.lead_count > 0:
            left += LEAD_GAP
        right = left + tile_side
        canvas[:, :, top:bottom, left:right] = _fit_in_tile(picture, tile_side)
        center = left + tile_side / 2
        text = _truncate_lines(caption, tile_side)
        caption_y = bottom + CAPTION_HEIGHT / 2
        texts.append(PlacedText(center, caption_y, text, CAPTION_FONT_SIZE, "center"))
        left = right + TILE_GAP
    return texts


def _fit_in_tile(picture: Tensor, tile_side: int) -> Tensor:
    """The picture as large as it fits into a square, white around it: 1×3×side×side."""
    height, width = picture.shape[-2:]
    scale = tile_side / max(height, width)
    height = max(1, round(height * scale))
    width = max(1, round(width * scale))
    resized = resize_image(check_image(picture).cpu(), height, width)
    top = (tile_side - height) // 2
    left = (tile_side - width) // 2
    tile = torch.ones(1, 3, tile_side, tile_side)
    tile[:, :, top : top + height, left : left + width] = resized
    return tile


def _truncate_lines(caption: str, tile_side: int) -> str:
    """The caption with each line cut to the width of a tile."""
    max_length = max(8, tile_side // CAPTION_CHARACTER_WIDTH)
    lines = [
        line if len(line) <= max_length else line[: max_length - 1] + "…"
        for line in caption.split("\n")
    ]
    return "\n".join(lines)


def _draw_texts(canvas: Tensor, texts: Sequence[PlacedText]) -> Tensor:
    """The canvas 1×3×H×W with texts drawn over it."""
    from matplotlib.figure import Figure

    height, width = canvas.shape[-2:]
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    figure.figimage(canvas[0].permute(1, 2, 0).numpy(), origin="upper")
    for item in texts:
        figure.text(
            item.x / width,
            1 - item.y / height,
            item.text,
            size=item.font_size,
            ha=item.alignment,
            va="center",
            color=TEXT_COLOR,
            linespacing=1.1,
        )
    return rasterize_figure(figure)
