"""Customary layer names and landmarks of well-known networks."""

import re
from collections.abc import Callable, Mapping

from torch import nn


def find_layer_aliases(name: str, network: nn.Module) -> dict[str, str]:
    """Customary layer names of a torchvision network, as alias → module path.

    Empty for families without customary names.
    """
    for pattern, make_aliases in FAMILY_ALIAS_BUILDERS.items():
        if re.fullmatch(pattern, name):
            aliases = make_aliases(network)
            return {alias: path for alias, path in aliases.items() if has_submodule(network, path)}
    return {}


def has_submodule(network: nn.Module, path: str) -> bool:
    """Whether a network has a module of this path."""
    try:
        network.get_submodule(path)
    except AttributeError:
        return False
    return True


def make_vgg_aliases(network: nn.Module) -> dict[str, str]:
    """conv1_1, relu1_1, pool1, …, fc8, as in Simonyan & Zisserman 2015."""
    kinds = {"Conv2d": "conv", "BatchNorm2d": "bn", "ReLU": "relu"}
    aliases = dict(VGG_CLASSIFIER_ALIASES)
    block = 1
    convolution = 0
    for index, layer in network.get_submodule("features").named_children():
        if isinstance(layer, nn.MaxPool2d):
            aliases[f"pool{block}"] = f"features.{index}"
            block += 1
            convolution = 0
            continue
        if isinstance(layer, nn.Conv2d):
            convolution += 1
        kind = kinds[type(layer).__name__]
        aliases[f"{kind}{block}_{convolution}"] = f"features.{index}"
    return aliases


def make_alexnet_aliases(network: nn.Module) -> dict[str, str]:
    """conv1, relu1, pool1, …, fc8, as in Krizhevsky et al. 2012."""
    convolution_indices = {1: 0, 2: 3, 3: 6, 4: 8, 5: 10}
    aliases: dict[str, str] = {}
    for number, index in convolution_indices.items():
        aliases[f"conv{number}"] = f"features.{index}"
        aliases[f"relu{number}"] = f"features.{index + 1}"
    for number in (1, 2, 5):
        aliases[f"pool{number}"] = f"features.{convolution_indices[number] + 2}"
    return {
        **aliases,
        "fc6": "classifier.1",
        "relu6": "classifier.2",
        "fc7": "classifier.4",
        "relu7": "classifier.5",
        "fc8": "classifier.6",
    }


def make_squeezenet_aliases(network: nn.Module) -> dict[str, str]:
    """conv1, fire2, …, fire9, conv10, as in Iandola et al. 2016."""
    aliases = {"conv1": "features.0", "relu1": "features.1", "conv10": "classifier.1"}
    number = 2
    for index, layer in network.get_submodule("features").named_children():
        if type(layer).__name__ == "Fire":
            aliases[f"fire{number}"] = f"features.{index}"
            number += 1
    return aliases


def make_inception_aliases(network: nn.Module) -> dict[str, str]:
    """mixed3a, …: the modules' numbers in the spelling of the literature."""
    aliases: dict[str, str] = {}
    for name, _ in network.named_children():
        alias = re.sub(r"^(inception|mixed_)", "mixed", name.lower())
        if name not in ("AuxLogits", alias):
            aliases[alias] = name
    return aliases


def make_resnet_aliases(network: nn.Module) -> dict[str, str]:
    """conv2_x, …, conv5_x, as in He et al. 2016, table 1; conv3_2 is the second block."""
    aliases: dict[str, str] = {}
    for stage in range(1, 5):
        aliases[f"conv{stage + 1}_x"] = f"layer{stage}"
    for stage in range(1, 5):
        for block, _ in network.get_submodule(f"layer{stage}").named_children():
            aliases[f"conv{stage + 1}_{int(block) + 1}"] = f"layer{stage}.{block}"
    return aliases


def make_numbered_aliases(
    alias_prefix: str, path_prefix: str, count: int, step: int = 1
) -> dict[str, str]:
    """prefix1 → path1, prefix2 → path(1 + step), prefix3 → path(1 + 2·step), …"""
    aliases: dict[str, str] = {}
    for i in range(count):
        aliases[f"{alias_prefix}{1 + i}"] = f"{path_prefix}{1 + i * step}"
    return aliases


def make_mobilenet_aliases(network: nn.Module) -> dict[str, str]:
    """stem, block1, …, block17, head: the rows of Sandler et al. 2018, table 2, unrolled."""
    blocks = make_numbered_aliases("block", "features.", 17)
    return {"stem": "features.0", "head": "features.18", **blocks}


def make_densenet_aliases(network: nn.Module) -> dict[str, str]:
    """dense1, transition1, …, dense4, as in Huang et al. 2017, table 1."""
    dense_blocks = make_numbered_aliases("dense", "features.denseblock", 4)
    transitions = make_numbered_aliases("transition", "features.transition", 3)
    return {**dense_blocks, **transitions}


def make_convnext_aliases(network: nn.Module) -> dict[str, str]:
    """stem, stage1, …, stage4, without the downsampling between the stages (Liu et al. 2022)."""
    return {"stem": "features.0", **make_numbered_aliases("stage", "features.", 4, step=2)}


def make_efficientnet_aliases(network: nn.Module) -> dict[str, str]:
    """stem, stage1, …, stage7, head: stages 1 to 9 of Tan & Le 2019, table 1."""
    stages = make_numbered_aliases("stage", "features.", 7)
    return {"stem": "features.0", "head": "features.8", **stages}


def make_vit_aliases(network: nn.Module) -> dict[str, str]:
    """patches, block0, block1, …: the patch embedding and the encoder's layers."""
    layer_prefix = "encoder.layers.encoder_layer_"
    later_blocks = make_numbered_aliases("block", layer_prefix, 31)
    return {"patches": "conv_proj", "block0": f"{layer_prefix}0", **later_blocks}


VGG_CLASSIFIER_ALIASES = {
    "fc6": "classifier.0",
    "relu6": "classifier.1",
    "fc7": "classifier.3",
    "relu7": "classifier.4",
    "fc8": "classifier.6",
}

FAMILY_ALIAS_BUILDERS: dict[str, Callable[[nn.Module], dict[str, str]]] = {
    r"alexnet": make_alexnet_aliases,
    r"vgg\d+(_bn)?": make_vgg_aliases,
    r"squeezenet1_\d": make_squeezenet_aliases,
    r"googlenet|inception_v3": make_inception_aliases,
    r"resnet\d+": make_resnet_aliases,
    r"mobilenet_v2": make_mobilenet_aliases,
    r"densenet\d+": make_densenet_aliases,
    r"convnext_\w+": make_convnext_aliases,
    r"efficientnet_b\d": make_efficientnet_aliases,
    r"vit_\w+": make_vit_aliases,
}

# Landmarks that the structure alone does not tell, as aliases.
FAMILY_LANDMARKS = {
    r"alexnet": {"middle": "relu3", "last_conv": "relu5"},
    r"vgg.*": {"middle": "relu4_2"},
    r"squeezenet.*": {"middle": "fire6", "last_conv": "fire9", "penultimate": "conv10:in"},
    r"googlenet": {"middle": "mixed4c"},
    r"inception_v3": {"middle": "mixed6b"},
    r"resnet\d+": {"middle": "conv4_x"},
    r"mobilenet_v2": {"middle": "block10"},
    r"densenet\d+": {"middle": "dense3"},
    r"convnext_\w+": {"middle": "stage3"},
    r"efficientnet_b\d": {"middle": "stage5"},
    r"vit_\w+": {"middle": "block6"},
}


def find_family_landmarks(name: str, aliases: Mapping[str, str]) -> dict[str, str]:
    """Landmarks of a torchvision network as layer names, where the guess would not be customary."""
    landmarks: dict[str, str] = {}
    for pattern, family_landmarks in FAMILY_LANDMARKS.items():
        if re.fullmatch(pattern, name):
            landmarks = dict(family_landmarks)
            break
    if name.startswith("vgg"):
        # The last one: relu5_2, relu5_3 or relu5_4.
        landmarks["last_conv"] = [alias for alias in aliases if alias.startswith("relu5_")][-1]
    resolved: dict[str, str] = {}
    for landmark, target in landmarks.items():
        alias, colon, suffix = target.partition(":")
        resolved[landmark] = f"{aliases[alias]}{colon}{suffix}"
    return resolved
