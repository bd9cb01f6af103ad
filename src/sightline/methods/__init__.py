"""The methods, one topic a file. The order here is the lecture's, and the report's."""

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sightline.registry.method import Method

TOPICS = (
    "predictions",
    "units.filters",
    "retrieval.neighbors",
    "retrieval.embedding",
    "units.activations",
    "units.patches",
    "units.labels",
    "attribution.saliency",
    "attribution.occlusion",
    "attribution.rise",
    "attribution.cam",
    "attribution.attention",
    "attribution.segment",
    "attribution.guided",
    "evaluation.trust",
    "evaluation.pointing",
    "synthesis.synthesis",
    "adversarial.adversarial",
    "adversarial.boundary",
    "adversarial.transfer",
    "adversarial.universal",
    "adversarial.patch",
    "synthesis.inversion",
    "synthesis.deepdream",
    "style.stylize",
    "style.norms",
    "texture.texture",
    "style.style",
)


def load_methods() -> "Mapping[str, Method]":
    """Every method by name, with all topics imported, in the order of the table of contents."""
    from sightline.registry.method import METHODS  # imports torch, which --help does without

    order = {
        import_module(f"sightline.methods.{topic}").__name__: number
        for number, topic in enumerate(TOPICS)
    }
    return dict(
        sorted(METHODS.items(), key=lambda item: order.get(item[1].function.__module__, len(order)))
    )
