"""What a method's command runs on, and what it prints."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import smooth
from safetensors.torch import load_file

import sightline as sl
from sightline.app import replay
from sightline.app.cli.execution import (
    choose_image_name,
    save_and_print_result,
    takes_scan,
)
from sightline.app.cli.main import main
from sightline.images.io import pictures as images
from sightline.images.sample_names import DEFAULT_SAMPLE
from sightline.methods import load_methods
from sightline.registry.result import Result

METHODS = load_methods()


@pytest.mark.parametrize(
    ("method", "image", "parameters", "expected"),
    [
        ("saliency", "cat.png", {}, "cat.png"),
        ("saliency", None, {}, DEFAULT_SAMPLE),
        ("saliency", None, {"id": 3}, DEFAULT_SAMPLE),
        ("neighbors", None, {"id": None}, DEFAULT_SAMPLE),
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


# ── classes, layers, sizes, networks ──


def read_recipe(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "recipe.json").read_text(encoding="utf-8"))


@pytest.fixture
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A picture in the working folder, not square."""
    monkeypatch.chdir(tmp_path)
    images.write(smooth(side=120)[..., :90, :], "photo.png")
    return "photo.png"


@pytest.mark.parametrize(
    "words",
    [
        ["church"],
        ["--label", "church"],
        ["--target", "church"],
        ["--label", "CHURCH"],
    ],
)
def test_a_class_is_given_in_any_place(words: list[str], photo: str) -> None:
    assert main(["gradcam", photo, *words, "--size", "48", "--out", "o"]) == 0
    knobs = read_recipe(Path("o"))["knobs"]
    assert knobs["label"].casefold() == "church"
    assert not knobs.get("target")


def test_a_target_in_the_class_place(photo: str) -> None:
    target = "unit('conv2_1', 3)"
    assert main(["saliency", photo, target, "--size", "48", "--out", "o"]) == 0
    assert read_recipe(Path("o"))["knobs"]["target"] == target


def test_two_classes_are_refused(photo: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["saliency", photo, "church", "--label", "tench"]) == 2
    assert "the class is church, and --label is tench; give one" in capsys.readouterr().err


def test_several_layers_are_a_result_each(photo: str, capsys: pytest.CaptureFixture[str]) -> None:
    layers = ["conv3_1", "conv4_1"]
    line = ["gradcam", photo, "--layer", *layers, "--size", "48", "--out", "o"]
    assert main(line) == 0
    said = capsys.readouterr().out
    for layer in layers:
        assert read_recipe(Path("o", layer))["knobs"]["layer"] == layer
        assert str(Path("o", layer, "gradcam.png")) in said
    assert main([*line, "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["layers"]) == set(layers)


def test_several_layers_are_one_result_where_the_method_takes_them(photo: str) -> None:
    shared = ["--size", "48", "--out", "o"]
    assert main(["inversion", photo, "--layer", "conv1", "conv2_1", "--steps", "1", *shared]) == 0
    values = json.loads(Path("o", "values.json").read_text(encoding="utf-8"))
    assert len(values["layers"]) == 2
    assert main(["cam", photo, "--layer", "conv3_1", "conv4_1", *shared]) == 0
    assert read_recipe(Path("o"))["knobs"]["layers"] == ["conv3_1", "conv4_1"]


def test_quick_leaves_what_was_asked_for(photo: str) -> None:
    words = ["occlusion", photo, "--size", "64", "--quick", "--window", "24", "--out", "o"]
    assert main(words) == 0
    knobs = read_recipe(Path("o"))["knobs"]
    assert knobs["window"] == 24
    assert knobs["stride"] == METHODS["occlusion"].quick_parameters["stride"]


def test_a_texture_has_the_size_and_its_exemplar_keeps_its_scale(photo: str) -> None:
    assert main(["texture", photo, "--size", "100", "--out", "o"]) == 0
    assert sl.read("o/image.png").shape[-2:] == (100, 100)
    recipe = read_recipe(Path("o"))
    assert recipe["image"]["shape"] == [1, 3, 90, 120]
    again = sl.again("o/recipe.json")
    assert torch.equal(again.values["image"], load_file("o/values.safetensors")["image"])


def test_the_middle_of_a_large_exemplar_is_taken_and_said(
    photo: str, capsys: pytest.CaptureFixture[str]
) -> None:
    images.write(smooth(side=600)[..., :530, :], "large.png")
    assert main(["texture", "large.png", "--size", "64", "--out", "o"]) == 0
    assert read_recipe(Path("o"))["image"]["shape"] == [1, 3, 512, 512]
    said = capsys.readouterr().out
    assert "Of the exemplar's 530×600 pixels its middle is used, at its own scale." in said
    assert main(["again", "o/recipe.json", "--out", "p"]) == 0
    assert Path("o/texture.png").read_bytes() == Path("p/texture.png").read_bytes()
    assert Path("o/recipe.json").read_text(encoding="utf-8") == Path("p/recipe.json").read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize(
    ("words", "size"),
    [
        ([], (90, 120)),
        (["--size", "48"], (48, 64)),
        (["--cropped", "--size", "48"], (48, 48)),
    ],
)
def test_repainting_keeps_the_whole_photograph(
    words: list[str], size: tuple[int, int], photo: str
) -> None:
    assert main(["deepdream", photo, "--steps", "1", "--octaves", "1", *words, "--out", "o"]) == 0
    assert sl.read("o/image.png").shape[-2:] == size


def test_cropping_is_said(photo: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predictions", photo, "--size", "48", "--out", "o"]) == 0
    assert "90×120 pixels its middle is used" in capsys.readouterr().out
    assert main(["predictions", photo, "--size", "48", "--uncropped", "--out", "o"]) == 0
    assert "is used" not in capsys.readouterr().out


def test_shares_of_styles_as_stylizer_has_them(photo: str) -> None:
    shared = ["--size", "64", "--steps", "1", "--out"]
    assert main(["style", photo, "scream:3,great_wave:1", *shared, "o"]) == 0
    knobs = read_recipe(Path("o"))["knobs"]
    assert (knobs["styles"], knobs["mix"]) == (["scream", "great_wave"], [0.75, 0.25])
    assert main(["style", photo, "scream:3", "great_wave", *shared, "p"]) == 0
    assert read_recipe(Path("p"))["knobs"]["mix"] == [0.75, 0.25]
    assert main(["style", photo, "scream:3", "great_wave", "--mix", "1", "1", *shared, "q"]) == 2


# ── the folder's network ──


NETWORK_CODE = """
from torch import nn

def build():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
"""


def test_an_own_network_with_labels_and_normalization(
    photo: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("ownnet_a.py").write_text(NETWORK_CODE, encoding="utf-8")
    words = ["--model", "ownnet_a:build", "--labels", "ant,bee,cat", "--size", "32"]
    words += ["--mean", "0.5", "0.4", "0.3", "--std", "0.2", "0.2", "0.1", "--out", "o"]
    assert main(["predictions", photo, *words]) == 0
    said = capsys.readouterr().out
    assert any(name in said for name in ("ant", "bee", "cat"))
    options = read_recipe(Path("o"))["model"]["options"]
    assert options["mean"] == [0.5, 0.4, 0.3]
    assert options["labels"] == ["ant", "bee", "cat"]


def test_the_settings_of_the_folder_are_used_and_said(
    photo: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("sightline.toml").write_text('network = "squeezenet1_1"\nweights = "random"\n', "utf-8")
    assert main(["predictions", photo, "--size", "64", "--out", "o"]) == 0
    captured = capsys.readouterr()
    assert captured.err == "sightline.toml: model squeezenet1_1, weights random\n"
    assert "weights are random" in captured.out
    assert read_recipe(Path("o"))["model"]["model"] == "squeezenet1_1"
    assert main(["layers", "--json"]) == 0
    assert "squeezenet" in capsys.readouterr().err
    assert main(["predictions", photo, "--size", "64", "--quiet", "--out", "o"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["predictions", photo, "--model", "sightnet", "--size", "64", "--out", "o"]) == 0
    assert capsys.readouterr().err == "", "another network has other weights"


def test_settings_without_a_network_are_for_the_named_one(
    photo: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("ownnet_b.py").write_text(NETWORK_CODE, encoding="utf-8")
    Path("sightline.toml").write_text('labels = ["ant", "bee", "cat"]\n', "utf-8")
    shared = ["--size", "32", "--out", "o"]
    assert main(["predictions", photo, *shared]) == 0
    assert capsys.readouterr().err == ""
    assert main(["predictions", photo, "--model", "ownnet_b:build", *shared]) == 0
    captured = capsys.readouterr()
    assert captured.err == "sightline.toml: labels ant,bee,cat\n"
    assert any(name in captured.out for name in ("ant", "bee", "cat"))


def test_settings_that_are_refused_are_one_line(
    photo: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("sightline.toml").write_text('wieghts = "a.pt"\n', "utf-8")
    assert main(["predictions", photo]) == 1
    said = capsys.readouterr().err
    assert "no key 'wieghts'; did you mean weights?" in said
    assert said.count("\n") == 1
    assert main(["samples"]) == 0, "commands without a network do not read it"


def test_a_store_keeps_its_network(photo: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("photos").mkdir()
    for number in range(3):
        images.write(smooth(side=40, seed=number), f"photos/{number}.png")
    assert main(["scan", "photos", "--store", "s.scan", "--size", "32", "--quiet"]) == 0
    Path("sightline.toml").write_text('network = "squeezenet1_1"\nweights = "random"\n', "utf-8")
    capsys.readouterr()
    assert main(["neighbors", photo, "--store", "s.scan", "--size", "32", "--out", "o"]) == 0
    assert capsys.readouterr().err == ""
    assert read_recipe(Path("o"))["model"]["model"] == "sightnet"
    line = ["neighbors", photo, "--store", "s.scan", "--labels", "a,b", "--out", "o"]
    assert main(line) == 2
    assert "leave out --labels" in capsys.readouterr().err


def test_again_on_a_device(photo: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["saliency", photo, "--size", "48", "--out", "o"]) == 0
    assert main(["again", "o/recipe.json", "--device", "cpu", "--quiet", "--out", "p"]) == 0
    assert Path("o/saliency.png").read_bytes() == Path("p/saliency.png").read_bytes()
    assert main(["again", "o/recipe.json", "--device", "nosuch", "--out", "p"]) == 1
    assert "can't be used here" in capsys.readouterr().err


@pytest.mark.parametrize(("options", "is_shown"), [([], True), (["--quiet"], False)])
def test_again_shows_a_download_unless_it_is_quiet(
    photo: str,
    options: list[str],
    is_shown: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["saliency", photo, "--size", "48", "--out", "o"]) == 0
    run_recipe = replay.run_recipe

    def download_first(*arguments: Any, **keywords: Any) -> Result:
        sys.stderr.write("Downloading: weights.pth\n")
        return run_recipe(*arguments, **keywords)

    monkeypatch.setattr(replay, "run_recipe", download_first)
    assert main(["again", "o/recipe.json", "--out", "p", *options]) == 0
    assert ("Downloading" in capsys.readouterr().err) == is_shown
