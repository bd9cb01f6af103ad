"""Units that are turned off: what a network does without them.

A unit's output is replaced at all positions before the network goes on: by 0, by the unit's mean,
or by what the unit gives for another image. Morcos et al. 2018 ("On the importance of single
directions for generalization") set units to 0; a unit that is seldom 0 is taken out of its usual
range by that, which the other two fills avoid.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.errors import (
    SightlineError,
    join_words,
    make_out_of_range_error,
    make_unknown_name_error,
)
from sightline.images.io.pictures import sample, samples
from sightline.images.validation import check_image
from sightline.models.layers.capture import split_call_name
from sightline.models.layers.edits import CallEdits, CallKey, Edit
from sightline.models.layers.layouts import FeatureLayout
from sightline.models.layers.placement import ProbedModel, find_feature_layout
from sightline.registry.method import hash_tensor

AblationFill = Literal["zero", "mean", "resample"]

# Reference images that go through the network at once.
REFERENCE_BATCH_SIZE = 8

# More units than this are counted in a sentence instead of listed.
MAX_LISTED_UNITS = 8


class AblatedModel(ProbedModel, Protocol):
    """What turning units off asks of a `Model`."""

    network: torch.nn.Module

    def layer(self, name: str | int) -> str: ...

    def fit(self, image: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Ablation:
    """Units that are off.

    Attributes:
        units: By the layer's own name, ascending.
        fill: What stands in their place.
        seed: Of the images that "resample" draws.
        images_sha256: Digest of the reference images, where they are not the samples.
    """

    units: Mapping[str, tuple[int, ...]]
    fill: AblationFill = "zero"
    seed: int = 0
    images_sha256: str | None = None

    def to_recipe(self) -> dict[str, Any]:
        """The ablation as a recipe holds it."""
        recipe: dict[str, Any] = {
            "units": {layer: list(units) for layer, units in self.units.items()},
            "fill": self.fill,
        }
        if self.fill == "resample":
            recipe["seed"] = self.seed
        if self.images_sha256 is not None:
            recipe["images"] = self.images_sha256
        return recipe

    def __str__(self) -> str:
        """«units 12 and 40 of layer4 are off (zero)»."""
        groups = [f"{list_unit_numbers(units)} of {layer}" for layer, units in self.units.items()]
        count = sum(map(len, self.units.values()))
        verb = "is" if count == 1 else "are"
        return f"{join_words(groups)} {verb} off ({self.fill})"


def list_unit_numbers(units: Sequence[int]) -> str:
    """«unit 7», «units 12 and 40», or «40 units» of many."""
    if len(units) == 1:
        return f"unit {units[0]}"
    if len(units) > MAX_LISTED_UNITS:
        return f"{len(units)} units"
    return f"units {join_words(list(map(str, units)))}"


# ── units as text ──


def parse_ablation(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The units of layers in texts such as «layer4:12,40» and «layer3:0-15».

    Raises SightlineError for anything else.
    """
    units: dict[str, tuple[int, ...]] = {}
    for text in texts:
        layer, _, listed = text.rpartition(":")
        if not layer or not re.fullmatch(r"\d{1,9}(-\d{1,9})?(,\d{1,9}(-\d{1,9})?)*", listed):
            raise SightlineError(
                f"units to turn off are given as LAYER:UNIT,UNIT or LAYER:FIRST-LAST, such as "
                f"layer4:12,40; given was {text!r:.80}"
            )
        numbers = [number for entry in listed.split(",") for number in _parse_range(entry)]
        units[layer] = (*units.get(layer, ()), *numbers)
    return units


def _parse_range(text: str) -> range:
    """The units of «12» or «12-15»."""
    first, _, last = text.partition("-")
    start = int(first)
    stop = int(last or first) + 1
    if stop <= start:
        raise SightlineError(f"the range of units {text} ends before it begins")
    return range(start, stop)


def format_ablation(units: Mapping[str, Sequence[int]]) -> list[str]:
    """The texts that `parse_ablation` reads."""
    return [f"{layer}:{','.join(map(str, numbers))}" for layer, numbers in units.items()]


# ── the units of a layer ──


@dataclass(frozen=True)
class UnitAxes:
    """Which axes of a layer's output count its units.

    Attributes:
        count: How many units.
        lengths: The length of each of those axes, by its number; heads are a second one.
        ndim: How many axes the output has.
        batch_axis: Which axis counts the images, or the images' windows.
    """

    count: int
    lengths: Mapping[int, int]
    ndim: int
    batch_axis: int = 0

    def spread(self, values: Tensor) -> Tensor:
        """One value for each unit, with axes of length 1 where the output has others."""
        shape = [self.lengths.get(axis, 1) for axis in range(self.ndim)]
        return values.reshape(shape)


def find_unit_axes(model: AblatedModel, layer: str) -> UnitAxes:
    """Which axes of a layer's output count its units. `layer` is its own name.

    Raises SightlineError for an output that has no units.
    """
    blank = model.blank()
    with torch.no_grad():
        feature = model.run(blank, [layer])[layer]
    if feature.ndim == 2:
        return UnitAxes(feature.shape[1], {1: feature.shape[1]}, 2)
    layout = find_feature_layout(model, layer, feature.shape, tuple(blank.shape))
    if layout is None:
        raise SightlineError(
            f"layer {layer} has no units to turn off: its output is {tuple(feature.shape)} for one "
            "image; choose a layer with feature maps, tokens or a vector"
        )
    return read_unit_axes(layout, feature.shape)


def read_unit_axes(layout: FeatureLayout, shape: Sequence[int]) -> UnitAxes:
    """The axes of an output of this layout and shape."""
    lengths = {axis: shape[axis] for axis in layout.unit_axes}
    count = 1
    for length in lengths.values():
        count *= length
    return UnitAxes(count, lengths, len(shape), layout.batch_axis)


def choose_units(
    model: AblatedModel, units: Mapping[str, Sequence[int] | int]
) -> dict[str, tuple[int, ...]]:
    """The units by the layers' own names, each once, ascending.

    Raises SightlineError for unknown layers, for anything that is no number of a unit, and for
    none at all.
    """
    chosen: dict[str, set[int]] = {}
    for requested_layer, numbers in units.items():
        layer = model.layer(requested_layer)
        if layer == "logits":
            raise SightlineError(
                "the logits are the network's answer, not units of a layer; choose from its layers"
            )
        listed = [numbers] if isinstance(numbers, int) else list(numbers)
        for number in listed:
            if isinstance(number, bool) or not hasattr(number, "__index__"):
                raise SightlineError(f"unit is {number!r:.40}; units are whole numbers from 0")
        chosen.setdefault(layer, set()).update(int(number) for number in listed)
    if not any(chosen.values()):
        raise SightlineError("no unit is named; give units by layer, such as {'layer4': [12, 40]}")
    return {layer: tuple(sorted(numbers)) for layer, numbers in chosen.items() if numbers}


# ── what stands in their place ──


class UnitFill:
    """The edit that gives units another value.

    Args:
        layer: What messages call the layer.
        is_off: Which units are off, in the axes of the layer's output.
        values: What stands in their place, in the same axes; None for 0.
    """

    def __init__(self, layer: str, is_off: Tensor, values: Tensor | None = None) -> None:
        self.layer = layer
        self.is_off = is_off
        self.values = values

    def __call__(self, tensor: Tensor) -> Tensor:
        is_off = self.is_off.to(tensor.device)
        if self.values is None:
            return tensor.masked_fill(is_off, 0)
        values = self.values.to(device=tensor.device, dtype=tensor.dtype)
        if not is_broadcastable(values.shape, tensor.shape):
            values = self.fit_values(values, tensor.shape)
        return torch.where(is_off, values, tensor)

    def fit_values(self, values: Tensor, shape: Sequence[int]) -> Tensor:
        """The values of one image for an output of another shape.

        Windows are repeated for every image, and maps take the value of the nearest position.
        Raises SightlineError where the positions lie otherwise.
        """
        if values.ndim == 4 and values.shape[0] == 1 and values.shape[1] == shape[1]:
            return F.interpolate(values, size=tuple(shape[2:]), mode="nearest")
        if values.shape[1:] == tuple(shape[1:]) and shape[0] % values.shape[0] == 0:
            return values.repeat(shape[0] // values.shape[0], *[1] * (values.ndim - 1))
        raise SightlineError(
            f"layer {self.layer} is filled from images of the network's own size; this image is of "
            "another size. Fill its units with zero or mean, or resize the image"
        )


def is_broadcastable(shape: Sequence[int], target: Sequence[int]) -> bool:
    """Whether a tensor of this shape is repeated to the target's along axes of length 1."""
    if len(shape) != len(target):
        return False
    return all(
        length in (1, target_length) for length, target_length in zip(shape, target, strict=True)
    )


@dataclass(frozen=True)
class LayerUnits:
    """Units of one layer. `layer` is its own name, and `axes` are those of its output."""

    layer: str
    axes: UnitAxes
    units: tuple[int, ...]

    def make_mask(self) -> Tensor:
        """Which units of the layer are among these, in the axes of its output."""
        is_chosen = torch.zeros(self.axes.count, dtype=torch.bool, device="cpu")
        is_chosen[list(self.units)] = True
        return self.axes.spread(is_chosen)


def make_fill(
    model: AblatedModel, chosen: LayerUnits, fill: AblationFill, images: Tensor, seed: int
) -> UnitFill:
    """The edit that turns units off. `images` are the reference images."""
    values = None
    if fill == "mean":
        values = measure_unit_means(model, chosen, images)
    elif fill == "resample":
        values = draw_unit_maps(model, chosen, images, seed)
    return UnitFill(chosen.layer, chosen.make_mask(), values)


def measure_unit_means(model: AblatedModel, chosen: LayerUnits, images: Tensor) -> Tensor:
    """The mean of each unit over the images and its positions, in the axes of the output."""
    axes = chosen.axes
    total = torch.zeros(axes.count, dtype=torch.float64, device="cpu")
    value_count = 0
    other_axes = [axis for axis in range(axes.ndim) if axis not in axes.lengths]
    for batch in images.split(REFERENCE_BATCH_SIZE):
        with torch.no_grad():
            feature = model.run(batch, [chosen.layer])[chosen.layer].double()
        total += feature.sum(other_axes).flatten().cpu()
        value_count += feature.numel() // axes.count
    return axes.spread((total / value_count).float())


def draw_unit_maps(model: AblatedModel, chosen: LayerUnits, images: Tensor, seed: int) -> Tensor:
    """The layer's output for one image, with each unit's from a reference image drawn for it."""
    axes = chosen.axes
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(len(images), (axes.count,), generator=generator, device="cpu")
    image_numbers = draws[list(chosen.units)].unique().tolist()
    output = torch.empty(0)
    for number in image_numbers:
        with torch.no_grad():
            feature = model.run(images[number : number + 1], [chosen.layer])[chosen.layer]
        if not output.numel():
            output = feature.clone()
        is_drawn = axes.spread(draws == number).to(feature.device)
        output = torch.where(is_drawn, feature, output)
    return output


def read_reference_images(model: AblatedModel, fill: AblationFill) -> Tensor:
    """The sample photographs as the network takes them, N×C×H×W.

    Raises SightlineError for a network that does not take photographs.
    """
    if model.channels != 3:
        raise SightlineError(
            f"fill is {fill!r}, for which the sample photographs are run, and {model.name} takes "
            f"{model.channels} channels; give images=, or fill='zero'"
        )
    return torch.cat([model.fit(sample(name)) for name in samples()])


# ── putting it together ──


def make_ablation(
    model: AblatedModel,
    units: Mapping[str, Sequence[int] | int],
    *,
    fill: AblationFill,
    images: Tensor | None,
    seed: int,
) -> tuple[Ablation, CallEdits]:
    """The ablation, and the edits that make it. Raises as `Model.ablated` does."""
    if fill not in get_args(AblationFill):
        raise make_unknown_name_error("fill", fill, get_args(AblationFill))
    chosen = [
        find_layer_units(model, layer, numbers)
        for layer, numbers in choose_units(model, units).items()
    ]

    digest = None
    if images is not None and fill != "zero":
        images = check_image(images, channels=model.channels).to(model.device)
        digest = hash_tensor(images)
    elif fill == "zero":
        images = model.blank()
    else:
        images = read_reference_images(model, fill).to(model.device)

    output_edits: dict[CallKey, Edit] = {}
    input_edits: dict[CallKey, Edit] = {}
    for layer_units in chosen:
        edit = make_fill(model, layer_units, fill, images, seed)
        is_input, key = split_layer_name(model.network, layer_units.layer)
        edits = input_edits if is_input else output_edits
        edits[key] = edit
    numbers = {layer_units.layer: layer_units.units for layer_units in chosen}
    return Ablation(numbers, fill, seed, digest), CallEdits(output_edits, input_edits)


def find_layer_units(model: AblatedModel, layer: str, units: tuple[int, ...]) -> LayerUnits:
    """Units of a layer, ascending. Raises SightlineError for those that the layer does not have."""
    axes = find_unit_axes(model, layer)
    for number in (units[0], units[-1]):
        if not 0 <= number < axes.count:
            raise make_out_of_range_error(f"unit of {layer}", number, 0, axes.count - 1)
    return LayerUnits(layer, axes, units)


def split_layer_name(network: torch.nn.Module, layer: str) -> tuple[bool, CallKey]:
    """Whether a layer's name is that of a call's input, and the call.

    `fc:in` → True, (`fc`, 0); `layer1.0/relu:1` → False, (`layer1.0/relu`, 1).
    """
    is_input = layer.endswith(":in")
    path, step = split_call_name(network, layer)
    index = layer.removesuffix(":in").partition(":")[2]
    call_path = f"{path}/{step}" if step else path
    return is_input, (call_path, int(index or 0))
