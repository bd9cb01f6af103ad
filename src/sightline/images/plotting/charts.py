"""Charts drawn with matplotlib: bars, curves, histograms, a table, decision regions.

Each is one picture 1×3×H×W in [0, 1].
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sightline.errors import escape_text_for_display

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEXT_COLOR = "#222222"
EMPTY_COLOR = "#eeeeee"
BAR_COLOR = "#f2b134"
HISTOGRAM_COLOR = "#3b6ea5"
MARK_COLOR = "#a65d00"
LINE_COLORS = ("#a65d00", "#3b6ea5", "#999999", "#222222")

MAX_BAR_NAME_LENGTH = 33
MAX_LEGEND_CLASSES = 10


@dataclass(frozen=True)
class LinePlot:
    """Curves on one pair of axes: for each curve by name, its positions and its values."""

    title: str
    x_label: str
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]


def rasterize_figure(figure: "Figure") -> Tensor:
    """A matplotlib figure as a picture, 1×3×H×W.

    Its texts are shown as they are, for there may be names from outside in them: no dollar sign
    begins a formula, and what is not to be printed is escaped.
    """
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
        lines = text.get_text().split("\n")
        text.set_text("\n".join(map(escape_text_for_display, lines)))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    return torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0).float() / 255


def draw_bar_chart(names: list[str], shares: list[float]) -> Tensor:
    """Horizontal bars of shares in [0, 1], with their names inside: 1×3×320×480."""
    from matplotlib.figure import Figure

    count = len(names)
    figure = Figure(figsize=(4.8, 3.2), dpi=100)
    axes = figure.add_axes((0.02, 0.02, 0.96, 0.96))
    axes.barh(range(count), [1.0] * count, color=EMPTY_COLOR, height=0.82)
    axes.barh(range(count), shares, color=BAR_COLOR, height=0.82)
    style: dict[str, Any] = {
        "va": "center",
        "fontsize": min(15, 75 / max(count, 1)),
        "color": TEXT_COLOR,
    }
    for row, (name, share) in enumerate(zip(names, shares, strict=True)):
        is_long = len(name) > MAX_BAR_NAME_LENGTH
        label = f"{name[: MAX_BAR_NAME_LENGTH - 1]}…" if is_long else name
        axes.text(0.02, row, label, **style)
        axes.text(0.98, row, f"{share:.1%}", ha="right", **style)
    axes.set(xlim=(0, 1), ylim=(count - 0.5, -0.5))
    axes.set_axis_off()
    return rasterize_figure(figure)


def draw_line_plots(plots: Sequence[LinePlot]) -> Tensor:
    """Line plots side by side, from 0 (or the lowest value) to 1: 1×3×360×480 for each plot."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8 * len(plots), 3.6), dpi=100, layout="constrained")
    all_axes = figure.subplots(1, len(plots), squeeze=False)[0]
    for axes, plot in zip(all_axes, plots, strict=True):
        lowest = 0.0
        for (name, (positions, values)), color in zip(
            plot.lines.items(), LINE_COLORS, strict=False
        ):
            axes.plot(positions, values, color=color, label=name, marker=".", markersize=4)
            lowest = min(lowest, *values)
        axes.set(title=plot.title, xlabel=plot.x_label, ylim=(lowest - 0.03, 1.03))
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    return rasterize_figure(figure)


def draw_histogram(
    values: Sequence[float],
    marks: Sequence[float],
    x_label: str,
    *,
    show_median: bool = False,
    from_zero: bool = False,
) -> Tensor:
    """How many images have which value, with `marks` as ticks on the axis: 1×3×300×480.

    A line at the median, and an axis that begins at zero, are optional.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, 3.0), dpi=100, layout="constrained")
    axes = figure.subplots()
    bin_count = min(60, max(8, round(math.sqrt(len(values)))))
    axes.hist(values, bins=bin_count, color=HISTOGRAM_COLOR)
    axes.plot(
        marks,
        [0] * len(marks),
        "|",
        color=MARK_COLOR,
        markersize=14,
        markeredgewidth=2,
        clip_on=False,
    )
    if show_median:
        median = float(torch.tensor(values).median())
        axes.axvline(median, color=TEXT_COLOR, linewidth=1, label="median")
        axes.legend(frameon=False, fontsize=9)
    if from_zero:
        axes.set_xlim(0, None)
    axes.set(xlabel=x_label, ylabel="images")
    axes.spines[["top", "right"]].set_visible(False)
    return rasterize_figure(figure)


def draw_length_histogram(lengths: Sequence[float], x_label: str) -> Tensor:
    """How many images need a change of which length, with the median: 1×3×300×480."""
    return draw_histogram(lengths, [], x_label, show_median=True, from_zero=True)


def draw_share_matrix(
    shares: Tensor,
    row_names: Sequence[str],
    column_names: Sequence[str],
    axis_labels: tuple[str, str],
) -> Tensor:
    """A table of shares in [0, 1], rows×columns, colored and with the numbers inside: 1×3×H×W.

    `axis_labels` are those of the rows and of the columns.
    """
    from matplotlib.figure import Figure

    size = (2.6 + 0.9 * len(column_names), 1.6 + 0.7 * len(row_names))
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares.numpy(), cmap="YlOrBr", vmin=0, vmax=1, aspect="auto")
    for row, row_shares in enumerate(shares.tolist()):
        for column, share in enumerate(row_shares):
            color = "white" if share > 0.6 else TEXT_COLOR
            axes.text(column, row, f"{share:.0%}", ha="center", va="center", color=color)
    axes.set_xticks(range(len(column_names)), column_names, rotation=20, ha="right")
    axes.set_yticks(range(len(row_names)), row_names)
    row_label, column_label = axis_labels
    axes.set(ylabel=row_label, xlabel=column_label)
    return rasterize_figure(figure)


def draw_decision_regions(
    classes: Tensor,
    names: Sequence[str],
    span: float,
    distance: float,
    axis_labels: tuple[str, str],
) -> Tensor:
    """The predicted classes over a plane of images, one color a class: 1×3×420×660.

    `classes` are class indices, rows×columns with the lowest row first, over ±`span` both ways;
    where one is -1, the plane is left white.
    The image in the middle and its adversarial image `distance` to the right are marked.
    `axis_labels` are those of x and y.
    """
    import matplotlib
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    # Colors are numbered by frequency, so that the commonest classes get different ones.
    is_known = classes >= 0
    indices, counts = classes[is_known].unique(return_counts=True)
    indices = indices[counts.argsort(descending=True, stable=True)]
    palette = matplotlib.colormaps["tab10"].colors  # type: ignore[attr-defined]
    colors = [palette[number % len(palette)] for number in range(len(indices))]
    color_of_class = torch.zeros(int(indices.max()) + 1, dtype=torch.long)
    color_of_class[indices] = torch.arange(len(indices))
    cells = color_of_class[classes].float()
    cells[~is_known] = torch.nan  # not drawn

    figure = Figure(figsize=(6.6, 4.2), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.imshow(
        cells.numpy(),
        extent=(-span, span, -span, span),
        origin="lower",
        cmap=ListedColormap(colors),
        vmin=-0.5,
        vmax=len(indices) - 0.5,
        alpha=0.75,
        interpolation="nearest",
    )
    for name, x, alignment in (("image", 0.0, "right"), ("adversarial", distance, "left")):
        axes.plot(x, 0, marker="o", markersize=6, color=TEXT_COLOR, markeredgecolor="white")
        axes.annotate(
            name,
            (x, 0),
            xytext=(0, 7),
            textcoords="offset points",
            ha=alignment,
            fontsize=9,
            color=TEXT_COLOR,
        )
    x_label, y_label = axis_labels
    axes.set(xlabel=x_label, ylabel=y_label)
    handles = [
        Patch(color=color, alpha=0.75, label=names[int(index)])
        for color, index in zip(colors, indices[:MAX_LEGEND_CLASSES], strict=False)
    ]
    axes.legend(
        handles=handles, fontsize=9, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0)
    )
    return rasterize_figure(figure)
