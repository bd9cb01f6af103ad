"""`load`: a model by the name of its network, or from a module."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sightline.errors import SightlineError, get_first_error_line, make_unknown_name_error
from sightline.models.model import Model
from sightline.models.weights.checkpoint import hash_file
from sightline.models.weights.known_input import check_library_normalization
from sightline.models.zoo.builders import (
    EMBEDDED_WEIGHTS,
    NetworkBuilder,
    build_embedded_network,
    build_imported_network,
    build_timm_network,
    build_torchvision_network,
)
from sightline.models.zoo.names import list_network_names


def load(
    network: str | nn.Module = "sightnet",
    *,
    weights: str | Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    labels: Sequence[str] | None = None,
    size: int | None = None,
    output: int | str | None = None,
    device: str | torch.device | None = None,
    **options: Any,
) -> Model:
    """A `Model` of the embedded network (default), one by name, or any eager `nn.Module`.

    Args:
        network: "sightnet"; a name of torchvision or timm; "package.module:function" for your own
            function that returns a module, or a module and a dict of mean, std, size, resize,
            labels, output (this runs that code); or a module, which is not changed and shares its
            weights.
        weights: file with a state dict (safetensors or torch, loaded with weights_only=True);
            "random" for a seeded random start; None for the pretrained weights of the name's own
            library. Caffe's VGG-16 and VGG-19 are known and bring their own mean and std.
        mean: channel means that normalize a [0, 1] image; one value for networks that see
            luminance.
        std: channel standard deviations, as many as means.
        labels: one name per logit.
        size: side in pixels that the network was made for.
        output: which of several outputs are the logits: index in a tuple, key in a dict.
        device: where to run; by default the module's own device, for a name an accelerator if
            there is one.
        options: passed to the architecture's constructor (`pad_type="same"`).

    Raises SightlineError for unknown names, weights that can't be downloaded, read or fitted, a
    mean and std that known weights were not trained with, and scripted modules.
    """
    arguments: dict[str, Any] = {
        "mean": mean,
        "std": std,
        "labels": labels,
        "size": size,
        "output": output,
    }
    settings = {name: value for name, value in arguments.items() if value is not None}
    if isinstance(network, nn.Module):
        _check_module_arguments(weights, options)
        return Model(
            network,
            device=resolve_device(device) if device else None,
            recipe={"model": type(network).__name__, "built_in_code": True},
            **settings,
        )

    weights_name = None if weights is None else str(weights)
    build_network = find_network_builder(network)
    # Architectures draw random initial weights, whatever replaces them afterwards.
    with torch.random.fork_rng(devices=[]):
        built = build_network(network, weights_name, options)
    if weights is None and ":" not in network:
        check_library_normalization(built.settings, settings, network)
    known_settings: dict[str, Any] = {**built.settings}
    return Model(
        built.network.to(memory_format=torch.channels_last),
        name=network,
        device=resolve_device(device or choose_default_device()),
        recipe=_make_recipe(network, weights_name, {**options, **settings}),
        **{**known_settings, **settings},
    )


def _check_module_arguments(weights: str | Path | None, options: dict[str, Any]) -> None:
    """Raises SightlineError for arguments that a module has no use for."""
    if weights == "random" or options:
        raise SightlineError(
            "weights='random' and constructor options go with a name, "
            "not with a module that is already built"
        )
    if weights is not None:
        raise SightlineError("load the weights into the module first, or give a name with weights=")


def _make_recipe(name: str, weights: str | None, options: dict[str, Any]) -> dict[str, Any]:
    """How to load the same network again: its name, options and weights, with a file's SHA-256."""
    recipe: dict[str, Any] = {"model": name}
    if options:
        recipe["options"] = options
    if weights == "random":
        recipe["weights"] = weights
    elif weights is not None:
        recipe["weights"] = str(Path(weights).resolve())
        recipe["sha256"] = hash_file(Path(weights))
    elif name == "sightnet":
        recipe["sha256"] = hash_file(EMBEDDED_WEIGHTS)
    return recipe


def find_network_builder(name: str) -> NetworkBuilder:
    """The builder of the library that has this network.

    Raises SightlineError with the closest name.
    """
    if name == "sightnet":
        return build_embedded_network
    if ":" in name:
        return build_imported_network
    from torchvision import models

    # torchvision comes first: importing timm takes seconds.
    if name in models.list_models(module=models):
        return build_torchvision_network
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
    candidates = [candidate for names in list_network_names().values() for candidate in names]
    raise make_unknown_name_error("network", name, candidates)


def resolve_device(device: str | torch.device) -> torch.device:
    """The device; raises SightlineError for one that this machine doesn't have."""
    try:
        if torch.device(device).type == "meta":
            raise NotImplementedError("it holds no values")
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise SightlineError(
            f"the device {str(device)!r} can't be used here ({get_first_error_line(error)})"
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
