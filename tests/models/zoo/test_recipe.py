"""What a recipe keeps of `load`'s arguments, and what makes it say «built in code»."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import sightline as sl
from sightline.models.zoo.recipe import is_json
from sightline.models.zoo.reload import load_recipe_model

PLAIN: list[dict[str, Any]] = [
    {"size": (48, 80)},
    {"output_kind": "multilabel"},
    {"output_kind": "regression", "unit": "mm"},
    {"preprocess": "bgr"},
    {"preprocess": ["0..255"]},
    {"bands": (1, 0, 2)},
    {"mean": np.array([0.25, 0.5, 0.75]), "std": torch.tensor([0.5, 0.5, 0.25])},
    {"labels": tuple("abcdefghij")},
]


@pytest.mark.parametrize("arguments", PLAIN, ids="+".join)
def test_plain_arguments_are_loaded_again(arguments: dict[str, Any]) -> None:
    first = sl.load(weights="random", device="cpu", **arguments)
    recipe = json.loads(json.dumps(first.recipe))
    assert set(recipe["options"]) == set(arguments)
    second = load_recipe_model(recipe, device="cpu")
    assert json.loads(json.dumps(second.recipe)) == recipe
    assert second.image_size == first.image_size
    assert (second.output_kind, second.unit, second.bands) == (
        first.output_kind,
        first.unit,
        first.bands,
    )
    image = torch.rand(1, 3, 64, 72, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(second.logits(image), first.logits(image))


def test_multilabel_is_kept_as_the_kind() -> None:
    model = sl.load(weights="random", device="cpu", multilabel=True)
    assert model.recipe["options"] == {"output_kind": "multilabel"}


def test_a_path_of_the_output_is_kept() -> None:
    model = sl.load(weights="random", device="cpu", output="heads.sex")
    again = load_recipe_model(json.loads(json.dumps(model.recipe)), device="cpu")
    assert again.output == "heads.sex"


@pytest.mark.parametrize(
    "arguments",
    [
        {"preprocess": lambda image: image * 2},
        {"mean": [0.5] * 3, "preprocess": torch.flatten},
    ],
    ids=["own function", "torch's function"],
)
def test_functions_make_it_code(arguments: dict[str, Any]) -> None:
    model = sl.load(weights="random", device="cpu", **arguments)
    assert model.recipe == {"model": "sightnet", "built_in_code": True}
    with pytest.raises(sl.SightlineError, match="built in code; give it with model="):
        load_recipe_model(model.recipe)


def test_classes_among_the_constructor_options_make_it_code() -> None:
    model = sl.load("resnet18", weights="random", device="cpu", norm_layer=nn.InstanceNorm2d)
    assert model.recipe == {"model": "resnet18", "built_in_code": True}


def test_what_json_can_hold() -> None:
    assert is_json({"age": 3, "sizes": (1, 2), "word": "x", "flag": None})
    assert not is_json({"age": torch.ones(1)})
    assert not is_json([float("nan")])
    assert not is_json({"f": len})


REFUSED: list[dict[str, Any]] = [
    {"size": [64]},
    {"size": [64, 0]},
    {"size": [64, 10**7]},
    {"output": "../x"},
    {"output": "a" * 500},
    {"output_kind": "dense"},
    {"unit": "x" * 100},
    {"preprocess": "os.system"},
    {"preprocess": "bgr; rm"},
    {"preprocess": {"path": "x"}},
    {"inputs": {"x y": 1}},
    {"inputs": {"age": {"nested": 1}}},
    {"inputs": {"age": "http://example.org"}},
    {"inputs": {f"n{number}": 1 for number in range(30)}},
    {"bands": [0, 1]},
    {"bands": [0, 1, -1]},
    {"min_size": 10**9},
    {"weights_backbone": "DEFAULT"},
]


@pytest.mark.parametrize("options", REFUSED, ids=lambda options: f"{options!s:.40}")
def test_recipes_from_elsewhere_may_not_ask_for_more(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("the loader was called")

    monkeypatch.setattr("sightline.models.zoo.reload.load", load)
    with pytest.raises(sl.SightlineError, match=next(iter(options))) as refused:
        load_recipe_model({"model": "sightnet", "weights": "random", "options": options})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["hf:/etc", "hf:someone/something", "hf:../../x"])
def test_recipes_name_no_folder_and_no_repository(name: str) -> None:
    with pytest.raises(sl.SightlineError, match="may name no folder or address; give it with mod"):
        load_recipe_model({"model": name, "weights": "random"})
