"""The title of a report, and its findings."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

import sightline as sl
from sightline.app.web.report.findings import (
    ReportSubject,
    choose_article,
    list_findings,
    name_thing,
    shorten_class_name,
    write_title,
)
from sightline.app.web.report.section import ReportSection
from sightline.images.plotting.captioned_rows import FigureRow
from sightline.images.plotting.figures import Heatmap, PictureRows
from sightline.methods import load_methods
from sightline.methods.evaluation.summary import TrustSummary


@pytest.fixture
def subject(tiny: sl.Model, photo: Tensor) -> ReportSubject:
    return ReportSubject(tiny, photo, "cat.jpg", 2)


def make_section(
    name: str, values: Mapping[str, Any], summary: TrustSummary | None = None, **figures: Any
) -> ReportSection:
    result = sl.Result({}, values, figures=figures)
    method = load_methods()[name]
    return ReportSection(method, name, "", {}, result=result, trust_summary=summary)


def test_the_title_says_what_the_network_says(subject: ReportSubject) -> None:
    values = {
        "labels": [["English springer, a dog", "cat"]],
        "probabilities": torch.tensor([[0.874, 0.1]]),
    }
    parts = write_title(subject, [make_section("predictions", values)])
    assert parts == (f"{subject.model.name} calls cat.jpg an ", "English springer", " (87%)")


def test_a_network_without_classes_has_another_title(subject: ReportSubject) -> None:
    regression = make_section("predictions", {"labels": [["age"]], "numbers": torch.ones(1, 1)})
    for sections in ([], [regression]):
        assert write_title(subject, sections)[0] == f"What {subject.model.name} sees in cat.jpg"


def test_things_and_classes_are_named_as_one_says_them() -> None:
    assert name_thing("golf_ball") == "this golf ball"
    assert name_thing("photos/cat.jpg") == "cat.jpg"
    assert choose_article("English springer") == "an"
    assert choose_article("tench") == "a"
    assert shorten_class_name("tench, Tinca tinca") == "tench"
    assert shorten_class_name(", odd") == ", odd"


def test_evidence_is_that_of_the_best_tested_attribution(subject: ReportSubject) -> None:
    heatmap = Heatmap(torch.rand(32, 32), 1.0, False, "map")
    sections = [
        make_section("saliency", {}, TrustSummary([], "", {}, "failed"), saliency=heatmap),
        make_section("gradcam", {}, TrustSummary([], "", {}, "strong"), gradcam=heatmap),
        make_section("rise", {}, rise=heatmap),
    ]
    (finding,) = list_findings(subject, sections)
    assert (finding.folder, finding.level) == ("gradcam", "strong")
    assert "Of 2 attributions tested here, Grad-CAM passed every test." in finding.text
    (finding,) = list_findings(subject, sections[:1])
    assert "Of 1 attribution tested here, none passed every test." in finding.text
    (finding,) = list_findings(subject, sections[2:])
    assert finding.word == "not tested"


def test_an_attack_is_told_with_its_size(subject: ReportSubject, photo: Tensor) -> None:
    logits = torch.full((1, len(subject.model.labels)), -4.0)
    logits[0, 1] = 6
    values = {
        "image": photo,
        "logits": logits,
        "linf": torch.tensor([4 / 255]),
        "success": torch.tensor([True]),
        "success_8bit": torch.tensor([False]),
    }
    (finding,) = list_findings(subject, [make_section("adversarial", values)])
    assert f"more than 4/255, and the network says {subject.model.labels[1]} (100%)" in finding.text
    assert (finding.level, finding.word) == ("weak", "lost in 8 bits")
    values["success"] = torch.tensor([False])
    (finding,) = list_findings(subject, [make_section("adversarial", values)])
    assert finding.heading == "It withstood"


@pytest.mark.parametrize(
    ("ssim", "text", "shown"),
    [
        ([0.9, 0.6, 0.2], "Up to b the photograph can be made out; c keeps", 1),
        ([0.9, 0.8, 0.7], "Even c keeps the photograph (SSIM 0.70)", 2),
        ([0.1, 0.1, -0.001], "Already a does not keep the photograph (SSIM 0.10)", 2),
    ],
)
def test_how_deep_the_photograph_is_kept(
    subject: ReportSubject, photo: Tensor, ssim: list[float], text: str, shown: int
) -> None:
    images = torch.cat([photo * factor for factor in (1.0, 0.5, 0.25)])
    values = {"ssim": torch.tensor(ssim)[:, None], "layers": ["a", "b", "c"], "image": images}
    (finding,) = list_findings(subject, [make_section("inversion", values)])
    assert text in finding.text
    assert "-0.0" not in finding.text
    assert torch.equal(finding.picture, images[shown : shown + 1])


def test_the_unit_shown_first_is_the_one_with_the_surest_name(subject: ReportSubject) -> None:
    units: list[dict[str, Any]] = [{"name": None} for _ in range(5)]
    units[4] = {"name": "sky", "auprc": 0.3}
    units[1] = {"name": "gravel", "auprc": 0.9}
    rows = [
        FigureRow(f"unit {unit} of this test: more", [torch.full((1, 3, 4, 5), unit / 5)], [""])
        for unit in (4, 1, 2)
    ]
    values = {"units": units, "shown_units": [4, 1, 2]}
    (finding,) = list_findings(subject, [make_section("labels", values, labels=PictureRows(rows))])
    assert finding.text.startswith("Unit 1 of this test has the surest name of the 3 most")
    assert float(finding.picture.mean()) == pytest.approx(0.2)

    values["units"] = [{} for _ in range(5)]
    (finding,) = list_findings(subject, [make_section("labels", values, labels=PictureRows(rows))])
    assert finding.text.startswith("Unit 4 of this test is the most selective of 5.")
