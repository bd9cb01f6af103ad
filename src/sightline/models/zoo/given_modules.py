"""The settings that a module brings along, by the library that it comes from."""

from torch import nn

from sightline.models.network.copy import unwrap_network
from sightline.models.zoo.libraries.hugging_face_settings import find_hugging_face_settings
from sightline.models.zoo.libraries.open_clip_networks import find_open_clip_settings
from sightline.models.zoo.libraries.settings import ModelSettings
from sightline.models.zoo.libraries.timm_networks import find_timm_settings
from sightline.models.zoo.libraries.torchvision_dense import find_detector_settings


def find_module_settings(network: nn.Module) -> ModelSettings:
    """Mean, std, size, crop and labels of a module, as far as it tells; empty if it tells none."""
    network = unwrap_network(network)
    for find_settings in (
        find_timm_settings,
        find_hugging_face_settings,
        find_open_clip_settings,
        find_detector_settings,
    ):
        settings = find_settings(network)
        if settings:
            return settings
    return ModelSettings()
