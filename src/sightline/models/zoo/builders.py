"""Builders of networks by name, one for each library.

A builder is called with the name, the weights (a file, "random" or None for the library's own) and
constructor options.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from sightline.errors import SightlineError, get_first_error_line
from sightline.images.library import ASSETS_FOLDER
from sightline.models.weights.checkpoint import fill_network_weights, read_weights
from sightline.models.weights.layer_names import find_family_landmarks, find_layer_aliases
from sightline.models.weights.published import adopt_caffe_normalization, convert_vgg_state_dict
from sightline.models.zoo.hub import use_reachable_hub
from sightline.models.zoo.sightnet import (
    SIGHTNET_LABELS,
    SIGHTNET_MEAN,
    SIGHTNET_SIZE,
    SIGHTNET_STD,
    make_sightnet,
)

# Files of these come in several spellings and from two trainings.
VGG_NAMES = ("vgg16", "vgg19")

# Their published weights expect the input transform and the auxiliary heads that the files hold.
INCEPTION_NAMES = ("googlenet", "inception_v3")

EMBEDDED_WEIGHTS = ASSETS_FOLDER / "sightnet.safetensors"


class ModelSettings(TypedDict, total=False):
    """Keyword arguments of `Model` that come with a network."""

    mean: Sequence[float]
    std: Sequence[float]
    size: int
    resize: int
    labels: Sequence[str]
    output: int | str
    aliases: Mapping[str, str]
    landmarks: Mapping[str, str]


# What a user's own function may return beside the module.
IMPORTED_SETTINGS = ("mean", "std", "size", "resize", "labels", "output")


@dataclass(frozen=True)
class BuiltNetwork:
    """A network with its weights, and the model settings that belong to it."""

    network: nn.Module
    settings: ModelSettings


NetworkBuilder = Callable[[str, str | None, dict[str, Any]], BuiltNetwork]


def build_embedded_network(name: str, weights: str | None, options: dict[str, Any]) -> BuiltNetwork:
    """The network that comes with Sightline."""
    make_network = partial(make_sightnet, **options)
    network = build_network_with_weights(name, make_network, weights or str(EMBEDDED_WEIGHTS))
    settings = ModelSettings(
        mean=SIGHTNET_MEAN,
        std=SIGHTNET_STD,
        size=SIGHTNET_SIZE,
        labels=keep_fitting_labels(SIGHTNET_LABELS, network),
        landmarks={"middle": "relu4_1"},
    )
    return BuiltNetwork(network, settings)


def build_imported_network(name: str, weights: str | None, options: dict[str, Any]) -> BuiltNetwork:
    """The module that the user's own function makes; a file of weights must fit it."""
    make_network = import_function(name)
    result = make_network(**options)
    network, settings = result, {}
    if isinstance(result, tuple) and len(result) == 2:
        network, settings = result
    is_network = isinstance(network, nn.Module)
    if (
        not is_network
        or not isinstance(settings, dict)
        or not set(settings) <= set(IMPORTED_SETTINGS)
    ):
        raise SightlineError(
            f"{name} must return an nn.Module, or one and a dict of "
            f"{', '.join(IMPORTED_SETTINGS)}; it returned {result!r:.80}"
        )
    if weights is not None and weights != "random":
        path = Path(weights)
        fill_network_weights(network, read_weights(path), path, name)
    return BuiltNetwork(network, ModelSettings(**settings))


def import_function(name: str) -> Callable[..., Any]:
    """The function behind "package.module:function"; raises SightlineError if there is none."""
    module, _, function = name.partition(":")
    try:
        # As with `python -m`, code in the working folder counts.
        sys.path.insert(0, "")
        return getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise SightlineError(
            f"{name} can't be imported ({error}); package.module:function is expected"
        ) from error
    finally:
        sys.path.remove("")


def build_torchvision_network(
    name: str, weights: str | None, options: dict[str, Any]
) -> BuiltNetwork:
    """A classifier of torchvision, with the preprocessing of its best published weights."""
    from torchvision import models

    published = models.get_model_weights(name).DEFAULT  # pyright: ignore
    if weights is None:
        try:
            network = models.get_model(name, weights=published, **options)
        except (OSError, RuntimeError) as error:  # RuntimeError: the file has another SHA-256
            raise make_download_error(name, error) from error
    else:

        def make_network(classes: int = 1000) -> nn.Module:
            settings: dict[str, Any] = {"num_classes": classes}
            if name in INCEPTION_NAMES:
                settings |= {"transform_input": True, "aux_logits": True, "init_weights": False}
            return models.get_model(name, weights=None, **{**settings, **options})

        network = build_network_with_weights(name, make_network, weights)

    transforms = published.transforms()
    aliases = find_layer_aliases(name, network)
    settings = ModelSettings(
        mean=transforms.mean,
        std=transforms.std,
        size=transforms.crop_size[0],
        resize=transforms.resize_size[0],
        labels=keep_fitting_labels(published.meta["categories"], network),
        aliases=aliases,
        landmarks=find_family_landmarks(name, aliases),
    )
    if name in VGG_NAMES:
        caffe = adopt_caffe_normalization(network)
        if caffe:
            settings["mean"] = caffe["mean"]
            settings["std"] = caffe["std"]
    return BuiltNetwork(network, settings)


def build_timm_network(name: str, weights: str | None, options: dict[str, Any]) -> BuiltNetwork:
    """A classifier of timm, with the preprocessing of its pretrained weights."""
    import timm
    from timm.data.config import resolve_model_data_config
    from torchvision.models import AlexNet_Weights

    if weights is None:
        try:
            with use_reachable_hub():
                network = timm.create_model(name, pretrained=True, **options)
        except Exception as error:  # the hub's client raises many kinds of error when offline
            raise make_download_error(name, error) from error
    else:

        def make_network(classes: int | None = None) -> nn.Module:
            settings: dict[str, Any] = {} if classes is None else {"num_classes": classes}
            return timm.create_model(name, **{**settings, **options})

        network = build_network_with_weights(name, make_network, weights)

    config = resolve_model_data_config(network)
    size = config["input_size"][-1]
    settings = ModelSettings(
        mean=config["mean"],
        std=config["std"],
        size=size,
        resize=round(size / config["crop_pct"]),
        labels=keep_fitting_labels(AlexNet_Weights.DEFAULT.meta["categories"], network),
    )
    return BuiltNetwork(network, settings)


def make_download_error(name: str, error: Exception) -> SightlineError:
    """The error for pretrained weights that can't be downloaded."""
    return SightlineError(
        f"the pretrained weights of {name} can't be downloaded ({get_first_error_line(error)}); "
        "give a file with weights=FILE"
    )


def build_network_with_weights(
    name: str, make_network: Callable[..., nn.Module], weights: str
) -> nn.Module:
    """The architecture with weights from a file, or seeded "random" ones.

    `make_network` takes the number of classes; a file's fine-tuned head sets it.
    """
    if weights == "random":
        torch.manual_seed(0)
        return make_network()
    path = Path(weights)
    state_dict = read_weights(path)
    network = make_network()
    if name in VGG_NAMES:
        state_dict, network = convert_vgg_state_dict(state_dict, network)
    classes = find_fine_tuned_classes(network, state_dict)
    if classes is not None:
        network = make_network(classes)
    fill_network_weights(network, state_dict, path, name)
    return network


def find_fine_tuned_classes(network: nn.Module, state_dict: Mapping[str, Tensor]) -> int | None:
    """The number of classes in a file that differs from the architecture in nothing else."""
    expected = network.state_dict()
    classes = count_classes(network)
    shared_keys = [key for key in expected if key in state_dict]
    if not shared_keys:
        return None
    head = state_dict[shared_keys[-1]]
    if head.ndim == 0 or head.shape[0] == classes:
        return None
    for key in shared_keys:
        expected_shape = expected[key].shape
        shape = state_dict[key].shape
        if shape == expected_shape:
            continue
        if expected_shape[:1] != (classes,) or expected_shape[1:] != shape[1:]:
            return None
    return head.shape[0]


def count_classes(network: nn.Module) -> int:
    """The number of logits of a classifier: the first dimension of its last parameter."""
    parameters = list(network.parameters())
    return parameters[-1].shape[0] if parameters else 0


def keep_fitting_labels(labels: Sequence[str], network: nn.Module) -> Sequence[str]:
    """The labels of published weights, or none where the network has other classes."""
    return labels if len(labels) == count_classes(network) else ()
