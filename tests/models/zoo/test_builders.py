"""Networks from each library, their heads, and what comes with them."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

import sightline as sl
from sightline.errors import SightlineError
from sightline.models.zoo.libraries.construction import count_classes, find_fine_tuned_classes
from sightline.models.zoo.sightnet import make_sightnet

# ── fine-tuned heads ──


def test_a_fine_tuned_head_sets_the_number_of_classes(tmp_path: Path) -> None:
    torch.manual_seed(2)
    network = models.resnet18(num_classes=7).eval()
    state = {f"module.{key}": value for key, value in network.state_dict().items()}
    weights = tmp_path / "tuned.pth"
    torch.save({"state_dict": state}, weights)
    labels = ["ant", "bee", "cat", "dog", "elk", "fox", "gnu"]
    model = sl.load("resnet18", weights=weights, labels=labels, device="cpu")
    image = torch.rand(2, 3, 64, 72)
    expected = network(model.normalize(image))
    torch.testing.assert_close(model.logits(image), expected, rtol=1e-4, atol=1e-4)
    assert model.labels == tuple(labels)
    assert model.index("fox") == 5

    unlabelled = sl.load("resnet18", weights=weights, device="cpu")
    assert unlabelled.labels == tuple(f"class {i}" for i in range(7))
    assert unlabelled.layer("conv5_x") == "layer4"
    mislabelled = sl.load("resnet18", weights=weights, labels=["a", "b"], device="cpu")
    with pytest.raises(SightlineError, match="resnet18 has 7 logits, but 2 labels were given"):
        mislabelled.index("a")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("squeezenet1_1", {}),
        ("mobilenet_v2", {}),
        ("googlenet", {"aux_logits": True, "init_weights": False}),
    ],
)
def test_fine_tuned_heads_of_other_kinds(
    tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    network = models.get_model(name, weights=None, num_classes=5, **options)
    save_file(network.state_dict(), tmp_path / "tuned.safetensors")
    model = sl.load(name, weights=tmp_path / "tuned.safetensors", device="cpu")
    assert len(model.labels) == 5


def test_a_file_of_another_architecture_is_refused(tmp_path: Path) -> None:
    network = models.resnet34(num_classes=5)
    save_file(network.state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(SightlineError, match=r"other\.safetensors doesn't fit resnet18"):
        sl.load("resnet18", weights=tmp_path / "other.safetensors", device="cpu")


def test_the_embedded_network_with_other_weights(tmp_path: Path) -> None:
    network = make_sightnet(4)
    save_file(network.state_dict(), tmp_path / "four.safetensors")
    model = sl.load(weights=tmp_path / "four.safetensors", device="cpu")
    assert model.labels == tuple(f"class {i}" for i in range(4))
    for name, value in model.network.state_dict().items():
        assert torch.equal(value, network.state_dict()[name])


NETWORK = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten(), nn.Linear(6, 9))


@pytest.mark.parametrize(
    ("change", "classes"),
    [
        ({"2.weight": torch.zeros(4, 6), "2.bias": torch.zeros(4)}, 4),
        ({"2.weight": torch.zeros(4, 6)}, None),
        ({"2.weight": torch.zeros(4, 5), "2.bias": torch.zeros(4)}, None),
        ({"0.weight": torch.zeros(4, 3, 3, 3), "2.bias": torch.zeros(4)}, None),
        ({"2.bias": torch.tensor(1.0)}, None),
        ({}, None),
    ],
    ids=["head", "half a head", "other features", "other filters", "a number", "the same"],
)
def test_what_counts_as_a_fine_tuned_head(change: dict[str, Tensor], classes: int | None) -> None:
    state = {**NETWORK.state_dict(), **change}
    assert find_fine_tuned_classes(NETWORK, state) == classes
    assert find_fine_tuned_classes(NETWORK, {"other": torch.zeros(4)}) is None


def test_classes_are_the_rows_of_the_last_parameter() -> None:
    assert count_classes(NETWORK) == 9
    assert count_classes(nn.Sequential(nn.Conv2d(3, 5, 3, bias=False))) == 5
    assert count_classes(nn.ReLU()) == 0


# ── your own function ──

CODE = """
import torch
from torch import nn

def plain(classes=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, classes, (3, 2)), nn.AdaptiveAvgPool2d(1), nn.Flatten())

def described(**options):
    facts = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "size": 24, "resize": 30}
    return plain(**options), {**facts, "labels": ["ant", "bee", "cat", "dog"]}

def overdescribed():
    return plain(), {"mean": (0.1, 0.2, 0.3), "color": "red"}

class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = plain()

    def forward(self, picture, factor):
        return self.network(picture) * factor

def scaled():
    settings = {"output_kind": "regression", "unit": "kg", "inputs": {"factor": 3.0}, "size": 20}
    return Scaled(), {**settings, "preprocess": lambda x: x.flip(1), "labels": None}

def independent():
    return plain(), {"multilabel": True, "bands": [2, 1, 0], "size": 20}

def contradictory():
    return plain(), {"multilabel": True, "output_kind": "regression"}

def unlabelled():
    return plain(), {"labels": "ant bee"}

def wrong():
    return "a network"
"""


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the working folder."""
    (tmp_path / "own_networks.py").write_text(CODE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_networks", raising=False)
    return "own_networks"


def test_a_function_makes_the_network(own_code: str, tmp_path: Path) -> None:
    path = list(sys.path)
    model = sl.load(f"{own_code}:plain", classes=5, size=20, device="cpu")
    assert sys.path == path
    assert (model.size, len(model.labels)) == (20, 5)
    assert model.recipe["options"] == {"classes": 5, "size": 20}
    state = {key: 2 * value.contiguous() for key, value in model.network.state_dict().items()}
    save_file(state, tmp_path / "twice.safetensors")
    twice = sl.load(
        f"{own_code}:plain", classes=5, weights=tmp_path / "twice.safetensors", device="cpu"
    )
    image = torch.rand(2, 3, 20, 26)
    torch.testing.assert_close(twice.logits(image), 2 * model.logits(image))


def test_a_function_may_bring_its_preprocessing_and_labels(own_code: str) -> None:
    model = sl.load(f"{own_code}:described", device="cpu")
    assert model.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert model.std.flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])
    assert (model.size, model.resize, model.labels) == (24, 30, ("ant", "bee", "cat", "dog"))
    assert sl.load(f"{own_code}:described", size=16, device="cpu").size == 16


def test_a_function_may_bring_every_setting_of_load(own_code: str) -> None:
    image = torch.rand(2, 3, 20, 26)
    plain = sl.load(f"{own_code}:plain", device="cpu", mean=[0] * 3, std=[1] * 3)
    scaled = sl.load(f"{own_code}:scaled", device="cpu")
    assert "regression of 4 numbers in kg" in repr(scaled)
    torch.testing.assert_close(scaled.logits(image), 3 * plain.logits(image.flip(1)))
    independent = sl.load(f"{own_code}:independent", device="cpu")
    assert (independent.output_kind, tuple(independent.bands)) == ("multilabel", (2, 1, 0))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("contradictory", "multilabel=True says that labels don't exclude each other"),
        ("unlabelled", "labels is 'ant bee'; give a list with one name for each class"),
    ],
)
def test_wrong_settings_of_a_function(own_code: str, name: str, message: str) -> None:
    with pytest.raises(SightlineError, match=message):
        sl.load(f"{own_code}:{name}", device="cpu")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wrong", "must return an nn.Module, or one and a dict of mean, .*returned 'a network'"),
        ("overdescribed", "must return an nn.Module, or one and a dict of mean, std, size, resize"),
        ("absent", "can't be imported .*; package.module:function is expected"),
    ],
)
def test_functions_that_make_no_network(own_code: str, name: str, message: str) -> None:
    with pytest.raises(SightlineError, match=f"^{own_code}:{name} {message}"):
        sl.load(f"{own_code}:{name}", device="cpu")


def test_modules_that_are_not_there() -> None:
    path = list(sys.path)
    with pytest.raises(SightlineError, match="no_such_module:make can't be imported"):
        sl.load("no_such_module:make", device="cpu")
    assert sys.path == path
