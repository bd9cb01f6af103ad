"""A section's title, and the attribution that stands in the matrix."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import sightline as sl
from sightline.app.web.report.section import ReportSection
from sightline.images.plotting.figures import Heatmap
from sightline.methods import load_methods


@pytest.fixture
def section() -> ReportSection:
    return ReportSection(load_methods()["patches"], "patches-1", "sightline patches", {"unit": 7})


def test_a_title_names_what_the_run_chose(section: ReportSection) -> None:
    assert section.title == section.method.title, "the layer is not chosen yet"
    result = sl.Result({}, {}, chosen={"layer": "conv3"})
    assert replace(section, result=result).title == "Unit 7 of conv3"
    sheet = replace(section, run=1, parameters={"max_units": 24}, result=result)
    assert sheet.title == "24 units of conv3 at a glance"


def test_methods_with_several_runs_have_a_title_for_each() -> None:
    for method in load_methods().values():
        if len(method.tour_runs) > 1:
            assert len(set(method.tour_titles)) == len(method.tour_runs), method.name


def test_an_attribution_is_found_among_the_figures(section: ReportSection, photo: Tensor) -> None:
    assert section.heatmap is None
    heatmap = Heatmap(torch.zeros(4, 6), 1.0, True, "what it is")
    result = sl.Result({"map": photo}, {}, figures={"map": heatmap})
    assert replace(section, result=result).heatmap is heatmap
