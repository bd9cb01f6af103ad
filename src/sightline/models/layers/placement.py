"""Where a layer's outputs lie in the image, by evidence: which of them change with a part of it.

The shape of an output may be read in several ways: 64×64×64 numbers as channels first or last, 64
tokens of 256 numbers or the reverse, windows of a shifted or an unshifted image. A part of the
image that changes shows which reading is right: the outputs at its position change most.
"""

from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from sightline.errors import SightlineError
from sightline.models.layers.capture import Layer
from sightline.models.layers.layouts import FeatureLayout, list_feature_layouts

QUADRANTS = 4

# The share of positions that have to answer most to their own quadrant; by chance it is a quarter.
MIN_AGREEMENT = 0.5

ACTIVATION_MODULES = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.SiLU,
    nn.GELU,
    nn.Hardswish,
    nn.Tanh,
    nn.Sigmoid,
    nn.Dropout,
)

# What these give has its channels first, whatever its shape.
CHANNELS_FIRST_MODULES = (
    nn.Conv2d,
    nn.ConvTranspose2d,
    nn.BatchNorm2d,
    nn.InstanceNorm2d,
    nn.GroupNorm,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.Upsample,
)


class ProbedModel(Protocol):
    """What of a model is needed to run it."""

    name: str
    device: torch.device
    channels: int

    @property
    def layers(self) -> Mapping[str, Layer]: ...

    def run(self, image: Tensor, layers: Iterable[str]) -> dict[str, Tensor]: ...

    def module(self, name: str) -> nn.Module: ...

    def blank(self) -> Tensor: ...


_KNOWN_LAYOUTS: MutableMapping[ProbedModel, dict[str, list[FeatureLayout]]] = WeakKeyDictionary()


def find_feature_layout(
    model: ProbedModel,
    layer: str,
    shape: Sequence[int],
    image_shape: Sequence[int],
) -> FeatureLayout | None:
    """How a layer's output lies on images N×C×H×W; None where it has no positions.

    `shape` is that of the output for these images. Where it can be read in several ways the network
    runs five images of this size, once for a layer. Where these don't tell either, the first layout
    counts, unless it is a rare one.
    """
    batch = image_shape[0]
    height, width = image_shape[-2:]
    if len(shape) == 4 and shape[0] == batch and has_channels_first(model, layer):
        # Without padding its maps need not have the shape of the image.
        return FeatureLayout("NCHW", shape[2], shape[3])
    layouts = list_feature_layouts(shape, batch, height, width)
    if not layouts:
        return None
    if len(layouts) == 1 and not layouts[0].needs_evidence:
        return layouts[0]

    known_layouts = _KNOWN_LAYOUTS.setdefault(model, {}).setdefault(layer, [])
    layout = find_known_reading(layouts, known_layouts)
    if layout is not None:
        return layout
    layout = choose_layout_by_evidence(model, layer, (height, width))
    if layout is None and not layouts[0].needs_evidence:
        layout = layouts[0]
    if layout is not None:
        known_layouts.append(layout)
    return layout


def find_known_reading(
    layouts: Sequence[FeatureLayout], known_layouts: Iterable[FeatureLayout]
) -> FeatureLayout | None:
    """The layout that reads the axes as one of the known layouts does, the earliest known first."""
    for candidate in known_layouts:
        for layout in layouts:
            if layout.is_same_reading(candidate):
                return layout
    return None


def has_channels_first(model: ProbedModel, layer: str) -> bool:
    """Whether a layer is a convolution, pooling or norm of maps, or an activation right after."""
    listed = model.layers.get(layer)
    if listed is None or listed.step:
        return False
    if isinstance(model.module(layer), CHANNELS_FIRST_MODULES):
        return True
    if not isinstance(model.module(layer), ACTIVATION_MODULES):
        return False
    # An activation has the layout of what it is given.
    names = list(model.layers)
    position = names.index(layer)
    while position > 0 and isinstance(model.module(names[position]), ACTIVATION_MODULES):
        position -= 1
    input_layer = model.layers[names[position]]
    is_maps = isinstance(model.module(input_layer.name), CHANNELS_FIRST_MODULES)
    return is_maps and not input_layer.step and input_layer.shape == listed.shape


def choose_layout_by_evidence(
    model: ProbedModel, layer: str, size: tuple[int, int]
) -> FeatureLayout | None:
    """The layout that an image with a changed quadrant agrees with best.

    None where none agrees, or the network takes no batch of such images.
    """
    images = make_quadrant_images(model.channels, size, model.device)
    names = [layer, *list_related_inputs(layer)]
    try:
        with torch.inference_mode(False), torch.no_grad():
            tensors = model.run(images, names)
    except SightlineError:
        return None
    axes = tensors[layer].shape[:-1]
    related = [tensor for tensor in tensors.values() if tensor.shape[:-1] == axes]
    return pick_agreeing_layout(related, size)


def list_related_inputs(layer: str) -> list[str]:
    """Inputs that may lie on the image as the layer's output does, as NAME:in.

    Attention mixes its positions, so its output says less about them than its input.
    """
    if layer.endswith(":in"):
        return []
    path = layer.split(":", maxsplit=1)[0]
    parent = path.rpartition("/" if "/" in path else ".")[0]
    inputs = [] if "/" in path else [f"{path}:in"]
    return [*inputs, f"{parent}:in"] if parent else inputs


def pick_agreeing_layout(
    tensors: Iterable[Tensor], size: tuple[int, int], *, tokens_last: bool = True
) -> FeatureLayout | None:
    """The layout that agrees best with any of the outputs for `make_quadrant_images`.

    Without `tokens_last` the last axis is never read as the tokens.
    """
    best_layout = None
    best_agreement = MIN_AGREEMENT
    for tensor in tensors:
        for layout in list_feature_layouts(tensor.shape, QUADRANTS + 1, *size):
            if layout.order == "NCT" and not tokens_last:
                continue
            maps = layout.arrange_as_maps(tensor.float())
            agreement = measure_quadrant_agreement(maps)
            if agreement > best_agreement:
                best_layout = layout
                best_agreement = agreement
    return best_layout


def make_quadrant_images(channels: int, size: tuple[int, int], device: torch.device) -> Tensor:
    """An image, and four copies of it of which each has another quadrant changed: 5×C×H×W."""
    height, width = size
    generator = torch.Generator().manual_seed(0)
    original, replacement = torch.rand(2, channels, height, width, generator=generator)
    images = [original]
    for row in (slice(None, height // 2), slice(height // 2, None)):
        for column in (slice(None, width // 2), slice(width // 2, None)):
            changed = original.clone()
            changed[:, row, column] = replacement[:, row, column]
            images.append(changed)
    return torch.stack(images).to(device)


def measure_quadrant_agreement(maps: Tensor) -> float:
    """The share of positions that change most with their own quadrant.

    `maps` are 5×C×h×w, of the images that `make_quadrant_images` gives. Positions on the border
    between two quadrants don't count, nor those that never change.
    """
    response = (maps[1:] - maps[:1]).abs().sum(1)
    rows, columns = response.shape[-2:]
    row_sides = split_axis_in_halves(rows)
    column_sides = split_axis_in_halves(columns)
    quadrant = 2 * row_sides[:, None] + column_sides[None]
    counts = (row_sides[:, None] >= 0) & (column_sides[None] >= 0)
    counts = counts.to(response.device) & (response.amax(0) > 0)
    if not counts.any():
        return 0.0
    strongest = response.argmax(0)
    agrees = strongest == quadrant.to(strongest)
    return float(agrees[counts].float().mean())


def split_axis_in_halves(length: int) -> Tensor:
    """0 for the positions in the first half of an axis, 1 in the second, -1 across the middle."""
    doubled_centres = 2 * torch.arange(length) + 1
    sides = torch.full((length,), -1)
    sides[doubled_centres < length] = 0
    sides[doubled_centres > length] = 1
    return sides
