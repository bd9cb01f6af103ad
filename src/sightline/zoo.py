"""Names to networks: architecture, weights, preprocessing, labels, human layer names, landmarks."""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import SightlineError, unknown
from .model import Model
from .sightnet import LABELS, MEAN, SIZE, STD, sightnet
from .weights import fill, read_weights

EMBEDDED = Path(__file__).parent / "assets" / "sightnet.safetensors"


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
    """A `Model` from the embedded network (default), a torchvision or timm name, or any eager `nn.Module`.

    Args:
        network: "sightnet", a name of torchvision or timm, or a module (left untouched; its weights are shared).
        weights: file with a state dict (safetensors or torch, loaded with weights_only=True); "random" for a seeded
            random start; None for the pretrained weights of the name's own library.
        mean: channel means that normalize a [0, 1] image; one value for networks that see luminance.
        std: channel standard deviations, as many as means.
        labels: one name per logit.
        size: side in pixels that the network was made for.
        output: which of several outputs are the logits: index in a tuple, key in a dict.
        device: where to run; the module's own device, or an accelerator if there is one for a name.
        options: passed to the architecture's constructor (`pad_type="same"`).

    Raises SightlineError for unknown names, weights that can't be downloaded, read or fitted, and scripted modules.
    """
    given: dict[str, Any] = {"mean": mean, "std": std, "labels": labels, "size": size, "output": output}
    given = {name: value for name, value in given.items() if value is not None}
    if isinstance(network, nn.Module):
        if weights == "random" or options:
            raise SightlineError("weights='random' and constructor options go with a name, not with a module that is already built")
        if weights is not None:
            raise SightlineError("load the weights into the module before giving it, or give a name with weights=")
        return Model(network, device=device, recipe={"model": type(network).__name__}, **given)
    build = builder(network)
    body, facts = build(network, str(weights) if weights is not None else None, options)
    recipe: dict[str, Any] = {"model": network, **({"options": {**options, **given}} if options or given else {})}
    if weights is not None:
        recipe["weights"] = str(weights)
        if weights != "random":
            recipe["sha256"] = hashlib.sha256(Path(weights).read_bytes()).hexdigest()
    body = body.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if facts.get("labels") and len(facts["labels"]) != facts.pop("classes"):
        del facts["labels"]
    facts.pop("classes", None)
    return Model(body, name=network, device=device or accelerator(), recipe=recipe, **{**facts, **given})


def accelerator() -> str:
    """The device to use when none is asked for."""
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def names() -> dict[str, list[str]]:
    """Every name that `load` takes, by the library it comes from."""
    import timm
    import torchvision

    return {
        "sightline": ["sightnet"],
        "torchvision": torchvision.models.list_models(module=torchvision.models),
        "timm": timm.list_models(),
    }


Built = tuple[nn.Module, dict[str, Any]]


def builder(name: str) -> Callable[[str, str | None, dict[str, Any]], Built]:
    """The library that knows `name`; raises SightlineError with the nearest name."""
    if name == "sightnet":
        return build_sightnet
    known = names()
    if name in known["torchvision"]:
        return build_torchvision
    if name.split(".", maxsplit=1)[0] in known["timm"]:
        return build_timm
    raise unknown("network", name, [found for library in known.values() for found in library])


def build_sightnet(name: str, weights: str | None, options: dict[str, Any]) -> Built:
    body = filled(name, partial(sightnet, **options), weights or str(EMBEDDED))
    return body, {"mean": MEAN, "std": STD, "size": SIZE, "labels": LABELS, "classes": classes_of(body)}


def build_torchvision(name: str, weights: str | None, options: dict[str, Any]) -> Built:
    from torchvision import models

    best = models.get_model_weights(name).DEFAULT  # type: ignore[attr-defined]  # pyright: ignore
    inception = name in ("googlenet", "inception_v3")
    # The published weights of these two expect the input transform and the auxiliary heads that their files hold.
    extra = {"transform_input": True, "aux_logits": True, "init_weights": False} if inception else {}

    def make(classes: int = 1000) -> nn.Module:
        return models.get_model(name, weights=None, num_classes=classes, **extra, **options)

    if weights is None:
        try:
            body = models.get_model(name, weights=best, **options)
        except OSError as error:
            raise no_download(name, error) from error
    else:
        body = filled(name, make, weights)
    view = best.transforms()
    facts: dict[str, Any] = {"mean": view.mean, "std": view.std, "size": view.crop_size[0], "resize": view.resize_size[0]}
    human = aliases(name, body)
    facts |= {"labels": best.meta["categories"], "classes": classes_of(body), "aliases": human, "landmarks": landmarks(name, human)}
    return body, facts


def build_timm(name: str, weights: str | None, options: dict[str, Any]) -> Built:
    import timm
    from timm.data.config import resolve_model_data_config
    from torchvision.models import AlexNet_Weights

    def make(classes: int | None = None) -> nn.Module:
        return timm.create_model(name, **({} if classes is None else {"num_classes": classes}), **options)

    if weights is None:
        try:
            body = timm.create_model(name, pretrained=True, **options)
        except Exception as error:  # the hub's client raises many kinds of error when there is no network
            raise no_download(name, error) from error
    else:
        body = filled(name, make, weights)
    config = resolve_model_data_config(body)
    side = config["input_size"][-1]
    facts = {"mean": config["mean"], "std": config["std"], "size": side, "resize": round(side / config["crop_pct"])}
    return body, {**facts, "labels": AlexNet_Weights.DEFAULT.meta["categories"], "classes": classes_of(body)}


def no_download(name: str, error: Exception) -> SightlineError:
    """The error for pretrained weights that can't be had."""
    reason = str(error).strip().split("\n")[0]
    return SightlineError(f"the pretrained weights of {name} can't be downloaded ({reason}); give a file with weights=FILE")


def filled(name: str, make: Callable[..., nn.Module], weights: str) -> nn.Module:
    """The architecture with weights from a file, or seeded random ones. A fine-tuned head sets the number of classes."""
    if weights == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return make()
    state, body = read_weights(Path(weights)), make()
    last = next((key for key in reversed(body.state_dict()) if key in state), None)
    classes = classes_of(body)
    if last and state[last].ndim and state[last].shape[0] != classes and same_body(body, state):
        body = make(state[last].shape[0])
    fill(body, state, Path(weights), name)
    return body


def same_body(body: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Whether a file differs from the architecture in the size of the classifier's output alone."""
    wrong = [key for key, value in body.state_dict().items() if key in state and state[key].shape != value.shape]
    classes = classes_of(body)
    return all(body.state_dict()[key].shape[0] == classes and body.state_dict()[key].shape[1:] == state[key].shape[1:] for key in wrong)


def classes_of(body: nn.Module) -> int:
    """Rows of the last weight: the number of logits of a classifier."""
    return next(reversed([p.shape[0] for p in body.parameters()]), 0)


# ── human names ──


def aliases(name: str, body: nn.Module) -> dict[str, str]:
    """Human layer names of a torchvision network: alias to module path. Empty for families without customary names."""
    found = next((make(body) for pattern, make in FAMILIES.items() if re.fullmatch(pattern, name)), {})
    return {alias: path for alias, path in found.items() if has(body, path)}


def has(body: nn.Module, path: str) -> bool:
    """Whether the module path exists."""
    try:
        body.get_submodule(path)
    except AttributeError:
        return False
    return True


def vgg(body: nn.Module) -> dict[str, str]:
    """conv1_1, relu1_1, pool1, …, fc8, as in Simonyan & Zisserman 2015."""
    found, block, i = dict(FULLY_CONNECTED), 1, 0
    for index, layer in body.get_submodule("features").named_children():
        if isinstance(layer, nn.MaxPool2d):
            found[f"pool{block}"] = f"features.{index}"
            block, i = block + 1, 0
            continue
        i += isinstance(layer, nn.Conv2d)
        kind = {nn.Conv2d: "conv", nn.BatchNorm2d: "bn", nn.ReLU: "relu"}[type(layer)]  # type: ignore[index]
        found[f"{kind}{block}_{i}"] = f"features.{index}"
    return found


def alexnet(body: nn.Module) -> dict[str, str]:
    """conv1, relu1, pool1, …, fc8, as in Krizhevsky 2012."""
    convs = {1: 0, 2: 3, 3: 6, 4: 8, 5: 10}
    named = {f"conv{i}": f"features.{at}" for i, at in convs.items()} | {f"relu{i}": f"features.{at + 1}" for i, at in convs.items()}
    pools = {f"pool{i}": f"features.{convs[i] + 2}" for i in (1, 2, 5)}
    return (
        named
        | pools
        | {"fc6": "classifier.1", "relu6": "classifier.2", "fc7": "classifier.4", "relu7": "classifier.5", "fc8": "classifier.6"}
    )


def squeezenet(body: nn.Module) -> dict[str, str]:
    """conv1, fire2, …, fire9, conv10, as in Iandola 2016."""
    fires = [path for path, layer in body.get_submodule("features").named_children() if type(layer).__name__ == "Fire"]
    return {"conv1": "features.0", "relu1": "features.1", "conv10": "classifier.1"} | {
        f"fire{i}": f"features.{at}" for i, at in enumerate(fires, 2)
    }


def inception(body: nn.Module) -> dict[str, str]:
    """mixed3a, …: the modules' numbers in the spelling of the literature."""
    renamed = {name: re.sub(r"^(inception|mixed_)", "mixed", name.lower()) for name, _ in body.named_children()}
    return {alias: name for name, alias in renamed.items() if alias != name}


def resnet(body: nn.Module) -> dict[str, str]:
    """conv2_x, …, conv5_x, as in He 2016, table 1; conv3_2 is the second block of the second stage."""
    found = {f"conv{stage + 1}_x": f"layer{stage}" for stage in range(1, 5)}
    for stage in range(1, 5):
        found |= {f"conv{stage + 1}_{int(i) + 1}": f"layer{stage}.{i}" for i, _ in body.get_submodule(f"layer{stage}").named_children()}
    return found


def numbered(prefix: str, path: str, count: int, step: int = 1, first: int = 1) -> dict[str, str]:
    """prefix1 → path1, prefix2 → path(1 + step), …"""
    return {f"{prefix}{i + first}": f"{path}{1 + i * step}" for i in range(count)}


FULLY_CONNECTED = {"fc6": "classifier.0", "relu6": "classifier.1", "fc7": "classifier.3", "relu7": "classifier.4", "fc8": "classifier.6"}
FAMILIES: dict[str, Callable[[nn.Module], dict[str, str]]] = {
    r"alexnet": alexnet,
    r"vgg\d+(_bn)?": vgg,
    r"squeezenet1_\d": squeezenet,
    r"googlenet|inception_v3": inception,
    r"resnet\d+": resnet,
    r"mobilenet_v2": lambda _: {"stem": "features.0", "head": "features.18", **numbered("block", "features.", 17)},
    r"densenet\d+": lambda _: {**numbered("dense", "features.denseblock", 4), **numbered("transition", "features.transition", 3)},
    r"convnext_\w+": lambda _: {"stem": "features.0", **numbered("stage", "features.", 4, step=2)},
    r"efficientnet_b\d": lambda _: {"stem": "features.0", "head": "features.8", **numbered("stage", "features.", 7)},
    r"vit_\w+": lambda _: {
        "patches": "conv_proj",
        "block0": "encoder.layers.encoder_layer_0",
        **numbered("block", "encoder.layers.encoder_layer_", 31),
    },
}


# Landmarks that can't be told from the structure alone, as aliases or module paths.
LANDMARKS = {
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


def landmarks(name: str, aliases: Mapping[str, str]) -> dict[str, str]:
    """Layer names of a torchvision network's landmarks, where the general rule would not find the customary ones."""
    told = next((marks for pattern, marks in LANDMARKS.items() if re.fullmatch(pattern, name)), {})
    if name.startswith("vgg"):
        told = {**told, "last_conv": next(alias for alias in reversed(list(aliases)) if alias.startswith("relu5_"))}
    return {mark: ":".join([aliases[alias.split(":")[0]], *alias.split(":")[1:]]) for mark, alias in told.items()}
