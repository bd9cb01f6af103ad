"""Labels and preprocessing of networks of transformers."""

import re
import sys
from typing import Any

from torch import nn

from sightline.models.zoo.libraries.settings import ModelSettings
from sightline.models.zoo.libraries.timm_networks import read_timm_config

# Networks whose output has a score for each of the labels in their configuration.
LABELLED_ARCHITECTURE = re.compile(r"\w+For\w*(?:Classification|Segmentation|Detection)\w*")


def find_hugging_face_settings(network: nn.Module) -> ModelSettings:
    """What the configuration of a module of transformers, and its processor if at hand, tell.

    Empty for other networks. Nothing is downloaded.
    """
    transformers: Any = sys.modules.get("transformers")
    if transformers is None or not isinstance(network, transformers.PreTrainedModel):
        return ModelSettings()
    settings = read_network_config(network)
    source = str(getattr(network.config, "_name_or_path", "") or "")
    try:
        processor = load_image_processor(source, only_local=True) if source else None
    except Exception:  # noqa: BLE001 - the caller has the network; its processor is a bonus
        processor = None
    settings.update(read_image_processor(processor, network))
    return settings


def load_image_processor(source: str, *, only_local: bool) -> Any:
    """The image processor of a folder or name; None where there is none.

    Raises whatever transformers raises for one that can't be read, or that is code.
    """
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(
            source, trust_remote_code=False, local_files_only=only_local
        )
    except OSError:
        return None


def read_network_config(network: nn.Module) -> ModelSettings:
    """Labels and image size from a network's configuration."""
    config: Any = network.config
    settings = ModelSettings()
    if LABELLED_ARCHITECTURE.fullmatch(type(network).__name__):
        labels = read_config_labels(getattr(config, "id2label", None))
        if labels:
            settings["labels"] = labels
    size = read_size(getattr(config, "image_size", None))
    if size is not None:
        settings["size"] = size
    return settings


def read_config_labels(id2label: Any) -> tuple[str, ...]:
    """The labels in order; empty for placeholders («LABEL_3») and where one is missing."""
    if not isinstance(id2label, dict) or set(id2label) != set(range(len(id2label))):
        return ()
    labels = tuple(str(id2label[index]) for index in range(len(id2label)))
    is_placeholder = all(re.fullmatch(r"LABEL_\d+", label) for label in labels)
    return () if is_placeholder else labels


def read_size(value: Any) -> int | tuple[int, int] | None:
    """A side or (height, width) from a number or a pair; None for anything else."""
    pair = (value, value) if isinstance(value, int) else value
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        return None
    height, width = pair
    if not isinstance(height, int) or not isinstance(width, int) or min(height, width) < 1:
        return None
    return height if height == width else (height, width)


def read_image_processor(processor: Any, network: nn.Module) -> ModelSettings:
    """The preprocessing that an image processor of transformers does; empty for None."""
    if processor is None:
        return ModelSettings()
    timm_config: Any = getattr(processor, "data_config", None)
    if isinstance(timm_config, dict):
        return read_timm_config(timm_config, network)

    # A processor works on 0..255, scales that (perhaps to -1..1), and then normalizes; Sightline's
    # images are 0..1.
    scale = 255.0
    if getattr(processor, "do_rescale", None):
        scale *= float(processor.rescale_factor)
    mean = (0.0,) * 3
    std = (1.0,) * 3
    if getattr(processor, "do_normalize", None) and processor.image_mean and processor.image_std:
        mean = tuple(processor.image_mean)
        std = tuple(processor.image_std)
    offset = 1.0 if getattr(processor, "rescale_offset", False) else 0.0
    settings = ModelSettings(
        mean=tuple((value + offset) / scale for value in mean),
        std=tuple(value / scale for value in std),
    )
    if getattr(processor, "do_flip_channel_order", None):
        settings["preprocess"] = "bgr"
    settings.update(_read_resizing(processor))
    return settings


def _read_resizing(processor: Any) -> ModelSettings:
    """Size and resize: what is resized to, and the crop of it."""
    resized = getattr(processor, "size", None) if getattr(processor, "do_resize", None) else None
    cropped = None
    if getattr(processor, "do_center_crop", None):
        cropped = _read_sides(getattr(processor, "crop_size", None))
    short_side = _read_short_side(resized)
    size = cropped or _read_sides(resized) or read_size(short_side)
    if size is None:
        return ModelSettings()
    settings = ModelSettings(size=size)
    crop_share = getattr(processor, "crop_pct", None)
    if cropped is not None and short_side is not None:
        settings["resize"] = short_side
    elif crop_share and short_side is not None:
        settings["resize"] = round(short_side / crop_share)
    return settings


def _read_sides(sides: Any) -> int | tuple[int, int] | None:
    """Height and width of a processor's size; None where it has only a short side."""
    if not sides:
        return None
    return read_size((_get_side(sides, "height"), _get_side(sides, "width")))


def _read_short_side(sides: Any) -> int | None:
    """The short side of a processor's size."""
    if not sides:
        return None
    short_side = _get_side(sides, "shortest_edge")
    if isinstance(short_side, int):
        return short_side
    pair = (_get_side(sides, "height"), _get_side(sides, "width"))
    return min(pair) if read_size(pair) is not None else None


def _get_side(sides: Any, name: str) -> Any:
    """One of the numbers in a processor's size, which is a dict or has attributes."""
    return sides.get(name) if isinstance(sides, dict) else getattr(sides, name, None)
