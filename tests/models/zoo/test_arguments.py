"""What is no network, no labels and no file is refused in one line that says what to give."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models

import sightline as sl
from sightline.errors import SightlineError


class TwoStreams(nn.Module):
    """A network with a second input, which is scaled and added."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, (2, 3))

    def forward(self, x: torch.Tensor, age: torch.Tensor) -> torch.Tensor:
        return self.conv(x).mean((2, 3)) + age


NETWORK = nn.Sequential(nn.Conv2d(3, 4, (2, 3)), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def make_exported_program() -> Any:
    return torch.export.export(
        nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), (torch.rand(1, 3, 4),)
    )


NO_NETWORKS: dict[str, tuple[Any, str]] = {
    "class": (TwoStreams, r"the class TwoStreams: call it, TwoStreams\(...\), to make a module"),
    "function": (models.vgg11, r"the function vgg11: call it, vgg11\(...\), to make a module"),
    "method": (NETWORK.forward, "the function forward: call it"),
    "state dict": (NETWORK.state_dict(), "is a state dict, weights without an architecture"),
    "None": (None, r"is None \(NoneType\); give a name such as \"resnet50\", or a module"),
    "number": (3.5, r"is 3.5 \(float\); give a name"),
    "tuple": ((NETWORK, {}), r"\(tuple\); give a name"),
    "image": (torch.rand(2, 3), r"\(Tensor\); give a name"),
    "picture": ("holiday/dog.webp", "dog.webp is a picture or film, and no network; sl.read reads"),
    "picture's path": (Path("a/b.tiff"), "b.tiff is a picture or film"),
    "film": ("walk.mp4", "walk.mp4 is a picture or film"),
    "weights": ("runs/best.ckpt", r"name that too: sl.load\(NAME, weights='runs/best.ckpt'\)"),
    "onnx": ("net.onnx", "net.onnx is an exported network, which torch can't look into"),
    "exported file": (Path("net.pt2"), "net.pt2 is an exported network"),
    "nothing": ("", "no network named ''"),
    "not utf-8": ("net\udcff", "no network named"),
    "long": ("x" * 9000, "no network named 'xxx"),
}


@pytest.mark.parametrize("kind", NO_NETWORKS)
def test_what_is_no_network(kind: str) -> None:
    network, message = NO_NETWORKS[kind]
    with pytest.raises(SightlineError, match=message) as refused:
        sl.load(network)
    assert "\n" not in str(refused.value)


def test_a_model_an_exported_program_and_an_onnx_graph(tiny: sl.Model) -> None:
    with pytest.raises(SightlineError, match=r"is a model that sl\.load returned"):
        sl.load(tiny)  # type: ignore[arg-type]
    with pytest.raises(SightlineError, match="exported program, whose layers are gone: give the"):
        sl.load(make_exported_program())
    graph = type("ModelProto", (), {"__module__": "onnx.onnx_ml_pb2"})()
    with pytest.raises(SightlineError, match="is an ONNX graph, which torch can't look into"):
        sl.load(graph)


def test_a_folder_of_transformers_is_named_with_its_prefix(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(SightlineError, match=f"{tmp_path} is a folder; write hf:{tmp_path}$"):
        sl.load(str(tmp_path))


WRONG_ARGUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "mean is a number": ({"mean": 0.4}, "mean is 0.4; give a list with one number for each"),
    "mean is text": ({"mean": "imagenet"}, "mean is 'imagenet'; give a list"),
    "mean is infinite": ({"mean": [0.1, float("inf"), 0.2]}, "all values finite"),
    "std is negative": ({"std": (0.2, -0.1, 0.2)}, "deviations must be above 0"),
    "mean of two": ({"mean": (0.5, 0.5)}, "they have 2 and 3"),
    "size is negative": ({"size": -12}, "size is -12; give a side in pixels from 1 to 16,384"),
    "size is text": ({"size": "64x64"}, "size is '64x64'"),
    "size of three": ({"size": (3, 8, 8)}, r"size is \(3, 8, 8\)"),
    "size is a fraction": ({"size": 64.5}, "size is 64.5"),
    "size is huge": ({"size": (64, 10**8)}, "size is .64, 100000000."),
    "labels are text": ({"labels": "ant,bee"}, "labels is 'ant,bee'; give a list with one name"),
    "labels are a number": ({"labels": 4}, "labels is 4; give a list"),
    "labels are numbers": ({"labels": range(4)}, "one of the labels is 0; give them as text"),
    "a label is None": ({"labels": ["a", None, "b", "c"]}, "one of the labels is None"),
    "labels are a dict": ({"labels": {0: "ant"}}, r"labels is a dict; .*list\(labels.values\(\)\)"),
    "labels are a set": ({"labels": {"ant", "bee"}}, "give a list with one name for each class"),
    "output is a fraction": ({"output": 0.5}, "output is 0.5; give an index, a key, or a path"),
    "output is True": ({"output": True}, "output is True"),
    "unit is a number": ({"unit": 3}, "unit is 3; give a short text such as 'years'"),
    "kind is unknown": ({"output_kind": "softmax"}, "no output_kind named 'softmax'"),
    "kinds contradict": (
        {"output_kind": "binary", "multilabel": True},
        "multilabel=True says .* output_kind is 'binary'; give one of them",
    ),
    "multilabel is text": ({"multilabel": "yes"}, "multilabel is 'yes'; give True or False"),
    "inputs are a list": ({"inputs": [1, 2]}, "inputs is list; give a dict"),
    "layout is unknown": ({"preprocess": "rgba"}, "rgba"),
    "bands are two": ({"bands": (0, 1)}, "give three numbers"),
    "no such device": ({"device": "tpu:0"}, "the device 'tpu:0' can't be used here"),
    "device is a list": ({"device": ["cpu"]}, "can't be used here"),
    "device is empty": ({"device": ""}, "the device '' can't be used here"),
}


@pytest.mark.parametrize("kind", WRONG_ARGUMENTS)
@pytest.mark.parametrize("network", [NETWORK, "sightnet"], ids=["module", "name"])
def test_wrong_arguments(network: Any, kind: str) -> None:
    arguments, message = WRONG_ARGUMENTS[kind]
    with pytest.raises(SightlineError, match=message) as refused:
        sl.load(network, **arguments)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (NETWORK.state_dict(), "weights is a state dict; load it into a module and give that"),
        (7, "weights is 7; give a file, or 'random'"),
        (np.zeros(2), "give a file, or 'random'"),
    ],
    ids=["state dict", "number", "array"],
)
def test_weights_that_are_no_file(weights: Any, message: str) -> None:
    with pytest.raises(SightlineError, match=message):
        sl.load("squeezenet1_1", weights=weights)


@pytest.mark.parametrize("name", ["squeezenet1_1", "resnet10t", "sightnet"])
def test_constructor_options_that_are_refused_are_named(name: str) -> None:
    with pytest.raises(SightlineError, match=rf"^{name} can't be built with depht=9 \(TypeError: "):
        sl.load(name, weights="random", depht=9)


def test_options_of_pretrained_networks_are_named_and_no_download_is_blamed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sightline.models.zoo.libraries.hub.can_reach", lambda *_: False)
    with pytest.raises(SightlineError, match=r"^resnet10t can't be built with depht=9 \(TypeErr"):
        sl.load("resnet10t", depht=9)
    with pytest.raises(SightlineError, match=r"^resnet18 can't be built with num_classes=7 \(Valu"):
        sl.load("resnet18", num_classes=7)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("quantized_googlenet", "is quantized and has no gradients; load googlenet$"),
        ("mvit_v1_b", "takes films, N×C×time×H×W"),
        ("raft_large", r"compares two images \(optical flow\)"),
        ("hf-hub:timm/x", "is written hf:timm/x here"),
    ],
)
def test_names_that_are_not_loaded(name: str, message: str) -> None:
    with pytest.raises(SightlineError, match=f"^{name} {message}"):
        sl.load(name)


# ── what is passed on ──


def test_everything_reaches_the_model() -> None:
    model = sl.load(
        TwoStreams(),
        size=(12, 20),
        inputs={"age": 2.0},
        output_kind="regression",
        unit="years",
        bands=(2, 1, 0),
    )
    image = torch.rand(2, 3, 12, 20, generator=torch.Generator().manual_seed(1))
    assert model.image_size == (12, 20)
    assert model.bands == (2, 1, 0)
    assert (model.output_kind, model.unit) == ("regression", "years")
    without = sl.load(TwoStreams(), size=(12, 20), inputs={"age": 0.0})
    without.network.load_state_dict(model.network.state_dict())
    difference = model.logits(image) - without.logits(image)
    torch.testing.assert_close(difference, torch.full((2, 4), 2.0))


def test_several_labels_at_once_and_doubled_names() -> None:
    model = sl.load(NETWORK, size=(10, 14), multilabel=True, labels=["sky", "sea", "sea", "sun"])
    image = torch.rand(1, 3, 10, 14, generator=torch.Generator().manual_seed(2))
    assert model.output_kind == "multilabel"
    assert model.labels == ("sky", "sea", "sea", "sun")
    torch.testing.assert_close(model.probabilities(image), model.logits(image).sigmoid())


def test_a_layout_in_words_replaces_the_normalization() -> None:
    model = sl.load(NETWORK, size=8, preprocess="bgr 0..255")
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(model.normalize(image), image.flip(1) * 255)


def test_a_size_of_ones_own_keeps_the_share_of_the_crop() -> None:
    known = sl.load("resnet18", weights="random", device="cpu")
    assert (known.size, known.resize) == (224, 256)
    smaller = sl.load("resnet18", weights="random", device="cpu", size=(112, 168))
    assert (smaller.image_size, smaller.resize) == ((112, 168), 128)
