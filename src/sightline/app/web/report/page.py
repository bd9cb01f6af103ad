"""The report's page: what its template is filled with."""

import base64
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup
from torch import Tensor

from sightline.app.web.report.attributions import (
    describe_matrix,
    make_heatmap_scale,
    name_trust,
)
from sightline.app.web.report.figures import (
    describe_figure,
    describe_scale,
    encode_picture,
    list_bars,
)
from sightline.app.web.report.findings import ReportSubject, list_findings, write_title
from sightline.app.web.report.section import ReportSection
from sightline.errors import escape_control_characters, escape_for_display
from sightline.images.plotting.figures import BarChart, Heatmap
from sightline.images.plotting.html import render_template
from sightline.models.model import Model
from sightline.registry.result import Result

WEB_PACKAGE = "sightline.app.web"

CHAPTER_TITLES = {
    "methods": "The output",
    "weights": "What are the weights?",
    "analytical": "What does the network respond to in this image?",
    "generative": "Which image would make it respond so?",
    "artistic": "What if the network may change the image?",
}

# Where a network has no more classes than this, they are listed.
MAX_LISTED_CLASSES = 20

# The panel that shows a picture which the method made, by itself.
BARE_PICTURE = "image"

MOVIE_TYPES = {".webp": "webp", ".gif": "gif"}


@dataclass(frozen=True)
class ReportContent:
    """What a report is made of.

    Attributes:
        image: 1×C×H×W, as the network takes it.
        photograph: The same for people, 1×3×H×W, possibly at a higher resolution.
        label: The class asked about.
        dataset: The dataset of the sections that use one, in words; empty for the samples.
        folder: Where the sections' files are.
        interrupted: Whether Ctrl-C ended the run.
    """

    model: Model
    image: Tensor
    photograph: Tensor
    source: str
    label: int
    sections: Sequence[ReportSection]
    dataset: str
    folder: Path
    interrupted: bool = False

    @property
    def subject(self) -> ReportSubject:
        """What the report is about."""
        return ReportSubject(self.model, self.photograph, self.source, self.label)


def render_report(content: ReportContent) -> str:
    """The page, with every picture inside."""
    model = content.model
    beginning, name, ending = write_title(content.subject, content.sections)
    findings = list_findings(content.subject, content.sections)
    return render_template(
        "report.html",
        package=WEB_PACKAGE,
        root="",
        stylesheet=read_static_text("sightline.css"),
        script=read_static_text("sightline.js"),
        title=f"{beginning}{name}{ending}",
        title_parts=(beginning, name, ending),
        breadcrumb=[("Report", ""), (escape_for_display(Path(content.source).name), "")],
        photograph=encode_picture(content.photograph),
        photograph_size=content.photograph.shape[-2:],
        bars=list_output_bars(content.sections),
        model=model,
        label=model.labels[content.label],
        classes=list_classes(model),
        dataset=content.dataset,
        interrupted=content.interrupted,
        failed=[section.title for section in content.sections if section.failure],
        findings=[finding.describe() for finding in findings],
        chapters=list_chapters(content),
        seconds=sum(section.seconds for section in content.sections),
        version=find_recorded_version(content.sections),
        layers=len(model.layers),
    )


def read_static_text(name: str) -> Markup:
    """A file of the folder `static`, to be put inside a page as it is."""
    text = (files(WEB_PACKAGE) / "static" / name).read_text(encoding="utf-8")
    return Markup(text)


def list_classes(model: Model) -> list[str]:
    """The network's classes, if it has few."""
    return list(model.labels) if len(model.labels) <= MAX_LISTED_CLASSES else []


def list_output_bars(sections: Sequence[ReportSection]) -> list[tuple[str, float, str]]:
    """The most probable classes, from the section of the output."""
    for section in sections:
        if section.method.name == "predictions" and section.result:
            chart = section.result.figures.get("predictions")
            return list_bars(chart) if isinstance(chart, BarChart) else []
    return []


def find_recorded_version(sections: Sequence[ReportSection]) -> str:
    """The package's version, as the recipes of the results have it."""
    for section in sections:
        if section.result:
            return str(section.result.recipe["versions"]["sightline"])
    return ""


# ── chapters and sections ──


def list_chapters(content: ReportContent) -> list[dict[str, Any]]:
    """The chapters in the order of the lecture, each with its sections.

    The matrix of the attributions stands before the first of their sections.
    """
    matrix = describe_matrix(content.photograph, content.sections)
    # Most of the time goes into encoding pictures, which threads do side by side.
    with ThreadPoolExecutor() as threads:
        descriptions = threads.map(
            partial(describe_section, folder=content.folder), content.sections
        )
    chapters: dict[str, dict[str, Any]] = {}
    for section, described in zip(content.sections, descriptions, strict=True):
        name = section.method.chapter
        title = CHAPTER_TITLES.get(name, name)
        chapter = chapters.setdefault(
            name, {"anchor": f"chapter-{name}", "title": title, "sections": []}
        )
        if matrix is not None and section.heatmap is not None:
            described["matrix"] = matrix
            matrix = None
        chapter["sections"].append(described)
    return list(chapters.values())


def describe_section(section: ReportSection, folder: Path) -> dict[str, Any]:
    """What the template shows of one section."""
    summary = section.trust_summary
    level, word = name_trust(summary)
    figures = list_figures(section.result) if section.result else []
    return {
        "method": section.method,
        "title": section.title,
        "folder": section.folder,
        "matrix": None,
        "heatmap": describe_heatmap(section.heatmap),
        "figures": figures,
        "compact": is_compact(figures),
        "movies": list_movies(section, folder),
        "pages": list_pages(section.result) if section.result else [],
        "has_result": section.result is not None,
        "command": escape_control_characters(section.command),
        "refused": section.refusal_reason,
        "failed": section.failure,
        "trust": summary,
        "level": level,
        "word": word,
    }


def is_compact(figures: Sequence[dict[str, Any]]) -> bool:
    """Whether a section takes half of the page's width: it has small pictures alone, or none."""
    return all(not figure.get("wide", figure["kind"] != "picture") for figure in figures)


def describe_heatmap(heatmap: Heatmap | None) -> dict[str, Any] | None:
    """The words and the scale of an attribution, whose picture is in the matrix."""
    if heatmap is None:
        return None
    scale = describe_scale(make_heatmap_scale(heatmap))
    return {"description": heatmap.description, "scale": scale}


def list_figures(result: Result) -> list[dict[str, Any]]:
    """The figures of a result, without an attribution, which the matrix shows.

    Of a picture by itself that another panel shows too, only the caption is left.
    """
    figures: list[dict[str, Any]] = []
    for name, panel in result.panels.items():
        figure = result.figures.get(name)
        caption = result.captions.get(name, "")
        if isinstance(figure, Heatmap):
            continue
        if name == BARE_PICTURE and figures:
            figures.append({"kind": "caption", "caption": caption})
        else:
            figures.append(describe_figure(figure, panel, caption))
    return figures


def list_pages(result: Result) -> list[tuple[str, str]]:
    """The pages of a result, each with its caption."""
    return [(page, result.captions.get(name, "")) for name, page in result.pages.items()]


def list_movies(section: ReportSection, folder: Path) -> list[str]:
    """The movies of a section that an <img> can show, from its files."""
    if section.result is None:
        return []
    sources: list[str] = []
    for name in section.result.movies:
        kind = MOVIE_TYPES.get(Path(name).suffix)
        path = folder / section.folder / name
        if kind is not None and path.is_file():
            encoded = base64.b64encode(path.read_bytes()).decode()
            sources.append(f"data:image/{kind};base64,{encoded}")
    return sources
