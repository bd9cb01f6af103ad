"""Recipes changed by someone else: each is made again, or refused in one line and without harm."""

import copy
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import smooth
from hypothesis import given, settings
from hypothesis import strategies as st

import sightline as sl
from sightline.app import recipe as recipes
from sightline.app import replay

ANY_VALUE = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(10**40), 10**40),
        st.floats(),
        st.sampled_from(
            ["", "top", "rocket", "..", "/etc", "a" * 5000, "\0", "\ud800", "os:system"]
        ),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["shape", "path", "x", ""]), inner, max_size=2),
    ),
    max_leaves=4,
)


@pytest.fixture
def image() -> torch.Tensor:
    return smooth(side=40)[..., :32, :]


@pytest.fixture(scope="module")
def recipe(tiny: sl.Model) -> dict[str, Any]:
    """A recipe of a quick method with parameters of many types, as JSON holds it."""
    result = sl.saliency(tiny, smooth(side=32), label=2, samples=2)
    return json.loads(json.dumps(dict(result.recipe)))


def list_places(content: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a value lies in JSON content, by keys and indices."""
    places = [place] if place else []
    if isinstance(content, dict):
        for key, value in content.items():
            places += list_places(value, (*place, key))
    if isinstance(content, list):
        for index, value in enumerate(content):
            places += list_places(value, (*place, index))
    return places


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_changed_recipe_is_made_or_refused(
    data: st.DataObject, recipe: dict[str, Any], tiny: sl.Model
) -> None:
    changed = copy.deepcopy(recipe)
    *parents, last = data.draw(st.sampled_from(list_places(changed)))
    target = changed
    for key in parents:
        target = target[key]
    if isinstance(target, dict) and data.draw(st.booleans()):
        del target[last]
    else:
        target[last] = data.draw(ANY_VALUE)
    try:
        result = sl.again(changed, model=tiny, image=smooth(side=32))
    except sl.SightlineError as error:
        message = str(error)
    else:
        message = repr(result)
    assert "\n" not in message


@pytest.mark.parametrize("content", [None, 3, [], "x", {"method": []}, {"knobs": {}}, {1: 2}])
def test_what_is_no_recipe(content: Any) -> None:
    with pytest.raises(sl.SightlineError, match=r"not a recipe|can't be read as a recipe"):
        sl.again(content)


@pytest.mark.parametrize(
    ("part", "value", "word"),
    [
        ("image", {"path": 3}, "image.path"),
        ("image", {"size": "64"}, "image.size"),
        ("image", {"size": 10**9}, "image.size"),
        ("image", {"whole": "yes"}, "image.whole"),
        ("image", [1], "image"),
        ("objective", 3, "objective"),
        ("stopped_after", -1, "stopped_after"),
        ("stopped_after", 1.5, "stopped_after"),
        ("versions", ["0.1"], "versions"),
        ("unknown", 1, "unknown"),
        ("knobs", {"callback": None}, "callback"),
        ("knobs", {"label": [[1]]}, "label"),
        ("knobs", {"samples": 10**30}, "samples"),
        ("knobs", {"samples": True}, "samples"),
        ("knobs", {"sigma": "0.1"}, "sigma"),
        ("knobs", {"kind": None}, "kind"),
        ("knobs", {"seed": -1}, "seed"),
        ("knobs", {"nosuch": 1}, "nosuch"),
    ],
)
def test_a_wrong_part_is_named(
    part: str, value: Any, word: str, recipe: dict[str, Any], tiny: sl.Model
) -> None:
    with pytest.raises(sl.SightlineError, match=word):
        sl.again({**recipe, part: value}, model=tiny, image=smooth(side=32))


def test_a_run_that_cannot_stop_was_not_stopped(recipe: dict[str, Any], tiny: sl.Model) -> None:
    with pytest.raises(sl.SightlineError, match="saliency can't be"):
        sl.again({**recipe, "stopped_after": 2}, model=tiny, image=smooth(side=32))


# ── files ──


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        b'{"method": "saliency", "knobs": {"sigma": NaN}, "model": {}}',
        b'{"method": "saliency", "knobs": {"seed": ' + b"9" * 5000 + b'}, "model": {}}',
        b'{"method": "saliency", "knobs": {}, "model": {}, "method": "rise"}',
        b'{"method": "saliency", "knobs": {"seed": 1, "seed": 2}, "model": {}}',
        b"null",
        b"{}",
    ],
    ids=["empty", "UTF-16", "deep list", "deep", "NaN", "long", "twice", "two", "null", "nothing"],
)
def test_a_file_that_is_no_recipe(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_bytes(content)
    with pytest.raises(sl.SightlineError, match="recipe") as caught:
        sl.again(path)
    assert "\n" not in str(caught.value)


def test_a_file_with_a_mark_of_its_encoding(
    recipe: dict[str, Any], tiny: sl.Model, tmp_path: Path
) -> None:
    """As some editors of Windows write it."""
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(recipe, default=str), encoding="utf-8-sig")
    image = smooth(side=32)
    expected = sl.again(recipe, model=tiny, image=image).values["attribution"]
    assert (sl.again(path, model=tiny, image=image).values["attribution"] == expected).all()


def test_only_regular_files_of_some_size_are_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    huge = tmp_path / "huge.json"
    with huge.open("wb") as file:
        file.truncate(5_000_000_000)
    for path in (pipe, huge, tmp_path, Path("/dev/zero"), tmp_path / ("a" * 5000)):
        with pytest.raises(sl.SightlineError, match="can't be read as a recipe"):
            recipes.read_recipe(path)


# ── what a recipe may not do ──


@pytest.mark.parametrize(
    ("method", "knobs"),
    [
        ("transfer", {"others": ["os:getcwd"]}),
        ("transfer", {"others": ["sightnet", "os:getcwd=w.pt"]}),
        ("synthesis", {"judge": "os:getcwd"}),
        ("adversarial", {"peer": "os:getcwd"}),
    ],
)
def test_it_runs_no_code(method: str, knobs: dict[str, Any], tiny: sl.Model) -> None:
    with pytest.raises(sl.SightlineError, match="made by code"):
        sl.again({"method": method, "knobs": knobs, "model": {}}, model=tiny, image=smooth())


@pytest.mark.parametrize(
    ("method", "folder"),
    [
        ("neighbors", "photos"),
        ("neighbors", None),
        ("embedding", None),
        ("patches", None),
        ("labels", None),
    ],
)
def test_it_writes_nothing_but_its_result(
    method: str,
    folder: str | None,
    tiny: sl.Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    cache = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(6):
        sl.write(smooth(seed=number), photos / f"{number}.png")
    before = {path for path in tmp_path.rglob("*") if cache not in path.parents}
    for store in ("new.scan", "photos", "../outside.scan"):
        content = {"method": method, "knobs": {"folder": folder, "store": store}, "model": {}}
        with suppress(sl.SightlineError):
            sl.again(content, model=tiny, image=smooth(side=32))
    after = {path for path in tmp_path.rglob("*") if cache not in path.parents}
    assert after - before <= {cache}
    assert not (tmp_path.parent / "outside.scan").exists()


def test_a_path_that_the_system_refuses_is_no_store() -> None:
    parameters = {"folder": "f", "store": "a" * 5000}
    replay.prevent_store_writes(parameters)
    assert parameters == {"folder": "f"}
