"""What a scan is of: the network, the dataset, the layers and the numbers kept of each unit.

A store writes the description once, before anything else, as `scan.json`. The aliases below are the
keys of that file, layout version 1; `docs/store.md` describes the layout in prose.
"""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, TypeAdapter

from sightline.errors import SightlineError
from sightline.models.model import Model
from sightline.models.network.preprocessing import format_size

STORE_FORMAT = "sightline scan"
STORE_VERSION = 1

# What a description may say. A number that is larger would be a scan that nobody can make.
StoredCount = Annotated[int, Field(strict=True, ge=0, le=2**48)]
PixelSide = Annotated[int, Field(strict=True, ge=1, le=100_000)]
AxisLength = Annotated[int, Field(strict=True, ge=1, le=2**31 - 1)]

# What is kept of a unit's feature map for every image: its largest value, and its mean.
ResponseKind = Literal["max", "mean"]

RESPONSE_KIND_CHOICES: tuple[tuple[ResponseKind, ...], ...] = ((), ("max",), ("max", "mean"))

# The columns of each kind have these names, with the number of the layer.
RESPONSE_PREFIXES: dict[ResponseKind, str] = {"max": "response_", "mean": "mean_response_"}

FiniteNumber = Annotated[float, Field(strict=True, allow_inf_nan=False)]


def check_response_kinds(kinds: tuple[ResponseKind, ...]) -> tuple[ResponseKind, ...]:
    """The kinds as they are. Raises ValueError for those that no scan keeps together."""
    if kinds not in RESPONSE_KIND_CHOICES:
        raise ValueError(f"no scan keeps {kinds}")
    return kinds


def expand_side(value: Any) -> Any:
    """Height and width for the one number that stands in JSON for a square."""
    return (value, value) if isinstance(value, int) else value


def shorten_size(size: tuple[int, int]) -> int | list[int]:
    """One number for a square, as in stores of earlier versions; else height and width."""
    height, width = size
    return height if height == width else [height, width]


@dataclass(frozen=True)
class NetworkDescription:
    """What decides a network's numbers: the digest of its weights, and its preprocessing."""

    weights: str  # SHA-256 of all parameters and buffers
    mean: tuple[FiniteNumber, ...]
    std: tuple[FiniteNumber, ...]
    # Height and width of what the network sees.
    size: Annotated[
        tuple[PixelSide, PixelSide],
        Field(alias="side"),
        BeforeValidator(expand_side),
        PlainSerializer(shorten_size),
    ]
    # An image is resized until it covers what the network sees, enlarged to this shorter side.
    short_side: Annotated[PixelSide, Field(alias="short")]

    def __str__(self) -> str:
        return (
            f"mean {format_numbers(self.mean)}, std {format_numbers(self.std)}, "
            f"{format_size(self.size)} of {self.short_side} pixels"
        )


@dataclass(frozen=True)
class LayerDescription:
    """A layer whose units the scan follows: how many there are, and the shape of their maps."""

    units: AxisLength
    map_shape: Annotated[tuple[AxisLength, AxisLength], Field(alias="shape")]


@dataclass(frozen=True)
class DatasetDescription:
    """The dataset: its kind, what opens it again, how many files it has, and their digest."""

    kind: str
    source: str | None  # None for a dataset object, which cannot be opened again by name
    count: StoredCount
    sha256: str

    def __str__(self) -> str:
        return f"{self.count} files of {self.source or self.kind}"


@dataclass(frozen=True)
class ScanDescription:
    """All that the content of a store depends on.

    Layers and vectors are in the order in which they are stored: the units of all layers share one
    axis, and `vector_0`, `vector_1`, … are the columns of the vectors.
    """

    recipe: Annotated[dict[str, Any], Field(alias="model")]
    network: NetworkDescription
    model_labels: Annotated[tuple[str, ...], Field(alias="labels")]
    # Aliases and landmarks of layers, with the layers' own names.
    aliases: Annotated[dict[str, str], Field(alias="names")]
    layers: dict[str, LayerDescription]
    vector_lengths: Annotated[dict[str, AxisLength], Field(alias="vectors")]
    k: StoredCount  # strongest images kept of each unit
    class_k: StoredCount  # the same within each class
    sample_size: Annotated[StoredCount, Field(alias="sample")]
    # Images that go through the network at once. Only the last bit of a number depends on it, so
    # scans of different batch sizes are the same scan.
    batch_size: Annotated[AxisLength, Field(alias="batch")]
    dataset: Annotated[DatasetDescription, Field(alias="collection")]
    class_names: tuple[str, ...]
    # The responses kept of every unit to every image; none in stores of earlier versions.
    response_kinds: Annotated[
        tuple[ResponseKind, ...], Field(alias="responses"), AfterValidator(check_response_kinds)
    ] = ()

    def to_json(self) -> dict[str, Any]:
        """The content of `scan.json`, with its keys in their order on disk.

        A scan without responses has no key for them, as in earlier versions.
        """
        fields = _ADAPTER.dump_python(self, by_alias=True, mode="json")
        if not self.response_kinds:
            del fields["responses"]
        return {"format": STORE_FORMAT, "version": STORE_VERSION, **fields}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "ScanDescription":
        """The description in the content of a `scan.json`.

        Raises:
            pydantic.ValidationError: A key is missing, or its value has another type or is out of
                range. Other keys are ignored.
        """
        return _ADAPTER.validate_python(dict(content))

    @property
    def unit_count(self) -> int:
        """Units of all layers together."""
        return sum(layer.units for layer in self.layers.values())

    @property
    def unit_slices(self) -> dict[str, slice]:
        """The slice of each layer on the axis of all units."""
        slices: dict[str, slice] = {}
        start = 0
        for name, layer in self.layers.items():
            slices[name] = slice(start, start + layer.units)
            start += layer.units
        return slices

    @property
    def vector_columns(self) -> dict[str, str]:
        """The column of the images table that holds each layer's vectors."""
        return {layer: f"vector_{number}" for number, layer in enumerate(self.vector_lengths)}

    def name_response_columns(self, kind: ResponseKind) -> dict[str, str]:
        """The column of the images table that holds each layer's responses of a kind."""
        prefix = RESPONSE_PREFIXES[kind]
        return {layer: f"{prefix}{number}" for number, layer in enumerate(self.layers)}


_ADAPTER = TypeAdapter(ScanDescription)


def describe_network(model: Model, size: tuple[int, int]) -> NetworkDescription:
    """Describes a network that sees images of a height and width in pixels."""
    digest = hashlib.sha256()
    for name, value in sorted(model.network.state_dict().items()):
        # Quantized layers pack their weight and bias in a tuple.
        for tensor in value if isinstance(value, tuple) else (value,):
            _update_weights_digest(digest, name, tensor)
    # Units that are off change every number, as other weights do.
    for ablation in model.ablations:
        digest.update(repr(ablation.to_recipe()).encode())

    return NetworkDescription(
        weights=digest.hexdigest(),
        mean=round_statistics(model.mean),
        std=round_statistics(model.std),
        size=size,
        short_side=max(min(size), round(min(size) * model.resize / model.size)),
    )


def _update_weights_digest(digest: Any, name: str, value: Any) -> None:
    """Adds a weight: its name, type and shape, and its bits."""
    if not isinstance(value, torch.Tensor):
        digest.update(f"{name} {value!r}".encode())
        return
    digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
    tensor = value.detach().cpu()
    if tensor.is_quantized:
        tensor = tensor.int_repr()
    elif tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    content = tensor.contiguous().flatten().view(torch.uint8)
    digest.update(content.numpy().data)


def round_statistics(values: torch.Tensor) -> tuple[float, ...]:
    """Per-channel numbers with six digits, so that float32 noise is no difference."""
    return tuple(float(f"{number:.6g}") for number in values.flatten().tolist())


# ── comparison ──

DIFFERENCE_MESSAGES = {
    "network": "another preprocessing",
    "layers": "other layers",
    "vector_lengths": "other vectors",
    "k": "another k",
    "class_k": "another number per class",
    "sample_size": "another sample",
    "dataset": "another dataset, or its files have changed since",
    "class_names": "other classes",
}


def require_same_network(
    path: Path, stored: ScanDescription, recipe: Mapping[str, Any], network: NetworkDescription
) -> None:
    """Raises SightlineError if a store was made by another network, weights or preprocessing."""
    stored_name = stored.recipe.get("model")
    name = recipe.get("model")
    if stored_name != name:
        raise SightlineError(
            f"the store {path} was made with {stored_name}, not {name}; give another --store"
        )
    if stored.network.weights != network.weights:
        raise SightlineError(
            f"the store {path} was made with other weights of {name}; give another --store"
        )
    require_equal(path, "network", stored.network, network)


def require_same_scan(path: Path, stored: ScanDescription, requested: ScanDescription) -> None:
    """Raises SightlineError if a store holds another scan, naming the first difference.

    Batch sizes may differ, the order of the layers, and whether there are responses: an unfinished
    scan keeps the stored ones.
    """
    require_same_network(path, stored, requested.recipe, requested.network)
    for field in DIFFERENCE_MESSAGES:
        require_equal(path, field, getattr(stored, field), getattr(requested, field))


def require_responses(
    path: Path, stored: ScanDescription, requested_kinds: Collection[ResponseKind]
) -> None:
    """Raises SightlineError if a store is made without responses of one of these kinds.

    They can't be added: they need another pass.
    """
    missing_kinds = set(requested_kinds) - set(stored.response_kinds)
    if missing_kinds:
        noun = "responses" if "max" in missing_kinds else "mean responses"
        raise SightlineError(
            f"the store {path} was made without {noun}, which need another pass: "
            "give another --store, or ask for none to use this one as it is"
        )


def require_equal(path: Path, field: str, stored: object, requested: object) -> None:
    """Raises SightlineError if one field of two descriptions differs."""
    if stored == requested:
        return
    raise SightlineError(
        f"the store {path} was made with {DIFFERENCE_MESSAGES[field]} "
        f"({format_field(stored)}, now {format_field(requested)}); give another --store"
    )


def format_field(value: object) -> str:
    """A field's value on one short line: the names of a dict or tuple, or the value itself."""
    text = ", ".join(map(str, value)) if isinstance(value, (dict, tuple)) else str(value)
    return f"{text:.80}"


def format_numbers(values: tuple[float, ...]) -> str:
    """Numbers beside each other: «0.5 0.25»."""
    return " ".join(f"{value:g}" for value in values)
