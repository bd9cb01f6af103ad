"""Concepts as a user asks for them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import sightline as sl
from sightline.methods.units.naming import sources
from sightline.methods.units.naming.sources import collect_concepts


def make_scan(**changes: Any) -> Any:
    """What a scan of four images of two classes tells."""
    facts: dict[str, Any] = {
        "images": 4,
        "paths": ["ant/0.png", "ant/1.png", "bee/2.png", "bee/3.png"],
        "path": Path("a.scan"),
        "classes": torch.tensor([0, 0, 1, 1]),
        "class_names": ["ant", "bee"],
        "shown_class_names": ["ant", "bee"],
        "model_labels": [],
    }
    return SimpleNamespace(**{**facts, **changes})


@pytest.fixture
def tables(tmp_path: Path) -> dict[str, Path]:
    """A table of groups, one of attributes, and a file of words."""
    texts = {"groups": "ant,insect\nbee,insect\nbee,flier\n", "attributes": "file,big\n1,1\n2,1\n"}
    texts["words"] = "sky\nsea\n"
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    return {name: tmp_path / name for name in texts}


def test_all_kinds_together(tables: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def collect_words(scan: Any, words: Any, clip: Path) -> Any:
        asked.append((words, clip))
        return collect_concepts(scan, attributes=tables["attributes"]).select_concepts([2])

    monkeypatch.setattr(sources, "collect_word_concepts", collect_words)
    table = collect_concepts(make_scan(), **tables, clip="folder")
    assert list(table.texts) == ["ant", "bee", "insect", "flier", "big", "big"]
    assert table.labels.toarray().T.astype(int).tolist() == [
        [1, 1, 0, 0],
        [0, 0, 1, 1],
        [1, 1, 1, 1],
        [0, 0, 1, 1],
        [0, 1, 1, 0],
        [0, 1, 1, 0],
    ]
    assert asked == [(["sky", "sea"], Path("folder"))]


def test_attributes_alone_are_enough(tables: dict[str, Path]) -> None:
    scan = make_scan(classes=None, shown_class_names=[])
    assert list(collect_concepts(scan, attributes=tables["attributes"]).texts) == ["big"]
    with pytest.raises(sl.SightlineError, match="no classes to name units after"):
        collect_concepts(scan)
    with pytest.raises(sl.SightlineError, match="no classes to name units after"):
        collect_concepts(scan, groups=tables["groups"])


def test_words_and_clip_go_together(tables: dict[str, Path]) -> None:
    with pytest.raises(sl.SightlineError, match="clip is missing: give a folder"):
        collect_concepts(make_scan(), words=tables["words"])
    with pytest.raises(sl.SightlineError, match="words is missing: give a file, one a line"):
        collect_concepts(make_scan(), clip="folder")
