"""Classifiers of torchvision."""

from typing import Any

from torch import nn

from sightline.models.weights.layer_names import find_family_landmarks, find_layer_aliases
from sightline.models.weights.published import adopt_caffe_normalization
from sightline.models.zoo.libraries.construction import (
    VGG_NAMES,
    build_network_with_weights,
    construct_network,
    keep_fitting_labels,
    make_download_error,
    make_option_error,
)
from sightline.models.zoo.libraries.settings import BuiltNetwork, ModelSettings

# Their published weights expect the input transform and the auxiliary heads that the files hold.
INCEPTION_NAMES = ("googlenet", "inception_v3")


def build_torchvision_network(
    name: str, weights: str | None, options: dict[str, Any]
) -> BuiltNetwork:
    """A classifier of torchvision, with the preprocessing of its best published weights."""
    from torchvision import models

    published = models.get_model_weights(name).DEFAULT  # pyright: ignore
    if weights is None:
        network = download_torchvision_network(name, options)
    else:

        def make_network(classes: int | None) -> nn.Module:
            settings: dict[str, Any] = {} if classes is None else {"num_classes": classes}
            if name in INCEPTION_NAMES:
                settings |= {"transform_input": True, "aux_logits": True, "init_weights": False}
            settings = {**settings, **options}
            return construct_network(
                name, lambda: models.get_model(name, weights=None, **settings), options
            )

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


def download_torchvision_network(name: str, options: dict[str, Any]) -> nn.Module:
    """A network of torchvision with its best published weights.

    Raises SightlineError where they can't be downloaded, and for options that don't go with them.
    """
    from torchvision import models

    published = models.get_model_weights(name).DEFAULT  # pyright: ignore
    try:
        return models.get_model(name, weights=published, **options)
    except (OSError, RuntimeError) as error:  # RuntimeError: the file has another SHA-256
        raise make_download_error(name, error) from error
    except (TypeError, ValueError) as error:
        raise make_option_error(name, options, error) from error
