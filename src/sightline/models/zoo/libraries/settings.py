"""What comes with a network: the model's settings that belong to its weights."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from torch import nn

from sightline.models.heads.output_head import OutputKind
from sightline.models.network.inputs import ExtraInputs, Preprocess


class ModelSettings(TypedDict, total=False):
    """Keyword arguments of `Model` that come with a network."""

    mean: Sequence[float]
    std: Sequence[float]
    size: int | tuple[int, int]
    resize: int
    labels: Sequence[str]
    output: int | str
    output_kind: OutputKind
    unit: str
    inputs: ExtraInputs
    preprocess: Preprocess
    bands: Sequence[int]
    aliases: Mapping[str, str]
    landmarks: Mapping[str, str]


@dataclass(frozen=True)
class BuiltNetwork:
    """A network with its weights, and the model settings that belong to it."""

    network: nn.Module
    settings: ModelSettings


# Called with the name, the weights (a file, "random" or None for the library's own) and options.
NetworkBuilder = Callable[[str, str | None, dict[str, Any]], BuiltNetwork]
