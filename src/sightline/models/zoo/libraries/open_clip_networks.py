"""CLIP networks of open_clip, given as modules."""

from typing import Any

from torch import nn

from sightline.models.zoo.libraries.settings import ModelSettings


def find_open_clip_settings(network: nn.Module) -> ModelSettings:
    """Mean, std and size of an open_clip network or its `visual` part, which give an embedding.

    Empty for other networks.
    """
    if not type(network).__module__.startswith("open_clip."):
        return ModelSettings()
    visual = getattr(network, "visual", network)
    preprocessing: Any = getattr(visual, "preprocess_cfg", None)
    if not preprocessing:
        from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

        preprocessing = {
            "mean": getattr(visual, "image_mean", None) or OPENAI_DATASET_MEAN,
            "std": getattr(visual, "image_std", None) or OPENAI_DATASET_STD,
            "size": getattr(visual, "image_size", 224),
        }
    size: Any = preprocessing["size"]
    return ModelSettings(
        mean=preprocessing["mean"],
        std=preprocessing["std"],
        size=size if isinstance(size, int) else (int(size[0]), int(size[1])),
        output_kind="embedding",
    )
