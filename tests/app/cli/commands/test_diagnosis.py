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


NETWORK_FILE = """
import torch

def build():
    torch.manual_seed(4)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 5, 3, stride=2), torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(5, 3),
    )
"""


def test_a_network_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own_diagnosed.py").write_text(NETWORK_FILE)
    pictures = smooth(60, side=36, seed=9)
    network = ["--model", "own_diagnosed:build", "--labels", "ant,bee,cat"]
    for number in range(60):
        folder = Path("photos") / ("ant", "bee", "cat")[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        sl.write(pictures[number], folder / f"{number}.png")
    scan = ["scan", "photos", "--store", "own.scan", "--size", "32", "--layers", "0", "1"]
    assert run(*scan, *network, "--quiet") == 0
    capsys.readouterr()

    commands = (
        ["mistakes", "--store", "own.scan", "--out", "m"],
        ["ablate", "--store", "own.scan", "--layer", "0", "--out", "a"],
    )
    for words in commands:
        assert run(*words, "--quiet") == 1
        error = capsys.readouterr().err
        assert "--model on the command line" in error
        assert error.count("\n") == 1
        assert run(*words, *network[2:], "--quiet") == 2
        assert "leave out --labels, or name the network" in capsys.readouterr().err
        assert run(*words, *network, "--quiet", "--json") == 0
        content = json.loads(capsys.readouterr().out)
        assert content["files"]
    assert run("mistakes", "--store", "own.scan", "--model", "sightnet", "--out", "x") == 1
    assert "was made with own_diagnosed:build, not sightnet" in capsys.readouterr().err

    assert run("saliency", "photos/ant/0.png", *network, "--size", "32", "--out", "s") == 0
    capsys.readouterr()
    # The folder's network is not taken for that of a recipe.
    Path("sightline.toml").write_text('network = "sightnet_plain"\n')
    assert run("again", "s/recipe.json", "--out", "t") == 1
    assert "--model on the command line" in capsys.readouterr().err
    assert run("again", "s/recipe.json", *network, "--out", "t") == 0
    assert Path("s/saliency.png").read_bytes() == Path("t/saliency.png").read_bytes()


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
