"""What a method's command runs on, and what it prints."""

import json
from pathlib import Path

import pytest
import torch

import sightline as sl
from sightline.app.cli.execution import (
    DEFAULT_IMAGE,
    choose_image_name,
    save_and_print_result,
    takes_scan,
)
from sightline.methods import load_methods
from sightline.registry.result import Result

METHODS = load_methods()


@pytest.mark.parametrize(
    ("method", "image", "parameters", "expected"),
    [
        ("saliency", "cat.png", {}, "cat.png"),
        ("saliency", None, {}, DEFAULT_IMAGE),
        ("saliency", None, {"id": 3}, DEFAULT_IMAGE),
        ("neighbors", None, {"id": None}, DEFAULT_IMAGE),
        ("neighbors", None, {"id": 0}, None),
        ("neighbors", "cat.png", {"id": 0}, "cat.png"),
    ],
)
def test_the_default_image_unless_a_stored_one_is_named(
    method: str, image: str | None, parameters: dict[str, int | None], expected: str | None
) -> None:
    assert choose_image_name(METHODS[method], image, parameters) == expected


def test_only_methods_over_datasets_take_a_scan() -> None:
    scanned = {name for name, method in METHODS.items() if takes_scan(method)}
    assert {"neighbors", "patches", "labels", "embedding"} <= scanned
    assert scanned.isdisjoint({"saliency", "synthesis", "style"})


def make_result() -> Result:
    panel = torch.rand(1, 3, 6, 9, generator=torch.Generator().manual_seed(0))
    values = {"share": 0.25, "map": torch.arange(40.0)}
    return Result({"first": panel, "second": panel}, values, {"first": "One.", "second": "Two."})


def test_captions_and_pictures_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_and_print_result(make_result(), tmp_path, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["One.", "Two.", str(tmp_path / "first.png"), str(tmp_path / "second.png")]
    assert sl.read(tmp_path / "first.png").shape == (1, 3, 6, 9)


def test_json_has_the_values_and_every_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_and_print_result(make_result(), tmp_path, as_json=True)
    summary = json.loads(capsys.readouterr().out)
    assert summary["values"]["share"] == 0.25
    assert sorted(summary["files"]) == sorted(str(path) for path in tmp_path.iterdir())
