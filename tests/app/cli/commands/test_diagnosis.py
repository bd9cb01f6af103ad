"""The commands compare, mistakes and ablate, and units that are off in other commands."""

import json
from pathlib import Path

import pytest
from helpers import smooth

import sightline as sl
from sightline.app.cli.main import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    pictures = smooth(24, side=40, seed=30)
    for number in range(24):
        sl.write(pictures[number], root / f"{number:02}.png")
    return root


@pytest.fixture(scope="module")
def stores(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Scans by both embedded networks at a small size."""
    root = tmp_path_factory.mktemp("stores")
    paths = []
    for name in ("sightnet", "sightnet_plain"):
        model = sl.load(name)
        layers = [model.landmarks["last_conv"]]
        paths.append(root / f"{name}.scan")
        sl.scan(model, folder, store=paths[-1], layers=layers, size=64)
    return paths


def run(*words: object) -> int:
    return main([str(word) for word in words])


def test_compare_writes_a_page(
    stores: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("compare", *stores, "--out", tmp_path, "--json", "--quiet") == 0
    content = json.loads(capsys.readouterr().out)
    assert content["networks"] == ["sightnet", "sightnet_plain"]
    assert (tmp_path / "compare.html").exists()
    assert run("compare", stores[0], stores[0], "--out", tmp_path) == 0
    assert "are the same" in capsys.readouterr().out


def test_ablate_measures_some_units(
    stores: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["ablate", "--store", stores[0], "--layer", "last_conv", "--units", "3,7-8"]
    assert run(*words, "--images", 6, "--out", tmp_path, "--json") == 0
    content = json.loads(capsys.readouterr().out)
    assert [unit["unit"] for unit in content["units"]] == [3, 7, 8]
    assert content["images"] == 6
    assert "own answers" in content["reference"]
    assert (tmp_path / "ablate.html").exists()


def test_mistakes_need_classes(
    stores: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("mistakes", "--store", stores[0], "--out", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert "knows no classes" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_units_off_are_in_the_recipe_and_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predictions", "rocket", "--size", "64", "--ablate", "last_conv:3,5"]
    assert run(*words, "--ablate-fill", "mean", "--out", tmp_path / "a") == 0
    assert "Units 3 and 5 of " in capsys.readouterr().out
    recipe = json.loads((tmp_path / "a" / "recipe.json").read_text())
    (ablated,) = recipe["model"]["ablated"]
    assert ablated["fill"] == "mean"
    assert list(ablated["units"].values()) == [[3, 5]]
    assert run("again", tmp_path / "a" / "recipe.json", "--out", tmp_path / "b") == 0
    for name in ("predictions.png",):
        first = (tmp_path / "a" / name).read_bytes()
        assert first == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize(
    ("units", "message"),
    [("last_conv", "LAYER:UNIT,UNIT"), ("last_conv:9999", "must lie between 0 and")],
)
def test_bad_units_are_one_line(
    units: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("predictions", "rocket", "--ablate", units, "--out", tmp_path / "o") == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "o").exists()


def test_a_store_is_of_all_units(
    stores: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["patches", "--store", stores[0], "--unit", "1", "--ablate", "last_conv:1"]
    assert run(*words, "--out", tmp_path / "o") != 0
    assert "scan the images again with --ablate" in capsys.readouterr().err
