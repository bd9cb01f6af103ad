"""Networks of torchvision that detect objects or segment images."""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from sightline.models.zoo.libraries.construction import (
    build_network_with_weights,
    construct_network,
)
from sightline.models.zoo.libraries.settings import BuiltNetwork, ModelSettings
from sightline.models.zoo.libraries.torchvision_classifiers import download_torchvision_network

# The layers that score classes; there may be several scores of a class, one for each anchor.
CLASS_SCORE_KEYS = re.compile(
    r"""
    roi_heads\.box_predictor\.cls_score\..*
    | head\.classification_head\.(?:.*\.)?(?:cls_logits|module_list)\..*\.?(?:weight|bias)
    | classifier\.(?:4|low_classifier)\.(?:weight|bias)
    """,
    re.VERBOSE,
)

AUXILIARY_HEAD = "aux_classifier."


def build_torchvision_detector(
    name: str, weights: str | None, options: dict[str, Any]
) -> BuiltNetwork:
    """A detector of torchvision, which resizes and normalizes images itself."""
    network, labels = _build_dense_network(name, weights, options)
    settings = find_detector_settings(network)
    settings["labels"] = labels
    return BuiltNetwork(network, settings)


def build_torchvision_segmenter(
    name: str, weights: str | None, options: dict[str, Any]
) -> BuiltNetwork:
    """A network of torchvision that segments images, for the size of its published weights."""
    from torchvision import models

    network, labels = _build_dense_network(name, weights, options)
    transforms = models.get_model_weights(name).DEFAULT.transforms()  # pyright: ignore
    settings = ModelSettings(
        mean=transforms.mean, std=transforms.std, size=transforms.resize_size[0], labels=labels
    )
    return BuiltNetwork(network, settings)


def find_detector_settings(network: nn.Module) -> ModelSettings:
    """No normalization, and the size that the detector's own transform resizes images to.

    Empty for other networks.
    """
    transform = getattr(network, "transform", None)
    if type(transform).__name__ != "GeneralizedRCNNTransform":
        return ModelSettings()
    settings = ModelSettings(mean=(0.0,) * 3, std=(1.0,) * 3)
    fixed_size: Any = getattr(transform, "fixed_size", None)
    min_size: Any = getattr(transform, "min_size", None)
    if fixed_size is not None:
        width, height = fixed_size
        settings["size"] = (int(height), int(width))
    elif min_size:
        settings["size"] = int(min_size[-1])
    return settings


def _build_dense_network(
    name: str, weights: str | None, options: dict[str, Any]
) -> tuple[nn.Module, tuple[str, ...]]:
    """The network, and its labels: those of the published weights if it has their classes."""
    from torchvision import models

    categories = models.get_model_weights(name).DEFAULT.meta["categories"]  # pyright: ignore
    asked_classes = options.get("num_classes")
    class_counts = [asked_classes if isinstance(asked_classes, int) else len(categories)]
    if weights is None:
        network = download_torchvision_network(name, options)
    else:
        has_auxiliary_head = False

        def make_network(classes: int | None) -> nn.Module:
            settings: dict[str, Any] = {"weights": None, "weights_backbone": None}
            if classes is not None:
                settings["num_classes"] = classes
                class_counts.append(classes)
            if has_auxiliary_head:
                settings["aux_loss"] = True
            settings = {**settings, **options}
            return construct_network(name, partial(models.get_model, name, **settings), options)

        def find_classes(network: nn.Module, state_dict: Mapping[str, Tensor]) -> int | None:
            nonlocal has_auxiliary_head
            has_auxiliary_head = any(key.startswith(AUXILIARY_HEAD) for key in state_dict)
            classes = find_scored_classes(network, state_dict, class_counts[0])
            return class_counts[0] if classes is None and has_auxiliary_head else classes

        network = build_network_with_weights(name, make_network, weights, find_classes)
    labels = tuple(categories) if class_counts[-1] == len(categories) else ()
    return network, labels


def find_scored_classes(
    network: nn.Module, state_dict: Mapping[str, Tensor], classes: int
) -> int | None:
    """The number of classes in a file for a network of `classes`; None if it is the same."""
    for key, value in network.state_dict().items():
        if not CLASS_SCORE_KEYS.fullmatch(key) or key not in state_dict:
            continue
        file_value = state_dict[key]
        if file_value.shape == value.shape:
            continue
        if file_value.ndim != value.ndim or file_value.shape[1:] != value.shape[1:]:
            return None
        file_classes, remainder = divmod(file_value.shape[0] * classes, value.shape[0])
        return None if remainder or file_classes == 0 else file_classes
    return None
