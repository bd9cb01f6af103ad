"""Charts as SVG: axes, what lies where, and names that stay text."""

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from sightline.images.plotting.charts import LinePlot
from sightline.images.plotting.figures import DotPlot, Histogram
from sightline.images.plotting.svg import (
    ChartAxis,
    choose_ticks,
    count_in_bins,
    draw_dot_plot_svg,
    draw_histogram_svg,
    draw_line_plot_svg,
    format_tick,
)

EVIL = '"><script>alert(1)</script>&'


def read_svg(text: str) -> ElementTree.Element:
    """The chart as elements; a browser reads it the same way."""
    return ElementTree.fromstring(text)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0, 0.5, 1]),
        (0.0, 0.61, [0, 0.2, 0.4, 0.6]),
        (-3.0, 7.0, [0, 5]),
        (0.0, 4000.0, [0, 1000, 2000, 3000, 4000]),
        (2.0, 2.0, [2]),
    ],
)
def test_ticks_are_round_and_inside(low: float, high: float, expected: list[float]) -> None:
    assert choose_ticks(low, high) == pytest.approx(expected)


def test_a_tick_is_never_minus_zero() -> None:
    assert format_tick(-0.0) == "0"
    assert format_tick(0.30000000000000004) == "0.3"


def test_an_axis_places_its_ends() -> None:
    axis = ChartAxis(-2, 6, 100, 20)
    assert axis.place(-2) == 100
    assert axis.place(6) == 20
    assert axis.place(0) == 80
    assert ChartAxis(3, 3, 10, 20).place(3) == 10


def test_every_value_is_counted_once() -> None:
    values = [0.1 * number**2 for number in range(50)]
    counts = count_in_bins(values, min(values), max(values))
    assert sum(counts) == 50
    assert len(counts) == 8
    width = max(values) / 8
    below = [sum(value < width * edge for value in values) for edge in range(1, 8)]
    assert counts == [after - before for before, after in pairwise([0, *below, 50])]
    assert sum(count_in_bins([4.0, 4.0], 4.0, 4.0)) == 2


def test_bars_of_a_histogram_are_as_high_as_their_counts() -> None:
    values = [0.0] * 3 + [1.0] * 12 + [2.0] * 6
    chart = read_svg(draw_histogram_svg(Histogram(values, [2.0], f"x {EVIL}")))
    assert (chart.get("width"), chart.get("height")) == ("520", "200")
    bars = [float(bar.get("height", "")) for bar in chart.iter("rect")]
    assert max(bars) == pytest.approx(152)
    assert sorted(bars)[-3:] == pytest.approx([38, 76, 152])
    marks = [path for path in chart.iter("path") if path.get("class") == "mark"]
    assert [float(re.findall(r"M([\d.]+)", path.get("d", ""))[0]) for path in marks] == [508]
    texts = [text.text for text in chart.iter("text")]
    assert f"x {EVIL}" in texts
    assert "median" not in texts


def test_a_histogram_may_begin_at_zero_and_show_its_median() -> None:
    histogram = Histogram([4.0, 5.0, 9.0], [], "x", shows_median=True, starts_at_zero=True)
    chart = read_svg(draw_histogram_svg(histogram))
    (median,) = (path for path in chart.iter("path") if path.get("class") == "median")
    x = float(re.findall(r"M([\d.]+)", median.get("d", ""))[0])
    assert x == pytest.approx(44 + 5 / 9 * (508 - 44), abs=0.1)


def test_curves_go_through_their_points() -> None:
    plot = LinePlot(
        "title", "steps", {"one": ([0, 2, 4], [1, 0.5, -0.25]), "two": ([0, 4], [0, 1])}
    )
    chart = read_svg(draw_line_plot_svg(plot))
    one, two = (
        [tuple(map(float, point.split(","))) for point in line.get("points", "").split()]
        for line in chart.iter("polyline")
    )
    left, middle, right = one
    assert [left[0], right[0]] == [two[0][0], two[1][0]] == [32, 292]
    assert middle[0] == 162
    assert left[1] == two[1][1] == 8
    assert right[1] == 160
    assert math.isclose(middle[1], 8 + (1 - 0.5) / 1.25 * 152, abs_tol=0.1)
    assert "title" in chart.get("aria-label", "")


def test_a_dot_lies_at_its_share_and_a_line_at_chance() -> None:
    plot = DotPlot(["a", EVIL], {"hits": [0.25, 1.0], "other": [0, 0]}, {"hits": {"chance": 0.25}})
    chart = read_svg(draw_dot_plot_svg(plot, "hits"))
    first, second = (float(circle.get("cx", "")) for circle in chart.iter("circle"))
    (line,) = (path for path in chart.iter("path") if path.get("class") == "median")
    assert f"M{first}" in line.get("d", "")
    assert second == 472
    texts = [text.text for text in chart.iter("text")]
    assert {"chance", "25%", "100%", EVIL} <= set(texts)
