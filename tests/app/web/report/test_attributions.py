"""The matrix of attributions: the photograph once, maps and overlays in the same colours."""

import torch
from torch import Tensor

import sightline as sl
from sightline.app.web.report.attributions import (
    describe_matrix,
    draw_map,
    draw_overlay,
    name_trust,
)
from sightline.app.web.report.section import ReportSection
from sightline.images.plotting.figures import Heatmap
from sightline.images.plotting.maps import render_signed_map
from sightline.methods import load_methods
from sightline.methods.evaluation.summary import TrustSummary


def signed_heatmap() -> Heatmap:
    values = torch.zeros(4, 6)
    values[1, 2] = -0.5
    values[3, 5] = 0.25
    return Heatmap(values, 0.5, True, "drop of the score")


def make_section(name: str, heatmap: Heatmap | None, summary: TrustSummary | None) -> ReportSection:
    figures = {} if heatmap is None else {name: heatmap}
    result = sl.Result({name: torch.zeros(1, 3, 4, 4)}, {}, figures=figures)
    method = load_methods()[name]
    return ReportSection(method, name, "", {}, result=result, trust_summary=summary)


def test_the_photograph_stands_once(photo: Tensor) -> None:
    summary = TrustSummary([], "It is fine.", {}, "strong")
    sections = [
        make_section("saliency", Heatmap(torch.rand(4, 6), 1.0, False, "gradient"), summary),
        make_section("occlusion", signed_heatmap(), None),
        make_section("filters", None, None),
    ]
    matrix = describe_matrix(photo[:, :, :4, :6], sections)
    assert matrix is not None
    first, second = matrix["cells"]
    assert (first["folder"], first["level"], first["word"]) == (
        "saliency",
        "strong",
        "passes the tests",
    )
    assert (second["level"], second["word"]) == ("", "not tested")
    assert first["scale"] == ("sequential", "0", "", "1")
    assert second["scale"] == ("diverging", "−0.5", "0", "0.5")
    assert matrix["photograph"] not in (first["map"], first["overlay"])
    assert describe_matrix(photo, sections[2:]) is None


def test_an_overlay_agrees_with_its_map() -> None:
    heatmap = signed_heatmap()
    photograph = torch.full((1, 3, 8, 12), 0.5)
    drawn = draw_map(heatmap)
    assert torch.equal(drawn, render_signed_map(heatmap.values[None], 0.5))
    overlay = draw_overlay(photograph, heatmap)
    assert overlay.shape == photograph.shape
    red_minus_blue = (overlay[0, 0] - overlay[0, 2]).flatten()
    assert red_minus_blue.min() < -0.1, "evidence against is blue"
    assert red_minus_blue.max() > 0.1
    assert torch.allclose(overlay[..., 0, 0], torch.full((1, 3), 0.5 * 0.65 + 0.1))


def test_a_verdict_in_a_word() -> None:
    for level, word in [("weak", "passes some tests"), ("failed", "fails the tests")]:
        assert name_trust(TrustSummary([], "", {}, level)) == (level, word)  # type: ignore[arg-type]
    assert name_trust(TrustSummary([], "", {}, "empty")) == ("", "nothing to test")
    assert name_trust(None) == ("", "not tested")
