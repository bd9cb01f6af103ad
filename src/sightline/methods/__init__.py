"""The methods, one topic a file, in the order of the lecture and of the report."""

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, get_args, get_type_hints

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
    "evaluation.contrast",
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
    """Every method by name, in the order of TOPICS; methods registered elsewhere come last."""
    from sightline.registry.method import METHODS  # imports torch, which `--help` does without

    modules = [import_module(f"sightline.methods.{topic}").__name__ for topic in TOPICS]
    positions = {module: position for position, module in enumerate(modules)}

    def get_position(method: "Method") -> int:
        return positions.get(method.function.__module__, len(positions))

    methods = sorted(METHODS.values(), key=get_position)
    return {method.name: method for method in methods}


def takes_scan(method: "Method") -> bool:
    """Whether the method's first argument may be a Scan."""
    from sightline.data.store.reader import Scan

    return Scan in get_args(get_type_hints(method.function)["model"])
