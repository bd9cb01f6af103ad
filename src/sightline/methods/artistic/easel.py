"""What style transfer and texture synthesis set up alike: the loss at a size, and whether it fits into memory."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor
from torch.nn import functional as F

from ...errors import SightlineError
from ...model import Model
from ...objective import Objective, tv
from ...paint import Size, resized
from ...painting import Painting, Region, features_of, moments_of, region_weights
from ...perceptual import Kind, Layers, Moments, blended, refuse_other_scale
from ...presets import Preset
from ...receptive import receptive_field
from ...tiles import map_sizes

LEAST_TILE = 128
# Bytes for each number of the layers' outputs. Measured: 1.9 with VGG-19, where ReLUs are not kept twice, 3.1 with SqueezeNet, 3.6 with
# the embedded network; 3.2 with VGG-19 where `frugal` does not pool.
BYTES = 4
# Pictures that are held beside the history: the image, its gradient, where the last step began, and what a step makes of them.
PICTURES = 8
PAIR = 24  # bytes for each pixel of a pair of the history
# Pairs: as many as keep a pixel below 1.6 kB and the whole in memory. Beside large maps 20 take too much, elsewhere they save a tenth of the steps.
LEAST_PAIRS, MOST_PAIRS, KEPT = 10, 20, 1600


@dataclass(frozen=True)
class Easel:
    """The content and style images 1×3×H×W, and how they are weighed. `masks`: one 1×1×H×W for each style, or none."""

    model: Model
    content: Tensor | None
    styles: Sequence[Tensor]
    layers: Layers
    preset: Preset
    mix: Sequence[float]
    masks: Sequence[Tensor] | None = None
    scale: float = 1.0
    memory: float = 4.0
    history: int | None = None
    seed: int = 0
    last: dict[Size, Painting] = field(default_factory=dict[Size, Painting], compare=False, repr=False)

    def __post_init__(self) -> None:
        refuse_other_scale(self.model, self.styles[0])

    @property
    def kind(self) -> Kind:
        """Which distance between styles."""
        return self.preset.kind

    def weights(self, style: Mapping[str, Moments]) -> dict[str, float]:
        """The weight of each style layer's distance, given the style's moments."""
        weights = dict(zip(self.layers.style, self.preset.weights(self.channels()), strict=True))
        if not self.preset.relative:
            return weights
        return {name: weight / max(energy(style[name], self.kind), 1e-30) for name, weight in weights.items()}

    def channels(self) -> list[int]:
        """Channels of each style layer."""
        return [self.model.shape(name)[0] for name in self.layers.style]

    def painting(self, size: Size) -> Painting:
        """The loss of a picture of this size. The last one is kept: the finished picture is judged by the targets it was painted to."""
        if size not in self.last:
            self.last.clear()
            self.last[size] = self.begun(size)
        return self.last[size]

    def begun(self, size: Size) -> Painting:
        """The loss of a picture of this size, its targets found anew."""
        side, layers = self.tile(size), self.layers
        pictures = [self.fitted(picture, size).to(self.model.device) for picture in self.styles]
        samples = features_of(self.model, layers.style, pictures[0], None) if self.kind == "sliced" else None
        content = {}
        if self.content is not None and self.preset.content > 0:
            shown = resized(self.content, size).to(self.model.device)
            found = features_of(self.model, layers.content, shown, side)
            content = {name: (self.preset.content / len(found) / self.unit(features), features) for name, features in found.items()}
        targets = [moments_of(self.model, layers.style, picture, side) for picture in pictures]
        regions = [] if samples else self.regions(targets, size)
        return Painting(self.weights(targets[0]), regions, content, self.kind, samples, self.seed)

    def unit(self, features: Tensor) -> float:
        """What a content difference is divided by."""
        return max(float(features.square().mean()), 1e-30) if self.preset.relative else 1.0

    def regions(self, found: Sequence[Mapping[str, Moments]], size: Size) -> list[Region]:
        """One region with all styles mixed, or one for each style where its mask is."""
        if self.masks is None:
            return [Region(1.0, {name: blended([one[name] for one in found], self.mix) for name in self.layers.style})]
        sizes = map_sizes(self.model, self.layers.style, *size)
        grown = [F.interpolate(mask, size=size, mode="bilinear", align_corners=False).to(self.model.device) for mask in self.masks]
        area = sum(float(mask.mean()) for mask in grown)
        return [Region(float(mask.mean()) / area, targets, region_weights(mask, sizes)) for mask, targets in zip(grown, found, strict=True)]

    def fitted(self, picture: Tensor, size: Size) -> Tensor:
        """A style picture at the size where its strokes are as large as wanted: as many pixels as the output, times scale²."""
        height, width = self.measure(picture, size)
        if min(height, width) < self.least():
            raise SightlineError(
                f"the style would be {height}×{width} pixels, which its deepest layer sees as a single place; raise style_scale or the size"
            )
        return resized(picture, (height, width))

    def measure(self, picture: Tensor, size: Size) -> Size:
        """The size of a style picture beside an output of this one."""
        factor = self.scale * math.sqrt(math.prod(size) / (picture.shape[2] * picture.shape[3]))
        height, width = (max(1, round(side * factor)) for side in picture.shape[-2:])
        return height, width

    def least(self) -> int:
        """The short side that a style needs for more than a single place in the deepest layer."""
        return max(16, 2 * max(receptive_field(self.model, name).stride[0] for name in self.layers.style))

    def holds(self, size: Size) -> bool:
        """Whether all styles are large enough beside an output of this size."""
        return all(min(self.measure(picture, size)) >= self.least() for picture in self.styles)

    def pairs(self, size: Size) -> int:
        """How many pairs L-BFGS keeps of a picture of this size: the history that was given, or what a pixel has left."""
        if self.history is not None:
            return self.history
        left = min(KEPT, self.memory * 1e9 / math.prod(size)) - numbers(self) * BYTES - 12 * PICTURES
        return int(min(max(left / PAIR, LEAST_PAIRS), MOST_PAIRS))

    def objective(self, size: Size) -> Objective:
        """Minus the loss at a size, with total variation."""
        aim = self.painting(size).objective(self.tile(size))
        return aim - self.preset.tv * tv() if self.preset.tv > 0 else aim

    def tile(self, size: Size) -> int | None:
        """The side of the tiles that keep within the memory, or None if the whole fits.

        Raises SightlineError where not even tiles of the least size do.
        """
        if gigabytes(self, size) <= self.memory:
            return None
        if self.kind == "sliced":
            raise SightlineError(
                f"{self.need(size)}; the sliced loss sorts the whole picture and can't be had in tiles; raise memory, lower the size, or compare Gram matrices"
            )
        margin = max(receptive_field(self.model, name).size[0] for name in (*self.layers.style, *self.layers.content))
        kept = math.prod(size) * pictures(self, size) / 1e9
        side = math.sqrt(max(self.memory - kept, 0) * 1e9 / (numbers(self) * BYTES)) - 2 * margin
        if side < LEAST_TILE:
            least = kept + (LEAST_TILE + 2 * margin) ** 2 * numbers(self) * BYTES / 1e9
            raise SightlineError(
                f"{self.need(size)}, and in tiles of {LEAST_TILE} pixels about {least:.3g} GB; raise memory or lower the size"
            )
        return int(side)

    def need(self, size: Size) -> str:
        """What a picture of this size would take, in words."""
        return f"{size[0]}×{size[1]} pixels need about {gigabytes(self, size):.3g} GB, more than memory={self.memory:g}"


def numbers(easel: Easel) -> float:
    """Numbers for each pixel that a pass keeps: the outputs of all layers up to the deepest that is read."""
    model = easel.model
    wanted = {model.layer(name).removesuffix(":in") for name in (*easel.layers.style, *easel.layers.content)}
    order = list(model.layers)
    deepest = max(order.index(name) for name in wanted)
    shapes = [
        model.layers[name].shape for name in order[: deepest + 1] if not order[min(order.index(name) + 1, deepest)].startswith(f"{name}.")
    ]
    return sum(math.prod(shape) for shape in shapes) / model.size**2


def energy(style: Moments, kind: Kind) -> float:
    """The distance of a style to nothing."""
    if kind == "gram":
        return float(style.gram.square().mean()) / 4
    return float(style.gram.diagonal(dim1=1, dim2=2).mean())


def gigabytes(easel: Easel, size: Size) -> float:
    """An estimate of what the ascent at a size needs, in GB: features, picture, and the optimizer's history."""
    return math.prod(size) * (numbers(easel) * BYTES + pictures(easel, size)) / 1e9


def pictures(easel: Easel, size: Size) -> int:
    """Bytes for each pixel that whole pictures take: two for each step of the history, and those beside it."""
    return PAIR * easel.pairs(size) + 12 * PICTURES
