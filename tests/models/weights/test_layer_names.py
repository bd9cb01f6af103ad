"""Customary layer names and landmarks of torchvision's networks, as the papers have them."""

from typing import Any

import pytest
import torch
from torch import nn
from torchvision import models

from sightline.models.model import Model
from sightline.models.weights.layer_names import find_family_landmarks, find_layer_aliases

FAMILIES = [
    "alexnet",
    "vgg11",
    "vgg16_bn",
    "squeezenet1_0",
    "squeezenet1_1",
    "googlenet",
    "inception_v3",
    "resnet18",
    "resnet34",
    "resnet50",
    pytest.param("resnet152", marks=pytest.mark.slow),
    "mobilenet_v2",
    "densenet121",
    pytest.param("densenet161", marks=pytest.mark.slow),
    "convnext_tiny",
    pytest.param("convnext_base", marks=pytest.mark.slow),
    "efficientnet_b0",
    pytest.param("efficientnet_b3", marks=pytest.mark.slow),
    "vit_b_16",
    "vit_b_32",
]


def make_hollow_network(name: str) -> nn.Module:
    """A torchvision network that has shapes but no weights."""
    settings: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        settings["init_weights"] = False
    with torch.device("meta"):
        return models.get_model(name, weights=None, **settings)


def make_named_model(name: str, size: int = 224) -> Model:
    network = make_hollow_network(name)
    aliases = find_layer_aliases(name, network)
    landmarks = find_family_landmarks(name, aliases)
    return Model(network, name=name, size=size, aliases=aliases, landmarks=landmarks)


@pytest.mark.parametrize(
    "name", [f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")]
)
def test_vgg_aliases_follow_the_paper(name: str) -> None:
    """Table 1 of Simonyan & Zisserman: configurations A, B, D, E."""
    convolutions = {
        "11": (1, 1, 2, 2, 2),
        "13": (2, 2, 2, 2, 2),
        "16": (2, 2, 3, 3, 3),
        "19": (2, 2, 4, 4, 4),
    }[name[3:5]]
    channels = {1: 64, 2: 128, 3: 256, 4: 512, 5: 512}
    module_kinds = {"conv": "Conv2d", "bn": "BatchNorm2d", "relu": "ReLU", "pool": "MaxPool2d"}
    kinds = ("conv", "bn", "relu") if name.endswith("_bn") else ("conv", "relu")
    model = make_named_model(name)

    expected: list[str] = []
    for block, count in enumerate(convolutions, 1):
        for i in range(1, count + 1):
            expected += [f"{kind}{block}_{i}" for kind in kinds]
        expected.append(f"pool{block}")
    classifier = ["fc6", "relu6", "fc7", "relu7", "fc8"]
    assert set(model.aliases) == {*expected, *classifier}
    for alias in expected:
        kind = alias.rstrip("0123456789_")
        block = int(alias.removeprefix(kind)[0])
        layer = model.layers[model.layer(alias)]
        side = 224 >> (block if kind == "pool" else block - 1)
        assert layer.shape == (channels[block], side, side)
        assert layer.alias == alias
        assert layer.kind == module_kinds[kind]

    order = list(model.layers)
    positions = [order.index(model.layer(alias)) for alias in expected]
    assert positions == sorted(positions)
    last_relu = model.layer(f"relu5_{convolutions[4]}")
    assert model.layer("last_conv") == last_relu
    assert order.index(last_relu) == order.index(model.layer("pool5")) - 1
    shapes = [model.layers[model.layer(alias)].shape for alias in classifier[::2]]
    assert shapes == [(4096,), (4096,), (1000,)]
    assert model.layer("penultimate") == "classifier.6:in"


@pytest.mark.parametrize("name", FAMILIES)
def test_every_alias_and_landmark_is_a_layer(name: str) -> None:
    model = make_named_model(name, size=299 if name == "inception_v3" else 224)
    assert model.aliases
    for alias, path in model.aliases.items():
        assert model.layer(alias) == path
        assert model.layers[path].alias == alias
    assert set(model.landmarks) == {"first", "middle", "last_conv", "penultimate", "logits"}
    order = list(model.layers)
    positions = [
        order.index(model.layer(landmark).removesuffix(":in"))
        for landmark in ("first", "middle", "last_conv", "penultimate")
    ]
    assert positions == sorted(set(positions))
    assert isinstance(model.module(model.layer("first")), nn.Conv2d)
    assert all(model.shape(layer) == model.layers[layer].shape for layer in order)
    assert model.shape("logits") == (1000,)


ALIASES = {
    "alexnet": {
        "conv1": "features.0",
        "pool2": "features.5",
        "conv5": "features.10",
        "fc7": "classifier.4",
        "fc8": "classifier.6",
    },
    "squeezenet1_0": {
        "fire2": "features.3",
        "fire4": "features.5",
        "fire5": "features.7",
        "fire9": "features.12",
        "conv10": "classifier.1",
    },
    "squeezenet1_1": {"fire2": "features.3", "fire4": "features.6", "fire9": "features.12"},
    "googlenet": {"mixed3a": "inception3a", "mixed4e": "inception4e", "mixed5b": "inception5b"},
    "inception_v3": {
        "mixed5b": "Mixed_5b",
        "mixed7c": "Mixed_7c",
        "conv2d_1a_3x3": "Conv2d_1a_3x3",
    },
    "resnet50": {
        "conv2_x": "layer1",
        "conv2_3": "layer1.2",
        "conv5_x": "layer4",
        "conv4_6": "layer3.5",
    },
    "mobilenet_v2": {
        "stem": "features.0",
        "block1": "features.1",
        "block17": "features.17",
        "head": "features.18",
    },
    "densenet121": {
        "dense1": "features.denseblock1",
        "transition3": "features.transition3",
        "dense4": "features.denseblock4",
    },
    "convnext_tiny": {
        "stem": "features.0",
        "stage1": "features.1",
        "stage2": "features.3",
        "stage4": "features.7",
    },
    "efficientnet_b0": {"stage1": "features.1", "stage7": "features.7", "head": "features.8"},
    "vit_b_16": {
        "patches": "conv_proj",
        "block0": "encoder.layers.encoder_layer_0",
        "block11": "encoder.layers.encoder_layer_11",
    },
}


@pytest.mark.parametrize("name", ALIASES)
def test_aliases_of_the_other_families(name: str) -> None:
    aliases = find_layer_aliases(name, make_hollow_network(name))
    assert ALIASES[name].items() <= aliases.items()
    assert len(set(aliases.values())) == len(aliases)


def test_other_networks_have_no_customary_names() -> None:
    network = make_hollow_network("resnet18")
    assert find_layer_aliases("my_resnet18", network) == {}
    assert find_family_landmarks("my_resnet18", {}) == {}


def test_a_landmark_may_be_an_input() -> None:
    aliases = find_layer_aliases("squeezenet1_1", make_hollow_network("squeezenet1_1"))
    landmarks = find_family_landmarks("squeezenet1_1", aliases)
    assert landmarks["penultimate"] == "classifier.1:in"
    assert landmarks["last_conv"] == "features.12"
