"""The embedded networks, networks that the user's own code makes, and who builds which name."""

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from sightline.errors import SightlineError, get_first_error_line, make_unknown_name_error
from sightline.images.io.library import ASSETS_FOLDER
from sightline.models.network.guard import describe_user_frame
from sightline.models.weights.checkpoint import fill_network_weights, read_weights
from sightline.models.zoo.arguments import (
    check_not_a_file,
    check_settings,
    resolve_output_kind,
)
from sightline.models.zoo.libraries.construction import (
    build_network_with_weights,
    construct_network,
    keep_fitting_labels,
)
from sightline.models.zoo.libraries.hugging_face import (
    HUGGING_FACE_PREFIX,
    build_hugging_face_network,
)
from sightline.models.zoo.libraries.settings import BuiltNetwork, ModelSettings, NetworkBuilder
from sightline.models.zoo.libraries.timm_networks import build_timm_network
from sightline.models.zoo.libraries.torchvision_classifiers import build_torchvision_network
from sightline.models.zoo.libraries.torchvision_dense import (
    build_torchvision_detector,
    build_torchvision_segmenter,
)
from sightline.models.zoo.names import EMBEDDED_NETWORKS, list_network_names
from sightline.models.zoo.sightnet import (
    SIGHTNET_LABELS,
    SIGHTNET_MEAN,
    SIGHTNET_SIZE,
    SIGHTNET_STD,
    make_sightnet,
)

# The default was trained against adversarial examples, `sightnet_plain` plainly.
EMBEDDED_FILES = {
    "sightnet": "sightnet.safetensors",
    "sightnet_plain": "sightnet_plain.safetensors",
}

# What a user's own function may return beside the module.
IMPORTED_SETTINGS = (
    "mean",
    "std",
    "size",
    "resize",
    "labels",
    "output",
    "output_kind",
    "multilabel",
    "unit",
    "inputs",
    "preprocess",
    "bands",
)

# How timm and others write what is `hf:` here.
OTHER_HUB_PREFIXES = ("hf-hub:", "hf_hub:", "local-dir:")


def find_network_builder(name: str) -> NetworkBuilder:
    """The builder of the library that has this network.

    Raises SightlineError with the closest name, and for networks that take no single image.
    """
    if name in EMBEDDED_NETWORKS:
        return build_embedded_network
    if name.startswith(HUGGING_FACE_PREFIX):
        return build_hugging_face_network
    if name.startswith(OTHER_HUB_PREFIXES):
        source = name.partition(":")[2]
        raise SightlineError(f"{name} is written {HUGGING_FACE_PREFIX}{source} here")
    if ":" in name:
        return build_imported_network
    # torchvision comes first: importing timm takes seconds.
    builder = find_torchvision_builder(name)
    if builder is not None:
        return builder
    import timm

    architecture, dot, tag = name.partition(".")  # timm's names may go on with .TRAINING
    if architecture in timm.list_models():
        trainings = timm.list_models(f"{architecture}.*", pretrained=True)
        if dot and name not in trainings:
            kind = f"training of {architecture}"
            raise make_unknown_name_error(
                kind, tag, [training.partition(".")[2] for training in trainings]
            )
        return build_timm_network
    check_not_a_file(name)
    candidates = [candidate for names in list_network_names().values() for candidate in names]
    raise make_unknown_name_error("network", name, candidates)


def find_torchvision_builder(name: str) -> NetworkBuilder | None:
    """The builder of a network of torchvision; None for other names.

    Raises SightlineError for quantized networks, and those that take a film or two images.
    """
    from torchvision import models

    if name in models.list_models(module=models):
        return build_torchvision_network
    if name in models.list_models(module=models.detection):
        return build_torchvision_detector
    if name in models.list_models(module=models.segmentation):
        return build_torchvision_segmenter
    if name in models.list_models(module=models.quantization):
        raise SightlineError(
            f"{name} is quantized and has no gradients; load {name.removeprefix('quantized_')}"
        )
    if name in models.list_models(module=models.video):
        raise SightlineError(f"{name} takes films, N×C×time×H×W; Sightline takes images")
    if name in models.list_models(module=models.optical_flow):
        raise SightlineError(
            f"{name} compares two images (optical flow); Sightline takes networks of one image"
        )
    return None


def build_embedded_network(name: str, weights: str | None, options: dict[str, Any]) -> BuiltNetwork:
    """A network that comes with Sightline."""

    def make_network(classes: int | None) -> nn.Module:
        settings: dict[str, Any] = {} if classes is None else {"classes": classes}
        settings = {**settings, **options}
        return construct_network(name, lambda: make_sightnet(**settings), options)

    weights_file = weights or str(find_embedded_weights(name))
    network = build_network_with_weights(name, make_network, weights_file)
    settings = ModelSettings(
        mean=SIGHTNET_MEAN,
        std=SIGHTNET_STD,
        size=SIGHTNET_SIZE,
        labels=keep_fitting_labels(SIGHTNET_LABELS, network),
        landmarks={"middle": "relu4_1"},
    )
    return BuiltNetwork(network, settings)


def find_embedded_weights(name: str) -> Path:
    """The file with the weights of a network that comes with Sightline."""
    return ASSETS_FOLDER / EMBEDDED_FILES[name]


def build_imported_network(name: str, weights: str | None, options: dict[str, Any]) -> BuiltNetwork:
    """The module that the user's own function makes; a file of weights must fit it."""
    result = call_imported_function(name, options)
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
    return BuiltNetwork(network, _check_imported_settings(settings))


def _check_imported_settings(settings: dict[str, Any]) -> ModelSettings:
    """The settings as `Model` takes them; None stands for what is not set.

    Raises SightlineError for what is wrong with them.
    """
    settings = {name: value for name, value in settings.items() if value is not None}
    is_multilabel = settings.pop("multilabel", False)
    kind = resolve_output_kind(settings.pop("output_kind", None), is_multilabel)
    if kind is not None:
        settings["output_kind"] = kind
    check_settings(settings)
    return ModelSettings(**settings)


def call_imported_function(name: str, options: dict[str, Any]) -> Any:
    """What the user's own function returns; raises SightlineError for whatever it raises."""
    make_network = import_function(name)
    try:
        return make_network(**options)
    except SightlineError:
        raise
    except Exception as error:  # the caller's own code
        place = describe_user_frame(error.__traceback__)
        raise SightlineError(
            f"{name} fails ({type(error).__name__}: {get_first_error_line(error):.200}){place}"
        ) from error


def import_function(name: str) -> Callable[..., Any]:
    """The function behind "package.module:function"; raises SightlineError if there is none."""
    module, _, function = name.partition(":")
    try:
        # As with `python -m`, code in the working folder counts.
        sys.path.insert(0, "")
        function_object = getattr(import_module(module), function)
    except Exception as error:  # importing runs the caller's own code
        raise SightlineError(
            f"{name} can't be imported ({get_first_error_line(error)}); "
            "package.module:function is expected"
        ) from error
    finally:
        sys.path.remove("")
    if not callable(function_object):
        raise SightlineError(f"{name} is no function; package.module:function is expected")
    return function_object
