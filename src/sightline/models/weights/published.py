"""Weights that everyone passes around, known by their first filters: what they must be fed, and the spellings of their files.

Two trainings of VGG go by the same name. Simonyan and Zisserman's own ("Caffe's"), which Gatys painted with, wants BGR from 0 to
255 less a mean; torchvision's wants RGB divided by a deviation. Their files have the same shapes and often the same names.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sightline.models.weights.layer_names import make_vgg_aliases

MIN_FILTER_COSINE = 0.95  # cosine; Caffe's two networks are 0.96 apart, of a million random filters none comes above 0.82


@dataclass(frozen=True)
class PublishedWeights:
    """Weights known by one filter of their first convolution (`index`; 3×3×3 hundredths in the file's order of channels, its norm 1),
    and their input: channels in `order`, (image in [0, 1] − mean) / std, mean and std in the order RGB."""

    name: str
    filter_index: int
    filter_values: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    channel_order: str


# Simonyan and Zisserman's readme; pixels of 0 to 255 are 1/255 apart.
CAFFE_INPUT = (123.68 / 255, 116.779 / 255, 103.939 / 255), (1 / 255, 1 / 255, 1 / 255), "BGR"

IMAGENET_INPUT = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "RGB"

# Each filter tells red from blue, so that it tells the order of channels too.
KNOWN_PUBLISHED_WEIGHTS = (
    PublishedWeights(
        "Caffe's VGG-19",
        22,
        "21 21 20 21 21 20 18 21 19 9 5 8 5 0 3 6 4 6 -20 -27 -21 -27 -35 -28 -22 -27 -22",
        *CAFFE_INPUT,
    ),
    PublishedWeights(
        "Caffe's VGG-16",
        22,
        "24 24 24 25 25 24 23 27 24 0 -4 0 -3 -7 -4 -1 -1 -1 -17 -24 -18 -23 -31 -25 -19 -22 -18",
        *CAFFE_INPUT,
    ),
    PublishedWeights(
        "torchvision's VGG-16",
        0,
        "-28 7 27 -30 18 39 -35 -2 25 9 1 -4 2 -4 -13 7 -9 -7 16 -9 -22 24 -4 -25 32 1 -14",
        *IMAGENET_INPUT,
    ),
    PublishedWeights(
        "torchvision's VGG-19",
        63,
        "-31 -29 -30 -7 13 -3 20 37 29 3 9 -6 -3 17 -15 -6 5 -4 20 29 24 -4 7 -5 -26 -25 -21",
        *IMAGENET_INPUT,
    ),
)


def find_first_convolution(network: nn.Module) -> tuple[str, nn.Conv2d] | None:
    """Path and module of the first convolution, in the order in which they were registered."""
    return next(
        (
            (path, module)
            for path, module in network.named_modules()
            if isinstance(module, nn.Conv2d)
        ),
        None,
    )


def recognize_published_weights(network: nn.Module) -> PublishedWeights | None:
    """The published weights that a network's first convolution has, `order` being the one they are in; None if it is none of them.

    Filters may be scaled, each by its own factor (as in Gatys' normalised VGG), turned to RGB and fine-tuned a little.
    """
    first = find_first_convolution(network)
    weight = first[1].weight if first else torch.empty(0)
    if weight.is_meta or weight.shape != (64, 3, 3, 3):
        return None
    best, cosine = None, MIN_FILTER_COSINE
    for known in KNOWN_PUBLISHED_WEIGHTS:
        found, filter = (
            weight[known.filter_index].detach().float().cpu(),
            torch.tensor([float(value) for value in known.filter_values.split()]),
        )
        for seen, order in (
            (found, known.channel_order),
            (found.flip(0), known.channel_order[::-1]),
        ):
            alike = float(torch.cosine_similarity(seen.flatten(), filter, dim=0))
            if alike > cosine:
                best, cosine = replace(known, channel_order=order), alike
    return best


def convert_vgg_state_dict(
    state_dict: Mapping[str, Tensor], network: nn.Module
) -> tuple[dict[str, Tensor], nn.Module]:
    """A file of VGG's weights in torchvision's names, and the part of torchvision's network that it fills: all, or the features alone.

    Known spellings beside torchvision's: Johnson's (`classifier.1`, `classifier.4`), Gatys' (`conv1_1`), the bare features (`0`)
    and AdaIN's, numbers in a row after a 1×1 convolution that does the preprocessing. Anything else is given back as it is.
    """
    paths = make_vgg_aliases(network)
    modules = list(dict.fromkeys(key.rpartition(".")[0] for key in state_dict))
    renamed: dict[str, str] = {}
    if "classifier.1.weight" in state_dict:
        renamed = {"classifier.1": "classifier.0", "classifier.4": "classifier.3"}
    elif all(re.fullmatch(r"conv\d_\d", module) for module in modules):
        renamed = {module: paths.get(module, module) for module in modules}
    elif all(module.isdigit() for module in modules):
        renamed = {module: f"features.{module}" for module in modules}
        if state_dict.get("0.weight", torch.empty(0)).shape == (3, 3, 1, 1):
            convolutions = [path for alias, path in paths.items() if alias.startswith("conv")]
            renamed |= dict(zip(sorted(modules, key=int)[1:], convolutions, strict=False))
            state_dict = {
                key: value for key, value in state_dict.items() if not key.startswith("0.")
            }
    split = {key: key.rpartition(".") for key in state_dict}
    state_dict = {
        f"{renamed.get(module, module)}{dot}{kind}": state_dict[key]
        for key, (module, dot, kind) in split.items()
    }
    if not any(key.startswith("classifier") for key in state_dict):
        features = nn.Sequential()
        features.add_module("features", network.get_submodule("features"))
        return state_dict, features
    return state_dict, network


def adopt_caffe_normalization(network: nn.Module) -> dict[str, tuple[float, float, float]]:
    """`mean` and `std` that a VGG's weights were trained with, if they are Caffe's: its first filters are turned to RGB. Else nothing."""
    known, first = recognize_published_weights(network), find_first_convolution(network)
    if known is None or first is None or not known.name.startswith("Caffe"):
        return {}
    if known.channel_order == "BGR":
        with torch.no_grad():
            first[1].weight.copy_(first[1].weight.flip(1))
    return {"mean": known.mean, "std": known.std}
