"""A recipe from elsewhere builds a known architecture with known weights, and nothing else."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import sightline as sl
from sightline.generators.checkpoint import read_style_network, write_any_style_network
from sightline.models.zoo.reload import load_recipe_model
from sightline.models.zoo.sightnet import make_sightnet

HOSTILE: list[Mapping[str, Any]] = [
    {"pretrained_cfg_overlay": {"url": "file:///etc/passwd"}},
    {"cache_dir": "site-packages"},
    {"pretrained": True},
    {"pretrained_cfg": {"file": "weights.pth"}},
    {"checkpoint_path": "weights.pth"},
    {"pretrained_strict": False},
    {"weights": "IMAGENET1K_V1"},
    {"device": "meta"},
    {"num_classes": 10**9},
    {"num_classes": "10"},
    {"img_size": [10**9, 10**9]},
    {"global_pool": "../../avg"},
    {"act_layer": "http://example.org/x.py"},
    {"mean": [0.5] * 2_000},
]


@pytest.mark.parametrize("options", HOSTILE, ids=lambda options: next(iter(options)))
@pytest.mark.parametrize("network", ["sightnet", "resnet18", "resnet10t"])
def test_a_recipe_hands_no_other_option_to_a_loader(
    monkeypatch: pytest.MonkeyPatch, network: str, options: Mapping[str, Any]
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("the loader was called")

    monkeypatch.setattr("sightline.models.zoo.reload.load", load)
    with pytest.raises(sl.SightlineError, match=next(iter(options))) as refused:
        load_recipe_model({"model": network, "weights": "random", "options": options})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "recipe",
    [
        {"model": "resnet18", "cache_dir": "x"},
        {"model": "resnet18", "weights": "weights.pth"},
        {"model": "resnet18", "weights": "weights.pth", "sha256": "x"},
        {"model": "resnet18", "weights": ["random"]},
        {"model": "resnet18", "weights": "random", "options": ["num_classes"]},
        {"model": "local-dir:/tmp/x", "weights": "random"},
        {"model": "hf-hub:someone/something", "weights": "random"},
    ],
)
def test_a_recipe_of_another_form_is_refused(recipe: Mapping[str, Any]) -> None:
    with pytest.raises(sl.SightlineError) as refused:
        load_recipe_model(recipe)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("network", "options"),
    [
        (
            "resnet18",
            {"num_classes": 7, "size": 64, "mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0, 1.0)},
        ),
        ("sightnet", {"classes": 3}),
        ("mobilenetv2_050", {"pad_type": "same", "num_classes": 4}),
    ],
)
def test_what_load_was_given_is_loaded_again(network: str, options: Mapping[str, Any]) -> None:
    first = sl.load(network, weights="random", **options)
    recipe = json.loads(json.dumps(first.recipe))
    second = load_recipe_model(recipe)
    assert json.loads(json.dumps(second.recipe)) == recipe
    image = torch.rand(1, 3, 64, 72, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(second.logits(image), first.logits(image))


def test_a_style_networks_header_hands_nothing_to_a_loader(tmp_path: Path) -> None:
    from sightline.generators.architectures.adain import AdaINStylizer

    written = tmp_path / "any.safetensors"
    write_any_style_network(AdaINStylizer(sl.load(weights="random")), written)
    read_style_network(written)
    head: dict[str, Any] = {"kind": "", "encoder": {}}
    from safetensors import safe_open

    with safe_open(written, "pt") as file:
        head = json.loads(file.metadata()["sightline"])
    head["encoder"]["options"] = {
        "pretrained_cfg_overlay": {"url": "file:///etc/passwd"},
        "cache_dir": str(tmp_path),
    }
    save_file(load_file(written), written, {"sightline": json.dumps(head)})
    with pytest.raises(sl.SightlineError, match="pretrained_cfg_overlay"):
        read_style_network(written)


def test_a_store_hands_nothing_to_a_loader(tmp_path: Path, tiny: sl.Model) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        sl.write(
            torch.rand(1, 3, 40, 56, generator=torch.Generator().manual_seed(number)),
            folder / f"{number}.png",
        )
    store = tmp_path / "photos.scan"
    sl.scan(sl.load(weights="random"), folder, store=store)
    facts = json.loads((store / "scan.json").read_text())
    facts["model"]["options"] = {"cache_dir": str(tmp_path / "made")}
    (store / "scan.json").write_text(json.dumps(facts))
    with pytest.raises(sl.SightlineError, match="cache_dir"):
        sl.Scan.open(store).model()


def test_weights_that_changed_are_refused(tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    save_file(make_sightnet().state_dict(), weights)
    recipe = sl.load(weights=weights).recipe
    assert load_recipe_model(recipe).recipe == recipe
    save_file({**load_file(weights), "fc.bias": torch.ones(10)}, weights)
    with pytest.raises(sl.SightlineError, match=r"the weights of .* are no longer those that the"):
        load_recipe_model(recipe)


@pytest.mark.parametrize("name", ["sightnet", "sightnet_plain"])
def test_an_embedded_network_is_found_by_its_weights(name: str) -> None:
    """Recipes may call the weights of `sightnet_plain` those of `sightnet`."""
    recipe = sl.load("sightnet_plain").recipe
    model = load_recipe_model({**recipe, "model": name}, device="cpu")
    assert model.recipe["sha256"] == recipe["sha256"]


def test_embedded_weights_of_another_version_are_refused() -> None:
    with pytest.raises(sl.SightlineError, match="the weights of sightnet are no longer those"):
        load_recipe_model({"model": "sightnet", "sha256": "0" * 64}, device="cpu")


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"model": "Net", "built_in_code": True}, "network is a Net that was built in code; give"),
        ({}, "this recipe does not name its network; give it with model="),
        (
            {"model": "own:make"},
            r"network is made by code \(own:make\), which a recipe may not run",
        ),
        ({"model": "sightnet", "weights": "x.pt"}, "names the weights x.pt without their SHA-256"),
        (
            {"model": "sightnet", "url": "x"},
            r"'url' is not allowed in a recipe \(allowed are model",
        ),
        ({"model": "sightnet", "options": {"classes": -1}}, "'options.classes' is -1 "),
    ],
)
def test_what_a_recipe_may_not_ask_for(recipe: Mapping[str, Any], message: str) -> None:
    with pytest.raises(sl.SightlineError, match=message):
        load_recipe_model(recipe)


def test_a_recipe_makes_a_reader_write_no_store(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(4):
        sl.write(
            torch.rand(1, 3, 40, 56, generator=torch.Generator().manual_seed(number)),
            folder / f"{number}.png",
        )
    target = tmp_path / "site-packages.scan"
    model = sl.load(weights="random")
    made = sl.embedding(model, folder=str(folder), method="pca")
    recipe = {**made.recipe, "knobs": {**made.recipe["knobs"], "store": str(target)}}
    sl.again(recipe, model=model)
    assert not target.exists()
