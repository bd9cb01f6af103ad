"""Human layer names and landmarks of the networks that people know by heart."""

import re
from collections.abc import Callable, Mapping

from torch import nn


def find_layer_aliases(name: str, network: nn.Module) -> dict[str, str]:
    """Human layer names of a torchvision network: alias to module path. Empty for families without customary names."""
    found = next(
        (
            make(network)
            for pattern, make in FAMILY_ALIAS_BUILDERS.items()
            if re.fullmatch(pattern, name)
        ),
        {},
    )
    return {alias: path for alias, path in found.items() if has_submodule(network, path)}


def has_submodule(network: nn.Module, path: str) -> bool:
    """Whether the module path exists."""
    try:
        network.get_submodule(path)
    except AttributeError:
        return False
    return True


def make_vgg_aliases(network: nn.Module) -> dict[str, str]:
    """conv1_1, relu1_1, pool1, …, fc8, as in Simonyan & Zisserman 2015."""
    found, block, i = dict(VGG_CLASSIFIER_ALIASES), 1, 0
    for index, layer in network.get_submodule("features").named_children():
        if isinstance(layer, nn.MaxPool2d):
            found[f"pool{block}"] = f"features.{index}"
            block, i = block + 1, 0
            continue
        i += isinstance(layer, nn.Conv2d)
        kind = {"Conv2d": "conv", "BatchNorm2d": "bn", "ReLU": "relu"}[type(layer).__name__]
        found[f"{kind}{block}_{i}"] = f"features.{index}"
    return found


def make_alexnet_aliases(network: nn.Module) -> dict[str, str]:
    """conv1, relu1, pool1, …, fc8, as in Krizhevsky 2012."""
    convs = {1: 0, 2: 3, 3: 6, 4: 8, 5: 10}
    named = {f"conv{i}": f"features.{at}" for i, at in convs.items()} | {
        f"relu{i}": f"features.{at + 1}" for i, at in convs.items()
    }
    pools = {f"pool{i}": f"features.{convs[i] + 2}" for i in (1, 2, 5)}
    return (
        named
        | pools
        | {
            "fc6": "classifier.1",
            "relu6": "classifier.2",
            "fc7": "classifier.4",
            "relu7": "classifier.5",
            "fc8": "classifier.6",
        }
    )


def make_squeezenet_aliases(network: nn.Module) -> dict[str, str]:
    """conv1, fire2, …, fire9, conv10, as in Iandola 2016."""
    fires = [
        path
        for path, layer in network.get_submodule("features").named_children()
        if type(layer).__name__ == "Fire"
    ]
    return {"conv1": "features.0", "relu1": "features.1", "conv10": "classifier.1"} | {
        f"fire{i}": f"features.{at}" for i, at in enumerate(fires, 2)
    }


def make_inception_aliases(network: nn.Module) -> dict[str, str]:
    """mixed3a, …: the modules' numbers in the spelling of the literature."""
    renamed = {
        name: re.sub(r"^(inception|mixed_)", "mixed", name.lower())
        for name, _ in network.named_children()
        if name != "AuxLogits"
    }
    return {alias: name for name, alias in renamed.items() if alias != name}


def make_resnet_aliases(network: nn.Module) -> dict[str, str]:
    """conv2_x, …, conv5_x, as in He 2016, table 1; conv3_2 is the second block of the second stage."""
    found = {f"conv{stage + 1}_x": f"layer{stage}" for stage in range(1, 5)}
    for stage in range(1, 5):
        found |= {
            f"conv{stage + 1}_{int(i) + 1}": f"layer{stage}.{i}"
            for i, _ in network.get_submodule(f"layer{stage}").named_children()
        }
    return found


def make_numbered_aliases(
    alias_prefix: str, path_prefix: str, count: int, step: int = 1, first: int = 1
) -> dict[str, str]:
    """prefix1 → path1, prefix2 → path(1 + step), …"""
    return {f"{alias_prefix}{i + first}": f"{path_prefix}{1 + i * step}" for i in range(count)}


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
    r"mobilenet_v2": lambda _: {
        "stem": "features.0",
        "head": "features.18",
        **make_numbered_aliases("block", "features.", 17),
    },
    r"densenet\d+": lambda _: {
        **make_numbered_aliases("dense", "features.denseblock", 4),
        **make_numbered_aliases("transition", "features.transition", 3),
    },
    r"convnext_\w+": lambda _: {
        "stem": "features.0",
        **make_numbered_aliases("stage", "features.", 4, step=2),
    },
    r"efficientnet_b\d": lambda _: {
        "stem": "features.0",
        "head": "features.8",
        **make_numbered_aliases("stage", "features.", 7),
    },
    r"vit_\w+": lambda _: {
        "patches": "conv_proj",
        "block0": "encoder.layers.encoder_layer_0",
        **make_numbered_aliases("block", "encoder.layers.encoder_layer_", 31),
    },
}

# Landmarks that can't be told from the structure alone, as aliases or module paths.
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
    """Layer names of a torchvision network's landmarks, where the general rule would not find the customary ones."""
    told = next(
        (marks for pattern, marks in FAMILY_LANDMARKS.items() if re.fullmatch(pattern, name)), {}
    )
    if name.startswith("vgg"):
        told = {
            **told,
            "last_conv": next(
                alias for alias in reversed(list(aliases)) if alias.startswith("relu5_")
            ),
        }
    return {
        mark: ":".join([aliases[alias.split(":")[0]], *alias.split(":")[1:]])
        for mark, alias in told.items()
    }
