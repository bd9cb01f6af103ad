"""Weights that are widely passed around, recognized by their first filters.

Two trainings of VGG go by the same name. Simonyan and Zisserman's own ("Caffe's"), which Gatys
used, expects BGR from 0 to 255 less a mean; torchvision's expects RGB divided by a deviation. Their
files have the same shapes and often the same names.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sightline.models.weights.layer_names import make_vgg_aliases

# Cosine similarity. Caffe's two networks are 0.96 apart; of a million random filters none exceeds
# 0.82.
MIN_FILTER_COSINE = 0.95


@dataclass(frozen=True)
class PublishedWeights:
    """Weights recognized by one filter of their first convolution, and what they are fed.

    `filter_values` are the 3×3×3 values of filter `filter_index` in hundredths, in the file's order
    of channels, with norm 1. The input is (image in [0, 1] - mean) / std with `mean` and `std` in
    the order RGB, its channels in `channel_order`.
    """

    name: str
    filter_index: int
    filter_values: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    channel_order: str

    def parse_filter(self) -> Tensor:
        """The filter's values as a tensor 3×3×3."""
        return torch.tensor([float(value) for value in self.filter_values.split()]).view(3, 3, 3)


# Simonyan and Zisserman's readme, for pixels of 0 to 255.
CAFFE_MEAN = (123.68 / 255, 116.779 / 255, 103.939 / 255)
CAFFE_STD = (1 / 255, 1 / 255, 1 / 255)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Each of these filters responds differently to red and blue, so it tells the order of channels too.
KNOWN_PUBLISHED_WEIGHTS = (
    PublishedWeights(
        "Caffe's VGG-19",
        22,
        "21 21 20 21 21 20 18 21 19 9 5 8 5 0 3 6 4 6 -20 -27 -21 -27 -35 -28 -22 -27 -22",
        CAFFE_MEAN,
        CAFFE_STD,
        "BGR",
    ),
    PublishedWeights(
        "Caffe's VGG-16",
        22,
        "24 24 24 25 25 24 23 27 24 0 -4 0 -3 -7 -4 -1 -1 -1 -17 -24 -18 -23 -31 -25 -19 -22 -18",
        CAFFE_MEAN,
        CAFFE_STD,
        "BGR",
    ),
    PublishedWeights(
        "torchvision's VGG-16",
        0,
        "-28 7 27 -30 18 39 -35 -2 25 9 1 -4 2 -4 -13 7 -9 -7 16 -9 -22 24 -4 -25 32 1 -14",
        IMAGENET_MEAN,
        IMAGENET_STD,
        "RGB",
    ),
    PublishedWeights(
        "torchvision's VGG-19",
        63,
        "-31 -29 -30 -7 13 -3 20 37 29 3 9 -6 -3 17 -15 -6 5 -4 20 29 24 -4 7 -5 -26 -25 -21",
        IMAGENET_MEAN,
        IMAGENET_STD,
        "RGB",
    ),
)


def find_first_convolution(network: nn.Module) -> tuple[str, nn.Conv2d] | None:
    """Path and module of the first convolution, in the order of registration."""
    for path, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            return path, module
    return None


def recognize_published_weights(network: nn.Module) -> PublishedWeights | None:
    """The published weights of a network's first convolution, or None if it has none of them.

    `channel_order` of what is returned is the order that the convolution is in. Filters may be
    scaled, each by its own factor (as in Gatys' normalized VGG), flipped to the other order of
    channels, and fine-tuned a little.
    """
    first = find_first_convolution(network)
    if first is None:
        return None
    weight = first[1].weight
    if weight.is_meta or weight.shape != (64, 3, 3, 3):
        return None
    best: PublishedWeights | None = None
    best_cosine = MIN_FILTER_COSINE
    for published in KNOWN_PUBLISHED_WEIGHTS:
        expected = published.parse_filter().flatten()
        filter = weight[published.filter_index].detach().float().cpu()
        orders = {
            published.channel_order: filter,
            published.channel_order[::-1]: filter.flip(0),
        }
        for order, values in orders.items():
            cosine = float(torch.cosine_similarity(values.flatten(), expected, dim=0))
            if cosine > best_cosine:
                best = replace(published, channel_order=order)
                best_cosine = cosine
    return best


def convert_vgg_state_dict(
    state_dict: Mapping[str, Tensor], network: nn.Module
) -> tuple[dict[str, Tensor], nn.Module]:
    """A file of VGG weights under torchvision's names, and the network that it fills.

    That is torchvision's network, or its `features` alone where the file has no classifier. Known
    spellings beside torchvision's: Johnson's (`classifier.1`, `classifier.4`), Gatys' (`conv1_1`),
    the bare features (`0`), and AdaIN's, whose numbers follow a 1×1 convolution that does the
    preprocessing. Other names are left as they are.
    """
    aliases = make_vgg_aliases(network)
    # AdaIN's first convolution only normalizes the image.
    has_preprocessing = _has_preprocessing_convolution(state_dict)
    modules = dict.fromkeys(key.rpartition(".")[0] for key in state_dict)
    if has_preprocessing:
        modules.pop("0")
    renamed = _match_vgg_spelling(modules, aliases, in_sequence=has_preprocessing)

    converted: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        module, dot, parameter = key.rpartition(".")
        if module in modules:
            converted[f"{renamed.get(module, module)}{dot}{parameter}"] = value
    if any(key.startswith("classifier") for key in converted):
        return converted, network
    features = nn.Sequential()
    features.add_module("features", network.get_submodule("features"))
    return converted, features


def _has_preprocessing_convolution(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether these are bare features that begin with a 1×1 convolution of the colors."""
    if not all(key.rpartition(".")[0].isdigit() for key in state_dict):
        return False
    return "0.weight" in state_dict and state_dict["0.weight"].shape == (3, 3, 1, 1)


def _match_vgg_spelling(
    modules: Collection[str], aliases: Mapping[str, str], *, in_sequence: bool
) -> dict[str, str]:
    """A file's module names → torchvision's, for those that differ.

    `in_sequence`: numbers don't count as torchvision's do, but their order is that of the
    convolutions.
    """
    if "classifier.1" in modules:
        return {"classifier.1": "classifier.0", "classifier.4": "classifier.3"}
    if all(re.fullmatch(r"conv\d_\d", module) for module in modules):
        return {module: aliases.get(module, module) for module in modules}
    if not all(module.isdigit() for module in modules):
        return {}
    renamed = {module: f"features.{module}" for module in modules}
    if in_sequence:
        convolutions = [path for alias, path in aliases.items() if alias.startswith("conv")]
        renamed |= zip(sorted(modules, key=int), convolutions, strict=False)
    return renamed


def adopt_caffe_normalization(network: nn.Module) -> dict[str, tuple[float, float, float]]:
    """`mean` and `std` of a VGG with Caffe's weights, whose first filters are flipped to RGB.

    For other weights nothing is changed and the dict is empty.
    """
    published = recognize_published_weights(network)
    first = find_first_convolution(network)
    if published is None or first is None or not published.name.startswith("Caffe"):
        return {}
    if published.channel_order == "BGR":
        weight = first[1].weight
        with torch.no_grad():
            weight.copy_(weight.flip(1))
    return {"mean": published.mean, "std": published.std}
