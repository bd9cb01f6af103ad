"""Charts as SVG, for pages: their colors are those of the page's stylesheet."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from sightline.errors import escape_text_for_display
from sightline.images.plotting.charts import LinePlot
from sightline.images.plotting.figures import DotPlot, Histogram

HISTOGRAM_SIZE = (520, 200)
LINE_PLOT_SIZE = (300, 200)

# Pixels around the axes: left, right, top, bottom.
HISTOGRAM_MARGINS = (44, 12, 8, 40)
LINE_PLOT_MARGINS = (32, 8, 8, 40)

DOT_PLOT_WIDTH = 520
DOT_PLOT_NAME_WIDTH = 170
DOT_PLOT_ROW_HEIGHT = 26

MAX_BINS = 60
MIN_BINS = 8
TICK_COUNT = 4

# In the order of a chart's curves; the stylesheet has these colors.
CURVE_COLORS = (
    "var(--category-1)",
    "var(--category-6)",
    "var(--category-other)",
    "var(--category-3)",
)


@dataclass(frozen=True)
class ChartAxis:
    """An axis of numbers from `low` to `high`, drawn from pixel `start` to pixel `end`."""

    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        """The pixel of a value."""
        share = (value - self.low) / ((self.high - self.low) or 1.0)
        return self.start + share * (self.end - self.start)


def choose_ticks(low: float, high: float, count: int = TICK_COUNT) -> list[float]:
    """About `count` round numbers from `low` to `high`: multiples of 1, 2 or 5 times a power of 10.

    A single one where both are the same.
    """
    span = high - low
    if span <= 0 or not math.isfinite(span):
        return [low]
    rough_step = span / count
    magnitude = 10.0 ** math.floor(math.log10(rough_step))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= rough_step)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def format_tick(value: float) -> str:
    """A tick's number, short and without a negative zero."""
    return f"{value:z.4g}"


def draw_histogram_svg(histogram: Histogram) -> str:
    """A histogram of 520×200 with ticks at its marks, a line at its median where asked for."""
    values = histogram.values
    low = min(values)
    if histogram.starts_at_zero:
        low = min(low, 0.0)
    high = max([*values, *histogram.marks])
    counts = count_in_bins(values, low, high)
    width, height = HISTOGRAM_SIZE
    left, right, top, bottom = HISTOGRAM_MARGINS
    x_axis = ChartAxis(low, high, left, width - right)
    y_axis = ChartAxis(0, max(counts), height - bottom, top)

    bar_width = (x_axis.end - x_axis.start) / len(counts)
    bars = [
        f'<rect x="{x_axis.start + number * bar_width:.1f}" y="{y_axis.place(count):.1f}" '
        f'width="{max(bar_width - 1, 1):.1f}" '
        f'height="{y_axis.start - y_axis.place(count):.1f}"/>'
        for number, count in enumerate(counts)
    ]
    elements = [f'<g class="columns">{"".join(bars)}</g>']
    for mark in histogram.marks:
        x = x_axis.place(mark)
        elements.append(f'<path class="mark" d="M{x:.1f} {y_axis.start - 10}V{y_axis.start + 4}"/>')
    if histogram.shows_median:
        x = x_axis.place(sorted(values)[(len(values) - 1) // 2])
        elements.append(f'<path class="median" d="M{x:.1f} {top}V{y_axis.start}"/>')
        elements.append(f'<text x="{x + 4:.1f}" y="{top + 10}">median</text>')
    elements += draw_axes(x_axis, y_axis, histogram.x_label, y_ticks=[0, max(counts)])
    label = f"Histogram of {len(values):,} images: {histogram.x_label}"
    return wrap_svg(elements, HISTOGRAM_SIZE, label, "wide")


def count_in_bins(values: Sequence[float], low: float, high: float) -> list[int]:
    """How many values lie in each of equally wide bins from `low` to `high`."""
    bin_count = min(MAX_BINS, max(MIN_BINS, round(math.sqrt(len(values)))))
    counts = [0] * bin_count
    span = (high - low) or 1.0
    for value in values:
        number = int((value - low) / span * bin_count)
        counts[min(number, bin_count - 1)] += 1
    return counts


def draw_line_plot_svg(plot: LinePlot) -> str:
    """Curves of 300×200, from 0 (or the lowest value) to 1 (or the highest). It has no legend."""
    positions = [position for xs, _ in plot.lines.values() for position in xs]
    values = [value for _, ys in plot.lines.values() for value in ys]
    width, height = LINE_PLOT_SIZE
    left, right, top, bottom = LINE_PLOT_MARGINS
    x_axis = ChartAxis(min(positions), max(positions), left, width - right)
    y_axis = ChartAxis(min([0.0, *values]), max([1.0, *values]), height - bottom, top)

    elements: list[str] = []
    for number, (xs, ys) in enumerate(plot.lines.values()):
        points = " ".join(
            f"{x_axis.place(x):.1f},{y_axis.place(y):.1f}" for x, y in zip(xs, ys, strict=True)
        )
        color = CURVE_COLORS[number % len(CURVE_COLORS)]
        elements.append(f'<polyline class="curve" style="stroke: {color}" points="{points}"/>')
    y_ticks = choose_ticks(y_axis.low, y_axis.high, 2)
    elements = [*draw_axes(x_axis, y_axis, plot.x_label, y_ticks=y_ticks), *elements]
    return wrap_svg(elements, LINE_PLOT_SIZE, f"{plot.title}, over {plot.x_label}")


def draw_dot_plot_svg(plot: DotPlot, measure: str) -> str:
    """One measure of a dot plot: a row for each name, a line at each reference."""
    shares = plot.measures[measure]
    references = plot.references.get(measure, {})
    x_axis = ChartAxis(0, 1, DOT_PLOT_NAME_WIDTH, DOT_PLOT_WIDTH - 48)
    bottom = DOT_PLOT_ROW_HEIGHT * len(plot.names) + 8
    size = (DOT_PLOT_WIDTH, bottom + 36)
    elements: list[str] = []
    for name, share in references.items():
        x = x_axis.place(share)
        elements.append(f'<path class="median" d="M{x:.1f} 0V{bottom}"/>')
        elements.append(
            f'<text x="{x:.1f}" y="{bottom + 14}" text-anchor="middle">{escape_text(name)}</text>'
        )
    for row, (name, share) in enumerate(zip(plot.names, shares, strict=True)):
        y = DOT_PLOT_ROW_HEIGHT * (row + 0.5)
        x = x_axis.place(share)
        elements.append(f'<path class="grid" d="M{x_axis.start} {y}H{x_axis.end}"/>')
        elements.append(f'<text class="name" x="0" y="{y + 4}">{escape_text(name)}</text>')
        elements.append(f'<circle class="columns" cx="{x:.1f}" cy="{y}" r="5"/>')
        elements.append(f'<text x="{x_axis.end + 12}" y="{y + 4}">{share:.0%}</text>')
    return wrap_svg(elements, size, measure, "wide")


# ── what charts share ──


def draw_axes(
    x_axis: ChartAxis, y_axis: ChartAxis, x_label: str, *, y_ticks: Sequence[float]
) -> list[str]:
    """Both axes with their ticks, and the label of the horizontal one."""
    bottom = y_axis.start
    elements = [f'<path class="axis" d="M{x_axis.start} {bottom}H{x_axis.end}"/>']
    for tick in choose_ticks(x_axis.low, x_axis.high):
        x = x_axis.place(tick)
        elements.append(
            f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{format_tick(tick)}</text>'
        )
    for tick in y_ticks:
        y = y_axis.place(tick)
        elements.append(f'<path class="grid" d="M{x_axis.start} {y:.1f}H{x_axis.end}"/>')
        elements.append(
            f'<text x="{x_axis.start - 6}" y="{y + 4:.1f}" text-anchor="end">'
            f"{format_tick(tick)}</text>"
        )
    middle = (x_axis.start + x_axis.end) / 2
    elements.append(
        f'<text x="{middle:.1f}" y="{bottom + 34}" text-anchor="middle">{escape_text(x_label)}'
        "</text>"
    )
    return elements


def escape_text(text: str) -> str:
    """A name as the text of an element, whatever is in it."""
    return escape(escape_text_for_display(text))


def wrap_svg(parts: Sequence[str], size: tuple[int, int], label: str, extra_class: str = "") -> str:
    """The chart's elements as one SVG that a screen reader reads as its label."""
    width, height = size
    classes = f"chart {extra_class}".strip()
    return (
        f'<svg class="{classes}" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape_text(label)}">{"".join(parts)}</svg>'
    )
