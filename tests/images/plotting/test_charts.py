"""Charts: bars are as long as their shares, marks and colors lie where the numbers are."""

from collections.abc import Sequence

import matplotlib as mpl
import matplotlib.figure
import pytest
import torch
from torch import Tensor

from sightline.images.plotting import charts
from sightline.images.plotting.charts import (
    LinePlot,
    draw_bar_chart,
    draw_decision_regions,
    draw_histogram,
    draw_length_histogram,
    draw_line_plots,
    draw_share_matrix,
    rasterize_figure,
)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[mpl.figure.Figure]:
    """The figures that are rasterized."""
    rasterized: list[mpl.figure.Figure] = []

    def record(figure: mpl.figure.Figure) -> Tensor:
        rasterized.append(figure)
        return rasterize_figure(figure)

    monkeypatch.setattr(charts, "rasterize_figure", record)
    return rasterized


def find_color(picture: Tensor, color: Sequence[float] | Tensor, tolerance: float = 0.02) -> Tensor:
    """Which pixels have a color: H×W."""
    return (picture[0] - torch.as_tensor(color).view(3, 1, 1)).abs().amax(0) < tolerance


def read_texts(axes: mpl.axes.Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


@pytest.mark.parametrize("count", [1, 5, 40])
def test_bars_are_as_long_as_their_shares(count: int) -> None:
    shares = [0.8 / (i + 1) for i in range(count)]
    long_name = "a very long name of a class with commas, and more"
    names = [f"name {i}" if i % 2 else long_name for i in range(count)]
    chart = draw_bar_chart(names, shares)
    assert chart.shape == (1, 3, 320, 480)
    assert 0 <= chart.min() <= chart.max() <= 1
    if count > 5:
        return
    bar_lengths = find_color(chart, (0.949, 0.694, 0.204)).sum(1)
    height = 0.96 * 320 / count
    for i, share in enumerate(shares):
        # Near the bar's upper edge, above its text.
        row = 0.02 * 320 + (i + 0.5) * height - 0.35 * height
        assert int(bar_lengths[round(row)]) == pytest.approx(share * 0.96 * 480, abs=3)


def test_names_of_bars_are_cut_when_they_are_too_long(figures: list[mpl.figure.Figure]) -> None:
    draw_bar_chart(["a" * 33, "b" * 34], [0.25, 0.5])
    assert read_texts(figures[0].axes[0]) == ["a" * 33, "25.0%", "b" * 32 + "…", "50.0%"]


def test_line_plots_show_all_values(figures: list[mpl.figure.Figure]) -> None:
    plots = [
        LinePlot("first", "x", {"a": ([0, 1, 2], [0.5, 0.75, 1.0]), "b": ([0, 2], [0.25, 0.5])}),
        LinePlot("second", "y", {"a": ([0, 1], [-0.5, 0.5])}),
    ]
    assert draw_line_plots(plots).shape == (1, 3, 360, 960)
    first, second = figures[0].axes
    assert [line.get_label() for line in first.lines] == ["a", "b"]
    assert first.lines[0].get_xdata().tolist() == [0, 1, 2]
    assert first.lines[0].get_ydata().tolist() == [0.5, 0.75, 1.0]
    assert first.get_ylim() == pytest.approx((-0.03, 1.03))
    assert second.get_ylim() == pytest.approx((-0.53, 1.03))
    assert (second.get_title(), second.get_xlabel()) == ("second", "y")


def test_a_histogram_counts_and_marks(figures: list[mpl.figure.Figure]) -> None:
    values = [0.0] * 50 + [1.0] * 30 + [10.0] * 20
    assert draw_histogram(values, [1.0, 10.0], "length").shape == (1, 3, 300, 480)
    axes = figures[0].axes[0]
    heights = [bar.get_height() for bar in axes.patches]
    assert len(heights) == 10
    assert heights[:2] + heights[-1:] == [50, 30, 20]
    assert sum(heights) == 100
    assert axes.lines[0].get_xdata().tolist() == [1.0, 10.0]
    assert axes.get_legend() is None
    assert axes.get_xlabel() == "length"


def test_lengths_have_their_median_and_begin_at_zero(figures: list[mpl.figure.Figure]) -> None:
    draw_length_histogram([5.0, 9.0, 6.0], "length")
    axes = figures[0].axes[0]
    medians = [line.get_xdata()[0] for line in axes.lines if line.get_label() == "median"]
    assert medians == [6.0]
    assert axes.get_xlim()[0] == 0


def test_a_table_of_shares_has_rows_and_columns(figures: list[mpl.figure.Figure]) -> None:
    shares = torch.tensor([[0.0, 0.25, 1.0], [0.5, 0.6, 0.75]])
    picture = draw_share_matrix(shares, ["r0", "r1"], ["c0", "c1", "c2"], ("from", "to"))
    assert picture.shape == (1, 3, round(100 * (1.6 + 1.4)), round(100 * (2.6 + 2.7)))
    axes = figures[0].axes[0]
    texts = {tuple(map(int, text.get_position())): text.get_text() for text in axes.texts}
    assert texts == {
        (column, row): f"{share:.0%}"
        for row, row_shares in enumerate(shares.tolist())
        for column, share in enumerate(row_shares)
    }
    assert [label.get_text() for label in axes.get_xticklabels()] == ["c0", "c1", "c2"]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("from", "to")


def test_regions_are_colored_by_class_with_the_lowest_row_first(
    figures: list[mpl.figure.Figure],
) -> None:
    classes = torch.full((6, 9), 4)
    classes[:2] = 7  # the lower third
    names = [f"class {number}" for number in range(8)]
    picture = draw_decision_regions(classes, names, 3.0, 1.5, ("along", "across"))
    assert picture.shape == (1, 3, 420, 660)
    axes = figures[0].axes[0]
    legend = axes.get_legend()
    assert legend
    assert [text.get_text() for text in legend.get_texts()] == ["class 4", "class 7"]
    palette = torch.tensor(mpl.colormaps["tab10"].colors)  # type: ignore[attr-defined]
    common, rare = (find_color(picture, 0.75 * color + 0.25).nonzero() for color in palette[:2])
    assert common[:, 0].float().mean() < rare[:, 0].float().mean(), "row 0 is below"
    assert len(common) > 1.5 * len(rare)
    assert [line.get_xdata()[0] for line in axes.lines] == [0.0, 1.5]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("along", "across")
