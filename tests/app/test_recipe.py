"""What a recipe may hold: each part is checked before anything of it is used."""

import json
from pathlib import Path
from typing import Any

import pytest

from sightline.app.recipe import Recipe, parse_recipe, read_parameters, read_recipe
from sightline.errors import SightlineError

SALIENCY: dict[str, Any] = {
    "method": "saliency",
    "knobs": {"label": "church", "samples": 7, "sigma": 0.25},
    "model": {"model": "sightnet"},
    "image": {"shape": [1, 3, 32, 48], "sha256": "ab", "path": "photo.png", "size": 32},
    "versions": {"sightline": "0.1", "timm": None},
    "captions": {"saliency": "A map."},
}


def write_recipe(folder: Path, content: object) -> Path:
    path = folder / "recipe.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_a_recipe_is_read_with_all_its_parts(tmp_path: Path) -> None:
    recipe = read_recipe(write_recipe(tmp_path, SALIENCY))
    assert recipe == parse_recipe(SALIENCY)
    assert recipe.find_method().name == "saliency"
    assert recipe.image is not None
    assert (recipe.image.shape, recipe.image.size, recipe.image.whole) == (
        [1, 3, 32, 48],
        32,
        False,
    )
    assert (recipe.objective, recipe.stopped_after) == (None, None)
    assert recipe.versions == {"sightline": "0.1", "timm": None}
    assert read_parameters(recipe) == {"label": "church", "samples": 7, "sigma": 0.25}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": 3}, "method is 3"),
        ({"knobs": [1]}, r"knobs is \[1\]"),
        ({"model": "sightnet"}, "model is 'sightnet'"),
        ({"image": {"size": 0}}, "image.size is 0"),
        ({"image": {"size": 4097}}, "image.size is 4097"),
        ({"image": {"shape": "1×3"}}, "image.shape is '1×3'"),
        ({"image": {"owner": "me"}}, "'image.owner' is no part of one"),
        ({"stopped_after": -1}, "stopped_after is -1"),
        ({"command": "rm"}, "'command' is no part of one; its parts are method, knobs, model"),
        ({"captions": {"a": 1}}, "captions.a is 1"),
    ],
)
def test_each_wrong_part_is_named_in_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SightlineError, match=f"mine is not a recipe: {message}") as error:
        parse_recipe({**SALIENCY, **change}, "mine")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("part", ["method", "knobs", "model"])
def test_what_is_missing_is_named(part: str) -> None:
    content = {name: value for name, value in SALIENCY.items() if name != part}
    with pytest.raises(SightlineError, match=f"{part} is missing; method, knobs and model are"):
        parse_recipe(content)


@pytest.mark.parametrize("content", [None, 3, "saliency", [1, 2]])
def test_other_json_is_no_recipe(content: object) -> None:
    with pytest.raises(SightlineError, match="this is not a recipe: "):
        parse_recipe(content)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no JSON", "can't be read as a recipe"),
        ('{"method": NaN}', "NaN is no number of JSON"),
        ('{"method": -Infinity}', "-Infinity is no number of JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"sections": {}}', "is a report's recipe; each section has its own"),
    ],
)
def test_files_that_hold_no_recipe(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SightlineError, match=message):
        read_recipe(path)


def test_what_is_no_file_or_too_large(tmp_path: Path) -> None:
    with pytest.raises(SightlineError, match="a folder, not a file"):
        read_recipe(tmp_path)
    with pytest.raises(SightlineError, match="No such file"):
        read_recipe(tmp_path / "nothing.json")
    with open(tmp_path / "large.json", "wb") as file:
        file.truncate(20_000_001)  # takes no room on the disk
    with pytest.raises(SightlineError, match="more than 20 MB"):
        read_recipe(tmp_path / "large.json")


# ── parameters ──


def make_recipe(method: str, **knobs: Any) -> Recipe:
    return parse_recipe({"method": method, "knobs": knobs, "model": {"model": "sightnet"}})


def test_lists_of_json_are_tuples() -> None:
    parameters = read_parameters(make_recipe("activations", layers=["conv1", "conv2"], k=3))
    assert parameters == {"layers": ("conv1", "conv2"), "k": 3}


@pytest.mark.parametrize(
    ("method", "knobs", "message"),
    [
        ("salience", {}, "did you mean saliency"),
        ("saliency", {"smaples": 3}, "did you mean samples"),
        ("saliency", {"samples": 0}, "samples"),
        ("saliency", {"kind": "gradeint"}, "kind"),
        ("saliency", {"callback": None}, "may not name a callback"),
        ("style", {"styles": [{"sha256": "ab"}]}, "styles was a tensor, not a file"),
        ("transfer", {"others": ["my.nets:build"]}, r"others is made by code \(my.nets:build\)"),
        ("contrast", {"other": "my.nets:build"}, r"other is made by code \(my.nets:build\)"),
        ("transfer", {"others": ["vgg16", "my.nets:build=w.pt"]}, "which a recipe may not run"),
    ],
)
def test_parameters_are_checked(method: str, knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(SightlineError, match=message) as error:
        read_parameters(make_recipe(method, **knobs))
    assert "\n" not in str(error.value)
