"""An architecture with random weights or those of a file, whose head sets the classes."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sightline.errors import SightlineError, get_first_error_line
from sightline.models.weights.checkpoint import fill_network_weights, read_weights
from sightline.models.weights.local_files import has_tensorflow_names, rename_in_order
from sightline.models.weights.published import convert_vgg_state_dict

# Files of these come in several spellings and from two trainings.
VGG_NAMES = ("vgg16", "vgg19")

# The network for a number of classes, or for the architecture's own number.
NetworkMaker = Callable[[int | None], nn.Module]


def build_network_with_weights(
    name: str,
    make_network: NetworkMaker,
    weights: str,
    find_classes: Callable[[nn.Module, Mapping[str, Tensor]], int | None] | None = None,
) -> nn.Module:
    """The architecture with weights from a file, or seeded "random" ones.

    `find_classes` finds a file's own number of classes, None where it is the architecture's; by
    default `find_fine_tuned_classes`.
    """
    if weights == "random":
        torch.manual_seed(0)
        return make_network(None)
    path = Path(weights)
    state_dict = read_weights(path)
    network = make_network(None)
    if name in VGG_NAMES:
        state_dict, network = convert_vgg_state_dict(state_dict, network)
    elif has_tensorflow_names(state_dict):
        state_dict = rename_in_order(state_dict, network)
    classes = (find_classes or find_fine_tuned_classes)(network, state_dict)
    if classes is not None:
        network = make_network(classes)
    fill_network_weights(network, state_dict, path, name)
    return network


def construct_network(
    name: str, construct: Callable[[], nn.Module], options: Mapping[str, Any]
) -> nn.Module:
    """What a library's constructor returns; raises SightlineError where it refuses the options."""
    try:
        return construct()
    except Exception as error:
        if not options:
            raise
        raise make_option_error(name, options, error) from error


def make_option_error(name: str, options: Mapping[str, Any], error: Exception) -> SightlineError:
    """The error for constructor options that a network's library refuses."""
    listed = ", ".join(f"{key}={value!r:.40}" for key, value in options.items())
    return SightlineError(
        f"{name} can't be built with {listed} "
        f"({type(error).__name__}: {get_first_error_line(error):.200})"
    )


def make_download_error(name: str, error: Exception) -> SightlineError:
    """The error for pretrained weights that can't be downloaded."""
    return SightlineError(
        f"the pretrained weights of {name} can't be downloaded ({get_first_error_line(error)}); "
        "give a file with weights=FILE"
    )


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
