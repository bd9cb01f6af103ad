"""`load`: a model by the name of its network, or from a module."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sightline.errors import SightlineError, escape_for_display, get_first_error_line
from sightline.models.heads.output_head import OutputKind
from sightline.models.model import Model
from sightline.models.network.inputs import ExtraInputs, Preprocess
from sightline.models.network.preprocessing import check_channel_statistics, check_image_size
from sightline.models.weights.known_input import check_library_normalization
from sightline.models.weights.local_files import find_local_weights
from sightline.models.zoo.arguments import (
    check_network,
    check_settings,
    check_weights,
    resolve_output_kind,
    scale_resize,
)
from sightline.models.zoo.builders import find_network_builder
from sightline.models.zoo.given_modules import find_module_settings
from sightline.models.zoo.libraries.settings import ModelSettings
from sightline.models.zoo.names import EMBEDDED_NETWORKS
from sightline.models.zoo.recipe import make_model_recipe


def load(
    network: str | nn.Module = "sightnet",
    *,
    weights: str | Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    labels: Sequence[str] | None = None,
    size: int | tuple[int, int] | None = None,
    output: int | str | None = None,
    output_kind: OutputKind | None = None,
    multilabel: bool = False,
    unit: str | None = None,
    inputs: ExtraInputs | None = None,
    preprocess: Preprocess | None = None,
    bands: Sequence[int] | None = None,
    device: str | torch.device | None = None,
    **options: Any,
) -> Model:
    """A `Model` of the embedded network (default), one by name, or any eager `nn.Module`.

    Args:
        network: "sightnet"; a name of torchvision (detectors and segmentation too) or timm;
            "hf:NAME" or "hf:FOLDER" for transformers, with safetensors weights and without code;
            "package.module:function" for your own function that returns a module, or a module and a
            dict of mean, std, size, resize, labels, output, output_kind, multilabel, unit, inputs,
            preprocess, bands (this runs that code); or a module, which is not changed and shares
            its weights. Modules of timm, transformers and open_clip, and detectors of torchvision,
            bring mean, std, size and labels along.
        weights: file with a state dict (safetensors or torch, loaded with weights_only=True);
            "random" for a seeded random start; None for the pretrained weights of the name: a file
            NAME.safetensors, NAME.pth or NAME.pt in the folder that SIGHTLINE_WEIGHTS names, an
            installed package (extra `imagenet`: efficientnet_lite0), or else a download by the
            library that has the network. Caffe's VGG-16 and VGG-19 are known and bring their own
            mean and std.
        mean: channel means that normalize a [0, 1] image; one value for networks that see
            luminance, as many as bands for other images.
        std: channel standard deviations, as many as means.
        labels: one name per logit.
        size: side in pixels that the network was made for, or (height, width).
        output: which of several outputs are the scores: an index in a tuple, a key in a dict, or a
            path such as "heads.sex".
        output_kind: what the output means, where it can't be found from its values: "logits",
            "probabilities", "binary", "multilabel", "regression" or "embedding".
        multilabel: True is short for output_kind="multilabel": labels don't exclude each other.
        unit: of a regression, such as "years".
        inputs: further inputs of the network by the name of `forward`'s parameter, or a function of
            the batch size that returns them.
        preprocess: a function from an image N×C×H×W in [0, 1] to what the network takes, which
            replaces normalization; or words for its layout: "bgr", "0..255", "nhwc", "uint8".
        bands: which three bands pictures of an image with other channels show as red, green and
            blue.
        device: where to run; by default the module's own device, for a name an accelerator if
            there is one.
        options: passed to the architecture's constructor (`pad_type="same"`).

    Raises SightlineError for whatever is no network, unknown names and options, weights that can't
    be downloaded, read or fitted, a mean and std that known weights were not trained with, and
    scripted modules.
    """
    check_network(network)
    arguments: dict[str, Any] = {
        "mean": mean,
        "std": std,
        "labels": labels,
        "size": size,
        "output": output,
        "output_kind": resolve_output_kind(output_kind, multilabel),
        "unit": unit,
        "inputs": inputs,
        "preprocess": preprocess,
        "bands": bands,
    }
    settings = {name: value for name, value in arguments.items() if value is not None}
    check_settings(settings)
    if isinstance(network, nn.Module):
        _check_module_arguments(weights, options)
        return Model(
            network,
            device=resolve_device(device) if device is not None else None,
            recipe={"model": type(network).__name__, "built_in_code": True},
            **_merge_settings(find_module_settings(network), settings),
        )

    weights_name = check_weights(weights) or _find_pretrained_file(network)
    build_network = find_network_builder(network)
    # Architectures draw random initial weights, whatever replaces them afterwards.
    with torch.random.fork_rng(devices=[]):
        built = build_network(network, weights_name, options)
    if weights_name is None and ":" not in network:
        together = {**built.settings, **settings}
        check_channel_statistics(together["mean"], together["std"])
        check_library_normalization(built.settings, settings, network)
    model = Model(
        built.network.to(memory_format=torch.channels_last),
        name=network,
        device=resolve_device(choose_default_device() if device is None else device),
        recipe=make_model_recipe(network, weights_name, {**options, **settings}),
        **_merge_settings(built.settings, settings),
    )
    model.weights_note = describe_weights(built.network, weights_name)
    return model


def _find_pretrained_file(network: str) -> str | None:
    """A file on this machine with a network's pretrained weights; None leaves them to its library.

    Raises SightlineError where SIGHTLINE_WEIGHTS names no folder.
    """
    if network in EMBEDDED_NETWORKS or ":" in network:
        return None
    path = find_local_weights(network)
    return None if path is None else str(path)


def describe_weights(network: nn.Module, weights: str | None) -> str:
    """What every result has to say of the weights; empty where there is nothing to warn of."""
    if weights == "random":
        return "The network's weights are random: it has learned nothing."
    children = list(dict(network.named_children()))
    if weights is not None and isinstance(network, nn.Sequential) and children == ["features"]:
        return (
            f"{escape_for_display(Path(weights).name)} holds no classifier: what is called a class "
            "is a channel of the last feature map, averaged over the image."
        )
    return ""


def _check_module_arguments(weights: object, options: Mapping[str, Any]) -> None:
    """Raises SightlineError for arguments that a module has no use for."""
    if weights == "random" or options:
        raise SightlineError(
            "weights='random' and constructor options go with a name, "
            "not with a module that is already built"
        )
    if weights is not None:
        raise SightlineError("load the weights into the module first, or give a name with weights=")


def _merge_settings(known: ModelSettings, given: Mapping[str, Any]) -> dict[str, Any]:
    """What comes with a network, replaced by what the caller gave.

    The caller's own preprocessing replaces a known normalization, and a size of the caller's own
    keeps the share of the known crop.
    """
    merged: dict[str, Any] = {**known}
    if "preprocess" in given:
        merged.pop("mean", None)
        merged.pop("std", None)
    if "size" in given and "size" in known and "resize" in known:
        old_size = check_image_size(known["size"])
        merged["resize"] = scale_resize(known["resize"], old_size, check_image_size(given["size"]))
    return {**merged, **given}


def resolve_device(device: str | torch.device) -> torch.device:
    """The device; raises SightlineError for one that this machine doesn't have."""
    try:
        if torch.device(device).type == "meta":
            raise NotImplementedError("it holds no values")
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        raise SightlineError(
            f"the device {str(device)!r:.60} can't be used here ({get_first_error_line(error)})"
        ) from error


def choose_default_device() -> str:
    """The device of a network that is loaded by name: an accelerator if there is one."""
    if torch.cuda.is_available():
        return "cuda"
    if torch.backends.mps.is_available():
        return "mps"
    return "cpu"


def load_other_network(network_name: str, device: torch.device) -> Model:
    """The model of "NAME" or "NAME=FILE", for methods that compare two networks.

    Raises SightlineError for an empty name, and as `load` does.
    """
    name, _, weights = network_name.partition("=")
    if not name:
        raise SightlineError(
            f"the other network is {network_name!r}; "
            "it must be a network's name, or NAME=FILE with its weights"
        )
    # To build a network draws random numbers, which the caller's must not depend on.
    with torch.random.fork_rng(devices=[]):
        return load(name, weights=weights or None, device=str(device))
