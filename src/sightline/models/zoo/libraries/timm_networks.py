"""Networks of timm, by name or given as modules."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from sightline.models.weights.checkpoint import read_weights
from sightline.models.weights.layer_names import has_submodule
from sightline.models.weights.local_files import TENSORFLOW_ARCHITECTURES, has_tensorflow_names
from sightline.models.zoo.libraries.construction import (
    build_network_with_weights,
    construct_network,
    keep_fitting_labels,
    make_download_error,
    make_option_error,
)
from sightline.models.zoo.libraries.hub import use_reachable_hub
from sightline.models.zoo.libraries.settings import BuiltNetwork, ModelSettings

# Some networks fold 2×2 or 4×4 pixels into the channels before their first convolution.
SPACE_TO_DEPTH_FACTORS = (4, 16)


def build_timm_network(name: str, weights: str | None, options: dict[str, Any]) -> BuiltNetwork:
    """A classifier of timm, with the preprocessing of its pretrained weights."""
    import timm
    from torchvision.models import AlexNet_Weights

    if weights is None:
        try:
            with use_reachable_hub():
                network = timm.create_model(name, pretrained=True, **options)
        except OSError as error:
            raise make_download_error(name, error) from error
        except Exception as error:  # of a constructor, or of the hub's client when offline
            if options:
                raise make_option_error(name, options, error) from error
            raise make_download_error(name, error) from error
    else:
        architecture = choose_architecture(name, weights)

        def make_network(classes: int | None) -> nn.Module:
            settings: dict[str, Any] = {} if classes is None else {"num_classes": classes}
            settings = {**settings, **options}
            return construct_network(
                name, lambda: timm.create_model(architecture, **settings), options
            )

        network = build_network_with_weights(name, make_network, weights)

    settings = find_timm_settings(network)
    settings["labels"] = keep_fitting_labels(AlexNet_Weights.DEFAULT.meta["categories"], network)
    return BuiltNetwork(network, settings)


def choose_architecture(name: str, weights: str) -> str:
    """timm's architecture for a file of weights, or "random" ones: nearly always the name itself.

    Weights that come from TensorFlow need the architecture that pads as TensorFlow does.
    """
    if name not in TENSORFLOW_ARCHITECTURES or weights == "random":
        return name
    if has_tensorflow_names(read_weights(Path(weights))):
        return TENSORFLOW_ARCHITECTURES[name]
    return name


def find_timm_settings(network: nn.Module) -> ModelSettings:
    """Mean, std, size and crop of a timm network's weights; empty for other networks."""
    if not isinstance(getattr(network, "pretrained_cfg", None), Mapping):
        return ModelSettings()
    from timm.data.config import resolve_model_data_config

    return read_timm_config(resolve_model_data_config(network), network)


def read_timm_config(config: Mapping[str, Any], network: nn.Module) -> ModelSettings:
    """The settings in timm's data configuration, for the channels and size of this network."""
    channels = _count_input_channels(network, default=len(config["mean"]))
    height, width = _find_own_size(network) or tuple(config["input_size"][-2:])
    return ModelSettings(
        mean=_fit_channels(config["mean"], channels),
        std=_fit_channels(config["std"], channels),
        size=height if height == width else (height, width),
        resize=round(min(height, width) / config["crop_pct"]),
    )


def _count_input_channels(network: nn.Module, default: int) -> int:
    """The channels of the image that a network takes, by the first convolution that timm names."""
    config: Any = getattr(network, "pretrained_cfg", None) or {}
    path = config.get("first_conv")
    if not isinstance(path, str) or not has_submodule(network, path):
        return default
    channels = getattr(network.get_submodule(path), "in_channels", default)
    if channels in (default * factor for factor in SPACE_TO_DEPTH_FACTORS):
        return default
    return channels


def _find_own_size(network: nn.Module) -> tuple[int, int] | None:
    """The size that a network's position embedding was built for, None where it has none."""
    size: Any = getattr(getattr(network, "patch_embed", None), "img_size", None)
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        return None
    height, width = size
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def _fit_channels(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """One value for each channel; their average where the network takes other channels."""
    if len(values) == channels:
        return tuple(values)
    return (sum(values) / len(values),) * channels
