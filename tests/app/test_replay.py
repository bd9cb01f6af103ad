"""Results made again from recipes: old ones too, and what a recipe may not do."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import smooth
from PIL import Image

import sightline as sl
from sightline.app import recipe, replay
from sightline.app.cli.main import main
from sightline.images.io import pictures as images

# A recipe as Sightline 0.1 wrote it: lists for tuples, the image by name, no parameter left out.
OLD_RECIPE = """
{
 "method": "activations",
 "knobs": {"layers": ["conv1", "last_conv"], "unit": null, "k": 3},
 "model": {"model": "sightnet"},
 "image": {"shape": [1, 3, 64, 64], "sha256": "not compared for a file or sample",
           "path": "coffee", "size": 64, "whole": false, "file_sha256": null},
 "versions": {"sightline": "0.1.0", "torch": "2.7.0", "python": "3.11.7"},
 "captions": {"conv1": "Old words."}
}
"""


@pytest.fixture
def photo() -> torch.Tensor:
    return smooth(side=48)[..., :40, :]


def test_an_old_recipe_is_still_read(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(OLD_RECIPE, encoding="utf-8")
    model = sl.load()
    image = model.fit(sl.sample("coffee"), 64)
    expected = sl.activations(model, image, layers=("conv1", "last_conv"), k=3)
    result = sl.again(path)
    assert result.panels.keys() == expected.panels.keys()
    for name, panel in expected.panels.items():
        assert torch.equal(result.panels[name], panel)
    assert result.recipe["knobs"] == expected.recipe["knobs"]


def test_a_supplied_image_is_compared_by_its_content(tiny: sl.Model, photo: torch.Tensor) -> None:
    result = sl.saliency(tiny, photo, label=2)
    repeated = sl.again(result.recipe, model=tiny, image=photo)
    assert torch.equal(repeated.values["attribution"], result.values["attribution"])
    with pytest.raises(sl.SightlineError, match="this tensor is not the image"):
        sl.again(result.recipe, model=tiny, image=photo.flip(3))
    with pytest.raises(sl.SightlineError, match="image was a tensor, not a file"):
        sl.again(result.recipe, model=tiny)


def test_the_whole_image_and_its_square_are_made_again(
    tiny: sl.Model, photo: torch.Tensor, tmp_path: Path
) -> None:
    path = str(tmp_path / "photo.png")
    images.write(photo, path)
    for whole, shape in ((True, (1, 3, 30, 36)), (False, (1, 3, 30, 30))):
        image = replay.prepare_network_input(tiny, sl.read(path), 30, whole=whole)
        assert image.shape == shape
        result = sl.saliency(tiny, image, label=2)
        recorded = replay.record_image_source(result, path, 30, whole=whole)
        repeated = sl.again(recorded.recipe, model=tiny)
        assert torch.equal(repeated.values["attribution"], result.values["attribution"])


def test_a_tensor_parameter_cannot_be_made_again(tiny: sl.Model, photo: torch.Tensor) -> None:
    result = sl.saliency(tiny, photo, label=2)
    for digest in ({"shape": [1], "sha256": "x"}, [{"shape": [1], "sha256": "x"}]):
        recipe = {**result.recipe, "knobs": {"label": 2, "kind": digest}}
        with pytest.raises(sl.SightlineError, match="the recipe's kind was a tensor"):
            sl.again(recipe, model=tiny, image=photo)


def test_a_recipe_without_its_subject_is_refused(tiny: sl.Model) -> None:
    recipe = {"method": "saliency", "knobs": {}, "model": {}}
    with pytest.raises(sl.SightlineError, match="this recipe lacks its image"):
        sl.again(recipe, model=tiny)


def test_a_stopped_run_stops_at_the_same_step(tiny: sl.Model) -> None:
    def stop_at_third(step: sl.Step) -> bool:
        return step.index == 3

    settings: dict[str, Any] = {"steps": 9, "size": 32, "start": "gray"}
    stopped = sl.synthesis(tiny, "dog", **settings, callback=stop_at_third)
    assert stopped.recipe["stopped_after"] == 3
    repeated = sl.again(stopped.recipe, model=tiny)
    assert torch.equal(repeated.values["image"], stopped.values["image"])
    assert repeated.recipe["stopped_after"] == 3
    whole_run = sl.synthesis(tiny, "dog", **settings)
    assert not torch.equal(whole_run.values["image"], stopped.values["image"])


@dataclass(frozen=True)
class Stores:
    """Parameters of a recipe, and those that are left when its store exists or does not."""

    parameters: dict[str, Any]
    if_store_exists: dict[str, Any]
    if_not: dict[str, Any]


@pytest.mark.parametrize(
    "case",
    [
        Stores({"folder": "f", "store": "s"}, {"store": "s"}, {"folder": "f"}),
        Stores({"folder": None, "store": "s"}, *[{"folder": None, "store": "s"}] * 2),
        Stores({"folder": "f", "store": None}, *[{"folder": "f", "store": None}] * 2),
        Stores({"k": 3}, {"k": 3}, {"k": 3}),
    ],
    ids=lambda case: str(case.parameters),
)
def test_a_recipe_writes_no_store(
    case: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for create, expected in ((False, case.if_not), (True, case.if_store_exists)):
        if create:
            Path("s").mkdir()
        parameters = dict(case.parameters)
        replay.prevent_store_writes(parameters)
        assert parameters == expected


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("recipe", "can't be read as a recipe"),
        ("[1]", "is not a recipe"),
        ('{"method": "saliency", "knobs": {}}', "is not a recipe"),
        ('{"method": "saliency", "knobs": [], "model": {}}', "is not a recipe"),
        ('{"sections": {}}', "is a report's recipe"),
    ],
)
def test_other_files_are_no_recipes(content: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(sl.SightlineError, match=reason):
        recipe.read_recipe(path)


def test_the_source_of_an_image_is_absolute(
    tiny: sl.Model, photo: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    images.write(photo, "photo.png")
    result = replace(sl.saliency(tiny, photo, label=2), captions={})
    image = replay.record_image_source(result, "photo.png", None).recipe["image"]
    assert image["path"] == str(tmp_path.resolve() / "photo.png")
    assert len(image["file_sha256"]) == 64
    image = replay.record_image_source(result, "rocket", 64).recipe["image"]
    assert (image["path"], image["size"], image["file_sha256"]) == ("rocket", 64, None)
    assert json.dumps(image)


def write_cut_out(path: Path) -> torch.Tensor:
    """A picture of 48×40 that is transparent outside a rectangle; returns its opacity H×W."""
    alpha = torch.zeros(48, 40)
    alpha[10:40, 6:30] = 1
    alpha[20:25, 8:12] = 0.4
    images.write(torch.cat([smooth(side=48)[0, :, :, :40], alpha[None]]), path)
    return alpha


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("method", ["deepdream", "style"])
def test_repainted_pictures_keep_their_transparency(
    tiny: sl.Model, tmp_path: Path, method: str, whole: bool
) -> None:
    alpha = write_cut_out(tmp_path / "cut.png")
    source = str(tmp_path / "cut.png")
    image = replay.prepare_network_input(tiny, sl.read(source), 32, whole=whole)
    options: dict[str, Any] = {"steps": 1, "layer": "conv2", "octaves": 1}
    if method == "style":
        options = {"steps": 1, "coarse": False, "content_layers": ("conv2",)}
        options |= {"style_layers": ("conv1", "conv2"), "styles": (smooth(side=40, seed=3),)}
    result = getattr(sl, method)(tiny, image, **options)
    kept = replay.keep_transparency(result, tiny, source, 32, whole=whole)
    picture = kept.panels["image"]
    expected = replay.prepare_network_input(tiny, alpha.expand(1, 3, -1, -1), 32, whole=whole)
    assert torch.allclose(picture[:, 3:], expected[:, :1], atol=1 / 255)
    assert torch.equal(picture[:, :3], result.values["image"])
    kept.save(tmp_path / "out")
    with Image.open(tmp_path / "out" / "image.png") as written:
        assert written.mode == "RGBA"
        assert written.getextrema()[3] == (0, 255)
    assert kept._repr_html_()


@pytest.mark.parametrize("styles", [("scream",), ("scream", "great_wave")])
def test_pictures_in_several_styles_keep_their_transparency(
    tiny: sl.Model, tmp_path: Path, styles: tuple[str, ...]
) -> None:
    alpha = write_cut_out(tmp_path / "cut.png")
    source = str(tmp_path / "cut.png")
    image = replay.prepare_network_input(tiny, sl.read(source), 32, whole=False)
    result = sl.stylize(tiny, image, styles=styles)
    kept = replay.keep_transparency(result, tiny, source, 32, whole=False)
    kept.save(tmp_path / "out")
    expected = replay.prepare_network_input(tiny, alpha.expand(1, 3, -1, -1), 32, whole=False)
    names = ["image"] if len(styles) == 1 else ["image_1", "image_2"]
    for number, name in enumerate(names):
        with Image.open(tmp_path / "out" / f"{name}.png") as written:
            pixels = torch.from_numpy(np.asarray(written).copy()).permute(2, 0, 1) / 255
        assert torch.allclose(pixels[3], expected[0, 0], atol=1 / 255)
        assert torch.allclose(pixels[:3], result.values["image"][0, number], atol=1 / 255)
    assert torch.equal(kept.panels["stylize"], result.panels["stylize"])


def test_other_results_have_no_picture_with_transparency(tiny: sl.Model, tmp_path: Path) -> None:
    write_cut_out(tmp_path / "cut.png")
    images.write(smooth(side=48), tmp_path / "opaque.png")
    image = tiny.fit(sl.read(tmp_path / "cut.png"))
    saliency = sl.saliency(tiny, image)
    dream = sl.deepdream(tiny, image, steps=1, layer="conv2", octaves=1)
    for result, name in ((saliency, "cut.png"), (dream, "opaque.png"), (dream, "rocket")):
        source = name if name == "rocket" else str(tmp_path / name)
        assert replay.keep_transparency(result, tiny, source, None, whole=False) is result


def test_a_dream_made_again_keeps_its_transparency(tmp_path: Path) -> None:
    write_cut_out(tmp_path / "cut.png")
    command = ["deepdream", str(tmp_path / "cut.png"), "--steps", "1", "--octaves", "1"]
    out = ["--cropped", "--size", "64", "--out", str(tmp_path / "out"), "--quiet"]
    assert main([*command, *out]) == 0
    repeated = sl.again(tmp_path / "out" / "recipe.json")
    with Image.open(tmp_path / "out" / "image.png") as written:
        pixels = torch.from_numpy(np.asarray(written).copy())
    assert pixels.shape == (64, 64, 4)
    assert 0 < (pixels[..., 3] == 0).float().mean() < 0.8
    expected = repeated.panels["image"][0].permute(1, 2, 0).mul(255).round().byte()
    assert torch.equal(pixels, expected)
