"""The pages of compare, mistakes and ablate as files of their own."""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sightline.app.web.diagnosis.comparison import build_comparison_data
from sightline.app.web.diagnosis.mistakes import build_effects_data, build_mistakes_data
from sightline.app.web.diagnosis.pictures import embed_picture
from sightline.app.web.report.page import read_static_text
from sightline.data.store.reader import Scan
from sightline.images.plotting.html import render_template
from sightline.methods.diagnosis.ablation_effects import AblationEffects
from sightline.methods.diagnosis.compare import Comparison
from sightline.methods.diagnosis.mistakes import Mistakes
from sightline.registry.result import write_json, write_text


def write_comparison(
    comparison: Comparison, old: Scan, new: Scan, folder: Path, command: str = ""
) -> list[Path]:
    """Writes compare.html and compare.json. Returns their paths."""
    data = build_comparison_data(comparison, old, new, embed_picture)
    return _write_report("compare", data, comparison.to_json(), folder, command)


def write_mistakes(result: Mistakes, scan: Scan, folder: Path, command: str = "") -> list[Path]:
    """Writes mistakes.html and mistakes.json. Returns their paths."""
    data = build_mistakes_data(result, scan, embed_picture)
    return _write_report("mistakes", data, result.to_json(), folder, command)


def write_effects(
    effects: AblationEffects, scan: Scan, folder: Path, command: str = ""
) -> list[Path]:
    """Writes ablate.html and ablate.json. Returns their paths."""
    data = build_effects_data(effects, scan, embed_picture)
    return _write_report("ablate", data, effects.to_json(), folder, command)


def _write_report(
    name: str, data: Mapping[str, Any], numbers: Mapping[str, Any], folder: Path, command: str
) -> list[Path]:
    page = render_template(
        f"diagnosis/{name}.html",
        package="sightline.app.web",
        root="",
        breadcrumb=[],
        command=command,
        made_with=f"Sightline {version('sightline')}",
        stylesheet=read_static_text("sightline.css") + read_static_text("diagnosis.css"),
        script=read_static_text("sightline.js"),
        **data,
    )
    folder.mkdir(parents=True, exist_ok=True)
    page_path = folder / f"{name}.html"
    numbers_path = folder / f"{name}.json"
    write_text(page, page_path)
    write_json(numbers, numbers_path)
    return [page_path, numbers_path]
