"""Names to networks: architecture, weights, preprocessing, labels, human layer names, landmarks."""

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sightline.errors import SightlineError, get_first_error_line, make_unknown_name_error
from sightline.images.library import ASSETS_FOLDER
from sightline.models.model import Model
from sightline.models.preprocessing import check_library_normalization
from sightline.models.weights.checkpoint import fill_network_weights, hash_file, read_weights
from sightline.models.weights.layer_names import find_family_landmarks, find_layer_aliases
from sightline.models.weights.published import adopt_caffe_normalization, convert_vgg_state_dict
from sightline.models.zoo.sightnet import (
    SIGHTNET_LABELS,
    SIGHTNET_MEAN,
    SIGHTNET_SIZE,
    SIGHTNET_STD,
    make_sightnet,
)

VGG_NAMES = ("vgg16", "vgg19")  # whose files come in other spellings and from another training

EMBEDDED_WEIGHTS = ASSETS_FOLDER / "sightnet.safetensors"


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
    """A `Model` from the embedded network (default), a torchvision or timm name, your own code by name, or any eager `nn.Module`.

    Args:
        network: "sightnet", a name of torchvision or timm, "package.module:function" for your own function that makes a
            module, or a module and a dict of mean, std, size, labels (this runs that code), or a module (left untouched; its weights are shared).
        weights: file with a state dict (safetensors or torch, loaded with weights_only=True); "random" for a seeded
            random start; None for the pretrained weights of the name's own library. Caffe's VGG-16 and VGG-19 are known
            and bring their own mean and std.
        mean: channel means that normalize a [0, 1] image; one value for networks that see luminance.
        std: channel standard deviations, as many as means.
        labels: one name per logit.
        size: side in pixels that the network was made for.
        output: which of several outputs are the logits: index in a tuple, key in a dict.
        device: where to run; the module's own device, or an accelerator if there is one for a name.
        options: passed to the architecture's constructor (`pad_type="same"`).

    Raises SightlineError for unknown names, weights that can't be downloaded, read or fitted, a mean and std that known weights
    were not trained with, and scripted modules.
    """
    given: dict[str, Any] = {
        "mean": mean,
        "std": std,
        "labels": labels,
        "size": size,
        "output": output,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if isinstance(network, nn.Module):
        if weights == "random" or options:
            raise SightlineError(
                "weights='random' and constructor options go with a name, not with a module that is already built"
            )
        if weights is not None:
            raise SightlineError(
                "load the weights into the module before giving it, or give a name with weights="
            )
        return Model(
            network,
            device=resolve_device(device) if device else None,
            recipe={"model": type(network).__name__, "built_in_code": True},
            **given,
        )
    build = find_network_builder(network)
    with torch.random.fork_rng(
        devices=[]
    ):  # architectures draw their first weights, whatever fills them then
        body, facts = build(network, str(weights) if weights is not None else None, options)
    recipe: dict[str, Any] = {
        "model": network,
        **({"options": {**options, **given}} if options or given else {}),
    }
    if weights is not None:
        recipe["weights"] = weights if weights == "random" else str(Path(weights).resolve())
    if (
        file := weights
        if weights not in (None, "random")
        else EMBEDDED_WEIGHTS
        if network == "sightnet" and weights is None
        else None
    ):
        recipe["sha256"] = hash_file(Path(file))
    body = body.to(memory_format=torch.channels_last)
    if facts.get("labels") and len(facts["labels"]) != facts.pop("classes"):
        del facts["labels"]
    facts.pop("classes", None)
    if weights is None and ":" not in network:
        check_library_normalization(facts, given, network)
    return Model(
        body,
        name=network,
        device=resolve_device(device or choose_default_device()),
        recipe=recipe,
        **{**facts, **given},
    )


def resolve_device(device: str | torch.device) -> torch.device:
    """The device; raises SightlineError for one that this machine doesn't have."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise SightlineError(
            f"the device {str(device)!r} can't be used here ({get_first_error_line(error)})"
        ) from error


def choose_default_device() -> str:
    """The device to use when none is asked for."""
    return (
        "cuda"
        if torch.cuda.is_available()
        else "mps"
        if torch.backends.mps.is_available()
        else "cpu"
    )


def list_network_names() -> dict[str, list[str]]:
    """Every name that `load` takes, by the library it comes from."""
    import timm
    import torchvision

    return {
        "sightline": ["sightnet"],
        "torchvision": torchvision.models.list_models(module=torchvision.models),
        "timm": timm.list_models(),
    }


BuiltNetwork = tuple[nn.Module, dict[str, Any]]


def find_network_builder(name: str) -> Callable[[str, str | None, dict[str, Any]], BuiltNetwork]:
    """The library that knows `name`; raises SightlineError with the nearest name."""
    if name == "sightnet":
        return build_embedded_network
    if ":" in name:
        return build_imported_network
    from torchvision import models

    if name in models.list_models(module=models):  # asked first, since timm takes seconds to import
        return build_torchvision_network
    known = list_network_names()
    if name.split(".", maxsplit=1)[0] in known["timm"]:
        return build_timm_network
    raise make_unknown_name_error(
        "network", name, [found for library in known.values() for found in library]
    )


def build_embedded_network(name: str, weights: str | None, options: dict[str, Any]) -> BuiltNetwork:
    body = build_network_with_weights(
        name, partial(make_sightnet, **options), weights or str(EMBEDDED_WEIGHTS)
    )
    return body, {
        "mean": SIGHTNET_MEAN,
        "std": SIGHTNET_STD,
        "size": SIGHTNET_SIZE,
        "labels": SIGHTNET_LABELS,
        "classes": count_classes(body),
        "landmarks": {"middle": "relu4_1"},
    }


def build_imported_network(name: str, weights: str | None, options: dict[str, Any]) -> BuiltNetwork:
    """The module that the user's own function makes; a file of weights must fit it."""
    where, _, what = name.partition(":")
    try:
        # As for `python -m`, code in the working folder counts.
        sys.path.insert(0, "")
        make = getattr(import_module(where), what)
    except (ImportError, AttributeError, ValueError) as error:
        raise SightlineError(
            f"{name} can't be imported ({error}); package.module:function is expected"
        ) from error
    finally:
        sys.path.remove("")
    made = make(**options)
    body, facts = made if isinstance(made, tuple) and len(made) == 2 else (made, {})
    if (
        not isinstance(body, nn.Module)
        or not isinstance(facts, dict)
        or not set(facts) <= {"mean", "std", "size", "resize", "labels", "output"}
    ):
        raise SightlineError(
            f"{name} must make an nn.Module, or one and a dict of mean, std, size, resize, labels, output; it made {made!r:.80}"
        )
    if weights not in (None, "random"):
        fill_network_weights(body, read_weights(Path(str(weights))), Path(str(weights)), name)
    return body, dict(facts)


def build_torchvision_network(
    name: str, weights: str | None, options: dict[str, Any]
) -> BuiltNetwork:
    from torchvision import models

    best = models.get_model_weights(name).DEFAULT  # pyright: ignore
    inception = name in ("googlenet", "inception_v3")
    # The published weights of these two expect the input transform and the auxiliary heads that their files hold.
    extra = (
        {"transform_input": True, "aux_logits": True, "init_weights": False} if inception else {}
    )

    def make(classes: int = 1000) -> nn.Module:
        return models.get_model(name, weights=None, **{"num_classes": classes, **extra, **options})

    if weights is None:
        try:
            body = models.get_model(name, weights=best, **options)
        except (OSError, RuntimeError) as error:  # RuntimeError: the sha256 is another
            raise make_download_error(name, error) from error
    else:
        body = build_network_with_weights(name, make, weights)
    view = best.transforms()
    facts: dict[str, Any] = {
        "mean": view.mean,
        "std": view.std,
        "size": view.crop_size[0],
        "resize": view.resize_size[0],
    }
    if name in VGG_NAMES:
        facts |= adopt_caffe_normalization(body)
    human = find_layer_aliases(name, body)
    facts |= {
        "labels": best.meta["categories"],
        "classes": count_classes(body),
        "aliases": human,
        "landmarks": find_family_landmarks(name, human),
    }
    return body, facts


def build_timm_network(name: str, weights: str | None, options: dict[str, Any]) -> BuiltNetwork:
    import timm
    from timm.data.config import resolve_model_data_config
    from torchvision.models import AlexNet_Weights

    def make(classes: int | None = None) -> nn.Module:
        given: dict[str, Any] = {} if classes is None else {"num_classes": classes}
        return timm.create_model(name, **{**given, **options})

    if weights is None:
        try:
            body = timm.create_model(name, pretrained=True, **options)
        except (
            Exception
        ) as error:  # the hub's client raises many kinds of error when there is no network
            raise make_download_error(name, error) from error
    else:
        body = build_network_with_weights(name, make, weights)
    config = resolve_model_data_config(body)
    side = config["input_size"][-1]
    facts = {
        "mean": config["mean"],
        "std": config["std"],
        "size": side,
        "resize": round(side / config["crop_pct"]),
    }
    return body, {
        **facts,
        "labels": AlexNet_Weights.DEFAULT.meta["categories"],
        "classes": count_classes(body),
    }


def make_download_error(name: str, error: Exception) -> SightlineError:
    """The error for pretrained weights that can't be had."""
    return SightlineError(
        f"the pretrained weights of {name} can't be downloaded ({get_first_error_line(error)}); give a file with weights=FILE"
    )


def build_network_with_weights(
    name: str, make_network: Callable[..., nn.Module], weights: str
) -> nn.Module:
    """The architecture with weights from a file, or seeded random ones. A fine-tuned head sets the number of classes."""
    if weights == "random":
        torch.manual_seed(0)
        return make_network()
    state, body = read_weights(Path(weights)), make_network()
    if name in VGG_NAMES:
        state, body = convert_vgg_state_dict(state, body)
    last = next((key for key in reversed(body.state_dict()) if key in state), None)
    classes = count_classes(body)
    if (
        last
        and state[last].ndim
        and state[last].shape[0] != classes
        and has_other_head_only(body, state)
    ):
        body = make_network(state[last].shape[0])
    fill_network_weights(body, state, Path(weights), name)
    return body


def has_other_head_only(network: nn.Module, state_dict: Mapping[str, Tensor]) -> bool:
    """Whether a file differs from the architecture in the size of the classifier's output alone."""
    wrong = [
        key
        for key, value in network.state_dict().items()
        if key in state_dict and state_dict[key].shape != value.shape
    ]
    classes = count_classes(network)
    return all(
        network.state_dict()[key].shape[0] == classes
        and network.state_dict()[key].shape[1:] == state_dict[key].shape[1:]
        for key in wrong
    )


def count_classes(network: nn.Module) -> int:
    """Rows of the last weight: the number of logits of a classifier."""
    return next(reversed([p.shape[0] for p in network.parameters()]), 0)


def load_other_network(network_name: str, device: torch.device) -> Model:
    """The network of «NAME» or «NAME=FILE»."""
    name, _, weights = network_name.partition("=")
    if not name:
        raise SightlineError(
            f"the other network is {network_name!r}; it must be a network's name, or NAME=FILE with its weights"
        )
    with torch.random.fork_rng(devices=[]):  # to build a network draws numbers
        return load(name, weights=weights or None, device=str(device))
