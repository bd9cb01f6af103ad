"""The page: chapters, the place of the matrix, compact sections, movies, one stylesheet."""

import base64
import re
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from torch import Tensor

import sightline as sl
from sightline.app.web.report.page import (
    ReportContent,
    list_chapters,
    list_movies,
    read_static_text,
    render_report,
)
from sightline.app.web.report.section import ReportSection
from sightline.images.plotting.figures import FigureData, Heatmap
from sightline.images.plotting.html import render_template
from sightline.methods import load_methods

VERSIONS = {"versions": {"sightline": "0.1"}}


def make_section(
    name: str, folder: str = "", figure: FigureData | None = None, width: int = 300
) -> ReportSection:
    panel = torch.rand(1, 3, 200, width, generator=torch.Generator().manual_seed(0))
    figures = {} if figure is None else {"panel": figure}
    result = sl.Result({"panel": panel}, {}, {"panel": "A caption."}, VERSIONS, figures=figures)
    return ReportSection(
        load_methods()[name], folder or name, f"sightline {name}", {}, result=result
    )


@pytest.fixture
def content(tiny: sl.Model, photo: Tensor, tmp_path: Path) -> ReportContent:
    heatmap = Heatmap(torch.rand(32, 32), 1.0, False, "what it is")
    sections = [
        make_section("filters"),
        make_section("activations", width=900),
        make_section("saliency", figure=heatmap),
        make_section("gradcam", figure=heatmap),
    ]
    return ReportContent(tiny, photo, photo, "<cat>.png", 1, sections, "", tmp_path)


def test_the_matrix_stands_before_the_first_attribution(content: ReportContent) -> None:
    chapters = list_chapters(content)
    assert [chapter["title"] for chapter in chapters] == [
        "What are the weights?",
        "What does the network respond to in this image?",
    ]
    sections = [section for chapter in chapters for section in chapter["sections"]]
    assert [bool(section["matrix"]) for section in sections] == [False, False, True, False]
    assert len(sections[2]["matrix"]["cells"]) == 2
    assert [section["compact"] for section in sections] == [True, False, True, True]
    assert sections[2]["figures"] == []


def test_the_page_says_what_it_is_made_with(content: ReportContent) -> None:
    page = render_report(content)
    assert "Made with Sightline 0.1" in page
    assert "&lt;cat&gt;.png" in page
    assert "<cat>" not in page
    assert page.count("<h1>") == 1


def test_a_movie_is_read_from_the_sections_files(tmp_path: Path) -> None:
    frames = torch.rand(3, 3, 8, 8)
    result = sl.Result({}, {}, movies={"run.webp": frames, "other": frames})
    section = ReportSection(load_methods()["synthesis"], "synthesis", "", {}, result=result)
    assert list_movies(section, tmp_path) == []
    (tmp_path / "synthesis").mkdir()
    (tmp_path / "synthesis" / "run.webp").write_bytes(b"frames")
    (source,) = list_movies(section, tmp_path)
    assert source == f"data:image/webp;base64,{base64.b64encode(b'frames').decode()}"


# ── one stylesheet ──


def test_the_pages_of_the_methods_have_the_same_tokens() -> None:
    tokens = (files("sightline") / "templates" / "tokens.css").read_text(encoding="utf-8")
    assert read_static_text("sightline.css").startswith(tokens)
    page = render_template("embedding.html", title="a", subtitle="", hint="", data="{}")
    assert tokens.strip() in page
    page = render_template("activations.html", name="a", image="", height=1, width=1, layers=[])
    assert tokens.strip() in page


def test_every_variable_of_the_stylesheet_is_defined() -> None:
    stylesheet = read_static_text("sightline.css")
    defined = set(re.findall(r"(--[a-z0-9-]+):", stylesheet))
    used = set(re.findall(r"var\((--[a-z0-9-]+)\)", stylesheet))
    assert used - defined <= {"--color"}, "set where it is used"
    dark = stylesheet.partition("prefers-color-scheme: dark")[2].partition("}\n}")[0]
    assert {"--page", "--card", "--ink", "--caution"} <= set(re.findall(r"(--[a-z]+):", dark))
    assert "prefers-reduced-motion" in stylesheet
    assert "@media print" in stylesheet


@pytest.mark.parametrize("name", ["sightline.css", "sightline.js"])
def test_nothing_is_loaded_from_elsewhere(name: str) -> None:
    text = read_static_text(name)
    for remote in ("http:", "https:", "url(", "@import", "</"):
        assert remote not in text
