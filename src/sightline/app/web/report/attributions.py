"""The attributions of one photograph side by side: the photograph once, then each method's map."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sightline.app.web.report.figures import describe_scale, encode_picture
from sightline.app.web.report.section import ReportSection
from sightline.images.plotting.figures import ColorScale, Heatmap
from sightline.images.plotting.maps import (
    overlay_heatmap,
    overlay_signed_map,
    render_heatmap,
    render_signed_map,
)
from sightline.methods.evaluation.summary import TrustSummary

# What the chip of an attribution says.
TRUST_WORDS = {
    "strong": "passes the tests",
    "weak": "passes some tests",
    "failed": "fails the tests",
    "empty": "nothing to test",
}
UNTESTED_WORD = "not tested"


def describe_matrix(photograph: Tensor, sections: Sequence[ReportSection]) -> dict[str, Any] | None:
    """What the template needs of the matrix; None without an attribution.

    `photograph` is what the network sees, 1×3×H×W, possibly at a higher resolution.
    """
    cells = [
        describe_cell(photograph, section, section.heatmap)
        for section in sections
        if section.heatmap is not None
    ]
    if not cells:
        return None
    height, width = photograph.shape[-2:]
    return {
        "photograph": encode_picture(photograph),
        "width": width,
        "height": height,
        "cells": cells,
    }


def describe_cell(photograph: Tensor, section: ReportSection, heatmap: Heatmap) -> dict[str, Any]:
    """One map with its scale, its overlay, and the verdict on it."""
    level, word = name_trust(section.trust_summary)
    return {
        "folder": section.folder,
        "title": section.title,
        "map": encode_picture(draw_map(heatmap)),
        "overlay": encode_picture(draw_overlay(photograph, heatmap)),
        "scale": describe_scale(make_heatmap_scale(heatmap)),
        "level": level,
        "word": word,
        "sentence": section.trust_summary.sentence if section.trust_summary else "",
    }


def draw_map(heatmap: Heatmap) -> Tensor:
    """The map as a picture, 1×3×H×W."""
    values = heatmap.values[None]
    limit = torch.tensor([heatmap.limit])
    return render_signed_map(values, limit) if heatmap.is_signed else render_heatmap(values, limit)


def draw_overlay(photograph: Tensor, heatmap: Heatmap) -> Tensor:
    """The map over the photograph, in the map's own colours, 1×3×H×W."""
    values = heatmap.values[None]
    limit = torch.tensor([heatmap.limit])
    draw = overlay_signed_map if heatmap.is_signed else overlay_heatmap
    return draw(photograph, values, limit)


def make_heatmap_scale(heatmap: Heatmap) -> ColorScale:
    """The colours of an attribution."""
    return ColorScale("diverging" if heatmap.is_signed else "sequential", heatmap.limit)


def name_trust(summary: TrustSummary | None) -> tuple[str, str]:
    """The level and the word of a chip."""
    if summary is None:
        return "", UNTESTED_WORD
    level = "" if summary.level == "empty" else summary.level
    return level, TRUST_WORDS[summary.level]
