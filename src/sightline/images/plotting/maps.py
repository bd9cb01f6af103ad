"""Numbers to pictures: colour maps, sheets, outlines. Every function gives N×3×H×W in [0, 1] and says its scale.

Nothing here stretches contrast on its own: a caller that scales says so in its caption, so noise looks like noise.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

# A map's picture ends at this quantile, so the rest can be seen; structural similarity compares the pictures.
BRIGHTEST_QUANTILE = 0.99

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MID_GRAY = 0.5


@cache
def load_colormap(name: str) -> Tensor:
    """A colour map as a 256×3 table."""
    import matplotlib

    return torch.tensor(matplotlib.colormaps[name](range(256))[:, :3], dtype=torch.float32)


def apply_colormap(values: Tensor, colormap: str) -> Tensor:
    """Colours of values in [0, 1]: N×H×W to N×3×H×W."""
    steps = values.detach().cpu().clamp(0, 1).mul_(255).round_().int()
    return F.embedding(steps, load_colormap(colormap)).permute(0, 3, 1, 2)


def render_heatmap(
    values: Tensor, limit: Tensor | float | None = None, colormap: str = "inferno"
) -> Tensor:
    """Nonnegative maps N×H×W, black at 0 and brightest at `limit` (each map's own maximum unless given)."""
    values = values.nan_to_num(0)
    return apply_colormap(values / compute_map_scale(values, limit), colormap)


def render_signed_map(
    values: Tensor, limit: Tensor | float | None = None, colormap: str = "RdBu_r"
) -> Tensor:
    """Signed maps N×H×W: white at 0, red positive, blue negative, the same scale both ways (±`limit`)."""
    values = values.nan_to_num(0)
    return apply_colormap(0.5 + 0.5 * values / compute_map_scale(values.abs(), limit), colormap)


def compute_map_scale(values: Tensor, limit: Tensor | float | None = None) -> Tensor:
    """What a map is divided by: `limit` or its maximum, as N×1×1, never zero (a constant map stays empty)."""
    top = (
        values.flatten(1).amax(1)
        if limit is None
        else torch.as_tensor(limit, device=values.device).expand(len(values))
    )
    return torch.where(top > 0, top, torch.ones_like(top)).view(-1, 1, 1)


def compute_quantile(values: Tensor, fraction: float) -> Tensor:
    """The least value along the last axis that a `share` of the values do not exceed: unlike `torch.quantile` without sorting, and of any size."""
    import numpy as np

    numbers = values.detach().cpu().to(torch.promote_types(values.dtype, torch.float32)).numpy()
    at = max(1, round(fraction * values.shape[-1])) - 1
    # Many times faster than torch.kthvalue.
    return torch.as_tensor(np.partition(numbers, at, axis=-1)[..., at]).to(values)


def render_around_gray(values: Tensor, limit: float | None = None) -> Tensor:
    """Signed colours N×3×H×W with gray at 0 and one scale for all of them (`limit`, else the largest magnitude)."""
    values = values.detach().cpu().nan_to_num(0)
    top = float(values.abs().max()) if limit is None else limit
    return (MID_GRAY + MID_GRAY * values / (top or 1)).clamp(0, 1)


def overlay_heatmap(
    image: Tensor, values: Tensor, limit: Tensor | float | None = None, colormap: str = "inferno"
) -> Tensor:
    """A map laid over its image: the stronger the value, the more of its colour; where it is 0 the image is only dimmed."""
    values = values.nan_to_num(0)
    strength = (
        (upsample_maps(values, image.shape[-2:]) / compute_map_scale(values, limit))
        .detach()
        .cpu()
        .clamp(0, 1)
    )
    gray = image.detach().cpu().mean(1, keepdim=True) * 0.65 + 0.1
    weight = 0.85 * strength.unsqueeze(1).sqrt()
    return ((1 - weight) * gray + weight * apply_colormap(0.15 + 0.85 * strength, colormap)).clamp(
        0, 1
    )


def upsample_maps(values: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Maps N×h×w enlarged (bilinear) to H×W pixels."""
    if values.shape[-2:] == tuple(size):
        return values
    return F.interpolate(
        values.unsqueeze(1), size=tuple(size), mode="bilinear", align_corners=False
    ).squeeze(1)


def enlarge_pixels(image: Tensor, min_side: int) -> Tensor:
    """Repeats pixels by a whole factor until the shorter side has at least `least`."""
    factor = max(1, math.ceil(min_side / min(image.shape[-2:])))
    return image.repeat_interleave(factor, 2).repeat_interleave(factor, 3)


def make_contact_sheet(
    pictures: Tensor, columns: int | None = None, gap: int = 2, fill: float = 1.0
) -> Tensor:
    """N pictures of one size as one picture with `columns` (by default about square), `gap` pixels apart: 1×3×H×W."""
    count, _, height, width = pictures.shape
    columns = min(count, columns or math.ceil(math.sqrt(count * height / width)))
    rows = math.ceil(count / columns)
    canvas = torch.full((1, 3, rows * (height + gap) - gap, columns * (width + gap) - gap), fill)
    for i in range(count):
        y, x = (i // columns) * (height + gap), (i % columns) * (width + gap)
        canvas[0, :, y : y + height, x : x + width] = pictures[i]
    return canvas


def arrange_in_row(*pictures: Tensor, gap: int = 6, fill: float = 1.0) -> Tensor:
    """Pictures of equal batch and any size in a row, all as high as the highest; a batch becomes rows: 1×3×H×W."""
    height = max(picture.shape[2] for picture in pictures)
    scaled = [
        resize_picture(
            picture.detach().cpu(), height, round(picture.shape[3] * height / picture.shape[2])
        )
        for picture in pictures
    ]
    count, widths = len(scaled[0]), [picture.shape[3] for picture in scaled]
    canvas = torch.empty(1, 3, count * (height + gap) - gap, sum(widths) + gap * (len(widths) - 1))
    for i in range(count):
        top, left = i * (height + gap), 0
        canvas[:, :, max(0, top - gap) : top] = fill
        for picture, width in zip(scaled, widths, strict=True):
            canvas[0, :, top : top + height, max(0, left - gap) : left] = fill
            canvas[0, :, top : top + height, left : left + width] = picture[i]
            left += width + gap
    return canvas


def arrange_with_titles(titles: Sequence[str], pictures: Sequence[Tensor], gap: int = 6) -> Tensor:
    """Pictures of equal batch in a row as `beside` sets them, each under its title: 1×3×H×W."""
    from matplotlib.figure import Figure

    row = arrange_in_row(*pictures, gap=gap)
    height = max(picture.shape[2] for picture in pictures)
    widths = [round(picture.shape[3] * height / picture.shape[2]) for picture in pictures]
    figure = Figure(figsize=(row.shape[3] / 100, 0.22), dpi=100)
    for number, (title, width) in enumerate(zip(titles, widths, strict=True)):
        centre = sum(widths[:number]) + gap * number + width / 2
        figure.text(
            centre / row.shape[3],
            0.5,
            title,
            ha="center",
            va="center",
            fontsize=min(10, 1.3 * width / len(title)),
            color="#222222",
        )
    return torch.cat([rasterize_figure(figure)[..., : row.shape[3]], row], 2)


def resize_picture(
    picture: Tensor, height: int, width: int, mode: Literal["bilinear", "nearest"] = "bilinear"
) -> Tensor:
    """The picture at another size."""
    if picture.shape[-2:] == (height, width):
        return picture
    if mode == "nearest":
        return F.interpolate(picture, size=(height, width), mode="nearest")
    return F.interpolate(
        picture, size=(height, width), mode="bilinear", antialias=True, align_corners=False
    ).clamp(0, 1)


def draw_box_outline(
    image: Tensor,
    box: tuple[int, int, int, int],
    color: tuple[float, float, float] = (1.0, 0.85, 0.0),
    width: int = 2,
) -> Tensor:
    """The image with a rectangle (top, left, bottom, right; exclusive ends) drawn inside its bounds."""
    picture = image.detach().cpu().clone()
    top, left, bottom, right = (
        max(0, box[0]),
        max(0, box[1]),
        min(box[2], picture.shape[2]),
        min(box[3], picture.shape[3]),
    )
    paint = torch.tensor(color).view(1, 3, 1, 1)
    inner = picture[:, :, top + width : bottom - width, left + width : right - width].clone()
    picture[:, :, top:bottom, left:right] = paint
    picture[:, :, top + width : bottom - width, left + width : right - width] = inner
    return picture


def draw_bar_chart(names: list[str], shares: list[float]) -> Tensor:
    """A bar chart of shares in [0, 1] with their names inside: 1×3×320×480."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, 3.2), dpi=100)
    axis = figure.add_axes((0.02, 0.02, 0.96, 0.96))
    axis.barh(range(len(names)), [1.0] * len(names), color="#eeeeee", height=0.82)
    axis.barh(range(len(names)), shares, color="#f2b134", height=0.82)
    size = min(15, 75 / max(len(names), 1))
    for row, (name, share) in enumerate(zip(names, shares, strict=True)):
        axis.text(
            0.02,
            row,
            name if len(name) < 34 else f"{name[:32]}…",
            va="center",
            fontsize=size,
            color="#222222",
        )
        axis.text(
            0.98, row, f"{share:.1%}", va="center", ha="right", fontsize=size, color="#222222"
        )
    axis.set(xlim=(0, 1), ylim=(len(names) - 0.5, -0.5))
    axis.set_axis_off()
    return rasterize_figure(figure)


@dataclass(frozen=True)
class LinePlot:
    """Line curves on one pair of axes: what is plotted, over what, and each line's places and values by name."""

    title: str
    x_label: str
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]


def draw_line_plots(plots: Sequence[LinePlot]) -> Tensor:
    """Line plots beside each other, from 0 (or the least value) to 1: 1×3×360×W with W 480 for each plot."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8 * len(plots), 3.6), dpi=100, layout="constrained")
    for axis, plot in zip(figure.subplots(1, len(plots), squeeze=False)[0], plots, strict=True):
        for (name, (places, values)), color in zip(
            plot.lines.items(), ("#a65d00", "#3b6ea5", "#999999", "#222222"), strict=False
        ):
            axis.plot(places, values, color=color, label=name, marker=".", markersize=4)
        least = min(0.0, *(value for _, values in plot.lines.values() for value in values))
        axis.set(title=plot.title, xlabel=plot.x_label, ylim=(least - 0.03, 1.03))
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=9)
    return rasterize_figure(figure)


def draw_histogram(values: Sequence[float], marks: Sequence[float], x_label: str) -> Tensor:
    """How often values occur, with some of them marked on the axis: 1×3×300×480."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, 3.0), dpi=100, layout="constrained")
    plot = figure.subplots()
    plot.hist(values, bins=min(60, max(8, round(math.sqrt(len(values))))), color="#3b6ea5")
    plot.plot(
        marks,
        [0] * len(marks),
        "|",
        color="#a65d00",
        markersize=14,
        markeredgewidth=2,
        clip_on=False,
    )
    plot.set(xlabel=x_label, ylabel="images")
    plot.spines[["top", "right"]].set_visible(False)
    return rasterize_figure(figure)


def rasterize_figure(figure: "Figure") -> Tensor:
    """A matplotlib figure as a picture, 1×3×H×W."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    return torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0).float() / 255


def find_gradient_limit(gradient: Tensor) -> float:
    """The 99.5th percentile of the magnitudes that are not zero: most of an image lies outside what a neuron sees."""
    magnitude = gradient.abs().flatten()
    magnitude = magnitude[magnitude > 0]
    return float(compute_quantile(magnitude, 0.995)) if len(magnitude) else 1.0


def draw_heatmap_row(image: Tensor, heatmaps: list[Tensor]) -> Tensor:
    """The image 1×3×H×W, then maps H×W, each on its own scale up to its 99th percentile."""
    stack = torch.stack(heatmaps)
    limit = torch.stack([find_heatmap_limit(map_.abs()) for map_ in heatmaps])
    shown = (
        render_signed_map(stack, limit) if bool((stack < 0).any()) else render_heatmap(stack, limit)
    )
    return make_contact_sheet(torch.cat([image.cpu(), shown]), columns=len(heatmaps) + 1, gap=4)


def find_heatmap_limit(magnitude: Tensor) -> Tensor:
    """Where the scale of a nonnegative map ends: its 99th percentile, or its maximum if so much of it is empty."""
    top = compute_quantile(magnitude.flatten(), BRIGHTEST_QUANTILE)
    return top if top > 0 else magnitude.max()
