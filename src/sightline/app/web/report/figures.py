"""What a section shows, as the template draws it: pictures, rows, charts and comparisons."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from torch import Tensor

from sightline.images.decode.pixels import quantize_image
from sightline.images.plotting.captioned_rows import FigureRow
from sightline.images.plotting.charts import LinePlot
from sightline.images.plotting.figures import (
    BarChart,
    ColorScale,
    DotPlot,
    FigureData,
    Histogram,
    ImagePair,
    LineChart,
    PictureRows,
)
from sightline.images.plotting.html import make_webp_uri
from sightline.images.plotting.svg import (
    CURVE_COLORS,
    draw_dot_plot_svg,
    draw_histogram_svg,
    draw_line_plot_svg,
)
from sightline.images.transforms import resize_image

# Pixels of the longer side of a picture on the page.
MAX_PICTURE_SIDE = 1280
# A picture smaller than this is shown enlarged by a whole factor.
MIN_SHOWN_SIDE = 256
# A picture wider than half of the page.
HALF_WIDTH = 440
# A tile is stored at no more than this many times the side that it is shown at.
TILE_DENSITY = 1.5

PAIR_SIDE = 384

# A picture of no more colours, of which so many neighbouring pixels are equal, is stored without
# loss: the squares and lines of maps stay sharp. A gray photograph has few colours, too.
MAX_LOSSLESS_COLORS = 512
MIN_EQUAL_NEIGHBOR_SHARE = 0.4

MAX_ALT_LENGTH = 160


def describe_figure(figure: FigureData | None, panel: Tensor, caption: str) -> dict[str, Any]:
    """What the template needs of a panel 1×3×H×W: its figure as data if there is one."""
    if isinstance(figure, PictureRows):
        return {
            "kind": "rows",
            "rows": [describe_row(row, figure) for row in join_untitled_rows(figure.rows)],
            "side": figure.tile_side,
            "scale": describe_scale(figure.scale) if figure.scale else None,
            "caption": caption,
        }
    if isinstance(figure, BarChart):
        return {"kind": "bars", "bars": list_bars(figure), "caption": caption}
    if isinstance(figure, DotPlot):
        charts = [(name, Markup(draw_dot_plot_svg(figure, name))) for name in figure.measures]
        return {"kind": "charts", "charts": charts, "caption": caption}
    if isinstance(figure, LineChart):
        plots = [describe_line_plot(plot) for plot in figure.plots]
        return {"kind": "lines", "plots": plots, "caption": caption}
    if isinstance(figure, Histogram):
        chart = Markup(draw_histogram_svg(figure))
        return {"kind": "charts", "charts": [("", chart)], "caption": caption}
    if isinstance(figure, ImagePair):
        return describe_pair(figure, caption)
    return describe_picture(panel, caption)


def describe_picture(panel: Tensor, caption: str) -> dict[str, Any]:
    """A picture at its own size, or enlarged by a whole factor if it is small."""
    panel = limit_side(panel, MAX_PICTURE_SIDE)
    height, width = panel.shape[-2:]
    factor = max(1, MIN_SHOWN_SIDE // max(height, width))
    return {
        "kind": "picture",
        "source": encode_picture(panel),
        "width": width * factor,
        "height": height * factor,
        "wide": width > HALF_WIDTH,
        "alt": shorten_alt_text(caption),
        "caption": caption,
    }


def join_untitled_rows(rows: Sequence[FigureRow]) -> list[FigureRow]:
    """The rows, each without a title joined to the one before: a page breaks lines by itself."""
    joined: list[FigureRow] = []
    for row in rows:
        if row.title or not joined:
            joined.append(row)
            continue
        previous = joined.pop()
        pictures = [*previous.pictures, *row.pictures]
        captions = [*previous.captions, *row.captions]
        joined.append(FigureRow(previous.title, pictures, captions, previous.lead_count))
    return joined


def describe_row(row: FigureRow, figure: PictureRows) -> dict[str, Any]:
    """A row of tiles, each with its caption below."""
    tiles: list[dict[str, Any]] = []
    for number, (picture, caption) in enumerate(zip(row.pictures, row.captions, strict=True)):
        height, width = picture.shape[-2:]
        scale = figure.tile_side / max(height, width)
        stored = limit_side(picture, round(figure.tile_side * TILE_DENSITY))
        name = " ".join(caption.split("\n"))
        tiles.append(
            {
                "source": encode_picture(stored),
                "width": max(1, round(width * scale)),
                "height": max(1, round(height * scale)),
                "lines": [line for line in caption.split("\n") if line],
                "alt": name or f"{row.title} {number + 1}".strip(),
                "leads": number < row.lead_count,
                "pixelated": figure.is_pixelated,
            }
        )
    return {"title": row.title, "tiles": tiles}


def describe_scale(scale: ColorScale) -> tuple[str, str, str, str]:
    """The colour bar: its kind, and its numbers on the left, in the middle and on the right."""
    limit = f"{scale.limit:.2g}"
    if scale.kind == "diverging":
        return scale.kind, f"−{limit}", "0", limit
    return scale.kind, "0", "", limit


def describe_pair(pair: ImagePair, caption: str) -> dict[str, Any]:
    """Two pictures under one slider."""
    height, width = pair.first.shape[-2:]
    scale = PAIR_SIDE / max(height, width)
    return {
        "kind": "pair",
        "first": encode_picture(limit_side(pair.first, MAX_PICTURE_SIDE)),
        "second": encode_picture(limit_side(pair.second, MAX_PICTURE_SIDE)),
        "first_name": pair.first_name,
        "second_name": pair.second_name,
        "width": round(width * scale),
        "height": round(height * scale),
        "caption": caption,
    }


def describe_line_plot(plot: LinePlot) -> dict[str, Any]:
    """A line plot with its title above and its legend below."""
    legend = [
        (name, CURVE_COLORS[number % len(CURVE_COLORS)]) for number, name in enumerate(plot.lines)
    ]
    return {"title": plot.title, "chart": Markup(draw_line_plot_svg(plot)), "legend": legend}


def list_bars(chart: BarChart) -> list[tuple[str, float, str]]:
    """Name, share and the share as text."""
    return [
        (name, share, format_share(share))
        for name, share in zip(chart.names, chart.shares, strict=True)
    ]


def format_share(share: float) -> str:
    """A share in percent; what is neither none nor all does not look so."""
    if 0 < share < 0.0005:
        return "< 0.1 %"
    if 0.9995 < share < 1:
        return "> 99.9 %"
    return f"{100 * share:.1f} %"


# ── pictures ──


def limit_side(picture: Tensor, max_side: int) -> Tensor:
    """The picture with its longer side at most `max_side`."""
    height, width = picture.shape[-2:]
    scale = max_side / max(height, width)
    if scale >= 1:
        return picture
    return resize_image(
        picture.detach().cpu(), max(1, round(height * scale)), max(1, round(width * scale))
    ).clamp(0, 1)


def encode_picture(picture: Tensor) -> str:
    """The picture as the source of an <img>; without loss if it is drawn."""
    return make_webp_uri(picture, lossless=is_drawn(picture))


def is_drawn(picture: Tensor) -> bool:
    """Whether a picture 1×3×H×W has areas of few colours, as drawings have and photographs not."""
    levels = quantize_image(picture[0].detach().cpu()).astype("int64")
    codes = (levels[..., 0] << 16) + (levels[..., 1] << 8) + levels[..., 2]
    if len(np.unique(codes)) > MAX_LOSSLESS_COLORS:
        return False
    equal_share = float(np.mean(codes[:, 1:] == codes[:, :-1])) if codes.shape[1] > 1 else 1.0
    return equal_share >= MIN_EQUAL_NEIGHBOR_SHARE


def shorten_alt_text(caption: str) -> str:
    """The caption's first sentence."""
    for end in (". ", "; "):
        first, separator, _ = caption.partition(end)
        if separator and len(first) >= 8:
            caption = f"{first}."
            break
    return caption if len(caption) <= MAX_ALT_LENGTH else f"{caption[: MAX_ALT_LENGTH - 1]}…"
