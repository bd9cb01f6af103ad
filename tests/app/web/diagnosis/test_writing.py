"""Pages of one file: complete, escaped, and without anything from elsewhere."""

import json
import re
from dataclasses import replace
from pathlib import Path

import sightline as sl
from sightline.app.web.diagnosis.writing import (
    write_comparison,
    write_effects,
    write_mistakes,
)
from sightline.methods.diagnosis.ablation_effects import measure_ablation_effects
from sightline.methods.diagnosis.compare import Comparison
from sightline.methods.diagnosis.mistakes import Mistakes, SureMistake
from sightline.models.model import Model


def check_page(page: Path) -> str:
    """The text of a page that loads nothing."""
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    addresses = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert "{{" not in text
    assert "{%" not in text
    return text


def test_a_comparison(
    comparison: Comparison, two_scans: tuple[sl.Scan, sl.Scan], page_folder: Path
) -> None:
    named = replace(comparison, names=("<b>old</b>", "new & other"))
    page, numbers = write_comparison(named, *two_scans, page_folder, "sightline compare a b")
    text = check_page(page)
    assert "&lt;b&gt;old&lt;/b&gt; and new &amp; other" in text
    assert "<b>old</b>" not in text
    assert "sightline compare a b" in text
    assert "Answers that flipped" in text
    assert json.loads(numbers.read_text())["images"] == 60


def test_mistakes_without_a_group(two_scans: tuple[sl.Scan, sl.Scan], page_folder: Path) -> None:
    surest = (SureMistake(5, "<i>dog</i>", "bee", 0.914), SureMistake(2, "cat", "ant", 0.6))
    notes = ("no group is beyond chance",)
    result = Mistakes("net", 60, 0, 7, (), "the dataset's classes", notes, surest=surest)
    page, numbers = write_mistakes(result, two_scans[0], page_folder)
    text = check_page(page)
    assert "7 of 60 images are mistakes" in text
    assert "No group is beyond chance." in text
    assert "&lt;i&gt;dog&lt;/i&gt;, taken for bee, 91% sure" in text
    assert text.index("taken for bee") < text.index("cat, taken for ant, 60% sure")
    assert json.loads(numbers.read_text())["groups"] == []
    assert json.loads(numbers.read_text())["surest"][1] == {
        "id": 2,
        "truth": "cat",
        "answer": "ant",
        "confidence": 0.6,
    }


def test_effects_of_units(
    tiny: Model, two_scans: tuple[sl.Scan, sl.Scan], page_folder: Path
) -> None:
    import numpy as np
    import torch
    from helpers import smooth

    images = smooth(6, side=32)
    effects = measure_ablation_effects(
        tiny,
        lambda ids: torch.stack([images[id] for id in ids]),
        np.zeros(6, np.int64),
        "conv2",
        ids=range(6),
    )
    page, _ = write_effects(effects, two_scans[0], page_folder)
    assert "conv2 without each of its units" in check_page(page)
