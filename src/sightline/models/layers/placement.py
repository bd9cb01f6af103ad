"""Where a layer's outputs lie in the image, by evidence: which of them change with a part of it.

The shape of an output may be read in several ways: 64×64×64 numbers as channels first or last, 64
tokens of 256 numbers or the reverse, windows of a shifted or an unshifted image. A part of the
image that changes shows which reading is right: the outputs at its position change most.
"""

from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from sightline.errors import SightlineError
from sightline.models.layers.capture import Layer
from sightline.models.layers.layouts import FeatureLayout, list_feature_layouts

QUADRANTS = 4
# An image, four with another quadrant changed, and four with another ring quarter changed.
LAYOUT_PROBES = 1 + 2 * QUADRANTS

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
    runs nine images of this size, once for a layer. Where these don't tell either, the first layout
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
    best_agreement = 0.0
    for tensor in tensors:
        for layout in list_feature_layouts(tensor.shape, LAYOUT_PROBES, *size):
            if layout.order == "NCT" and not tokens_last:
                continue
            agreement = measure_layout_agreement(layout, tensor)
            if agreement > best_agreement:
                best_layout = layout
                best_agreement = agreement
    return best_layout


def measure_layout_agreement(layout: FeatureLayout, tensor: Tensor) -> float:
    """How well a layout agrees with an output for `make_quadrant_images`: 0, or up to 2.

    The quadrants decide whether it agrees, and the rings which of several agrees best.
    """
    maps = layout.arrange_as_maps(tensor.float())
    in_quadrants = measure_agreement(maps[: QUADRANTS + 1], split_axis_in_halves)
    if in_quadrants <= MIN_AGREEMENT:
        return 0.0
    in_rings = measure_agreement(torch.cat([maps[:1], maps[QUADRANTS + 1 :]]), split_axis_in_rings)
    is_shifted = layout.windows is not None and any(layout.windows.shift)
    # Mirror images side by side, as a network may run in one batch, agree with the quadrants where
    # they are rolled by half a side, as shifted windows are.
    if is_shifted and in_rings <= MIN_AGREEMENT:
        return 0.0
    return in_quadrants + in_rings


def make_quadrant_images(channels: int, size: tuple[int, int], device: torch.device) -> Tensor:
    """An image, and copies of it of which each has another part changed: 9×C×H×W.

    The parts are first the quadrants, then those that the middle and the outer half of both axes
    make: the corners, the edges left and right, those above and below, and the middle.
    """
    height, width = size
    generator = torch.Generator().manual_seed(0)
    original, replacement = torch.rand(2, channels, height, width, generator=generator)
    images = [original]
    for split_axis in (split_axis_in_halves, split_axis_in_rings):
        # The row or column across a border belongs to the later part.
        row_sides = split_axis(height).abs()
        column_sides = split_axis(width).abs()
        for part in range(QUADRANTS):
            in_part = 2 * row_sides[:, None] + column_sides[None] == part
            images.append(torch.where(in_part, replacement, original))
    return torch.stack(images).to(device)


def measure_agreement(maps: Tensor, split_axis: Callable[[int], Tensor]) -> float:
    """The share of positions that change most with their own part of the image.

    `maps` are 5×C×h×w, of an image and its four copies. `split_axis` tells the side of each
    position on an axis. Positions on a border don't count, nor those that never change.
    """
    response = (maps[1:] - maps[:1]).abs().sum(1)
    rows, columns = response.shape[-2:]
    row_sides = split_axis(rows)
    column_sides = split_axis(columns)
    part = 2 * row_sides[:, None] + column_sides[None]
    counts = (row_sides[:, None] >= 0) & (column_sides[None] >= 0)
    counts = counts.to(response.device) & (response.amax(0) > 0)
    if not counts.any():
        return 0.0
    strongest = response.argmax(0)
    agrees = strongest == part.to(strongest)
    return float(agrees[counts].float().mean())


def split_axis_in_halves(length: int) -> Tensor:
    """0 for the positions in the first half of an axis, 1 in the second, -1 across the middle."""
    doubled_centres = 2 * torch.arange(length) + 1
    sides = torch.full((length,), -1)
    sides[doubled_centres < length] = 0
    sides[doubled_centres > length] = 1
    return sides


def split_axis_in_rings(length: int) -> Tensor:
    """0 for the positions in the outer quarters of an axis, 1 in the middle half, -1 across."""
    centres = 4 * torch.arange(length) + 2
    sides = torch.full((length,), -1)
    sides[(centres < length) | (centres > 3 * length)] = 0
    sides[(centres > length) & (centres < 3 * length)] = 1
    return sides
