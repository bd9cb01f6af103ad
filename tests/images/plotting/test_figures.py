"""Figures as data are beside the pictures of the same content."""

from pathlib import Path

import pytest
import torch
from helpers import folder_of, smooth
from torch import Tensor

import sightline as sl
from sightline.images.plotting.captioned_rows import compose_figure_rows
from sightline.images.plotting.charts import draw_histogram, draw_line_plots
from sightline.images.plotting.figures import BarChart, Heatmap, Histogram, LineChart, PictureRows
from sightline.images.plotting.maps import render_heatmap


@pytest.fixture
def wide_photo() -> Tensor:
    """A photograph that is not square."""
    return smooth(side=44)[:, :, :32]


def test_a_result_keeps_its_figures_unchanged(photo: Tensor) -> None:
    figures = {"one": BarChart(["a"], [0.5])}
    result = sl.Result({"one": photo}, {}, figures=figures)
    figures.clear()
    assert list(result.figures) == ["one"]
    with pytest.raises(TypeError):
        result.figures["two"] = BarChart([], [])  # type: ignore[index]


def test_rows_and_charts_are_what_the_panels_show(
    tiny: sl.Model, wide_photo: Tensor, tmp_path: Path
) -> None:
    folder = folder_of(tmp_path / "photos", 8)
    result = sl.patches(tiny, folder=folder, store=tmp_path / "s.scan", unit=2, k=2)
    rows = result.figures["patches"]
    assert isinstance(rows, PictureRows)
    assert torch.equal(result.panels["patches"], compose_figure_rows(rows.rows, rows.tile_side))
    chart = result.figures["distribution"]
    assert isinstance(chart, Histogram)
    drawn = draw_histogram(chart.values, chart.marks, chart.x_label)
    assert torch.equal(result.panels["distribution"], drawn)

    trust = sl.trust(tiny, wide_photo, steps=2, samples=4, stages=2)
    curves = trust.figures["curves"]
    assert isinstance(curves, LineChart)
    assert torch.equal(trust.panels["curves"], draw_line_plots(curves.plots))


def test_a_heatmap_is_the_attribution_on_the_scale_of_the_panel(
    tiny: sl.Model, wide_photo: Tensor
) -> None:
    result = sl.saliency(tiny, wide_photo)
    heatmap = result.figures["saliency"]
    assert isinstance(heatmap, Heatmap)
    assert torch.equal(heatmap.values, result.values["attribution"][0])
    assert not heatmap.is_signed
    drawn = render_heatmap(heatmap.values[None], heatmap.limit)
    height, width = wide_photo.shape[-2:]
    panel = result.panels["saliency"][..., :height, width + 6 : 2 * width + 6]
    assert torch.allclose(panel, drawn, atol=1e-6)
