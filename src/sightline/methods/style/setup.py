"""What style transfer and texture synthesis set up alike: the loss at a size, and whether it fits into memory."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor
from torch.nn import functional as F

from sightline.errors import SightlineError
from sightline.images.transforms import ImageSize, resize_bicubic
from sightline.models.model import Model
from sightline.models.tracing.receptive_field import receptive_field
from sightline.optim.objectives.objective import Objective, tv
from sightline.optim.perceptual.layers import PerceptualLayers, refuse_wrong_input_scale
from sightline.optim.perceptual.losses import FeatureMoments, StyleDistanceKind, blend_moments
from sightline.optim.perceptual.presets import StylePreset
from sightline.optim.perceptual.style_loss import (
    StyleRegion,
    StyleTransferLoss,
    compute_image_moments,
    compute_region_weights,
    extract_perceptual_features,
)
from sightline.optim.perceptual.tiling import measure_feature_map_sizes

MIN_STYLE_TILE = 128

# Bytes for each number of the layers' outputs. Measured: 1.9 with VGG-19, where ReLUs are not kept twice, 3.1 with SqueezeNet, 3.6 with
# the embedded network; 3.2 with VGG-19 where `frugal` does not pool.
BYTES_PER_ACTIVATION = 4

# Pictures that are held beside the history: the image, its gradient, where the last step began, and what a step makes of them.
WORKING_PICTURES = 8

BYTES_PER_PAIR = 24  # bytes for each pixel of a pair of the history

# Pairs: as many as keep a pixel below 1.6 kB and the whole in memory. Beside large maps 20 take too much, elsewhere they save a tenth of the steps.
MIN_PAIRS, MAX_PAIRS, MAX_BYTES_PER_PIXEL = 10, 20, 1600


@dataclass(frozen=True)
class StyleLossBuilder:
    """The content and style images 1×3×H×W, and how they are weighed. `masks`: one 1×1×H×W for each style, or none."""

    model: Model
    content: Tensor | None
    styles: Sequence[Tensor]
    layers: PerceptualLayers
    preset: StylePreset
    style_shares: Sequence[float]
    masks: Sequence[Tensor] | None = None
    style_scale: float = 1.0
    memory_gb: float = 4.0
    history_size: int | None = None
    seed: int = 0
    loss_cache: dict[ImageSize, StyleTransferLoss] = field(
        default_factory=dict[ImageSize, StyleTransferLoss], compare=False, repr=False
    )

    def __post_init__(self) -> None:
        refuse_wrong_input_scale(self.model, self.styles[0])

    @property
    def kind(self) -> StyleDistanceKind:
        """Which distance between styles."""
        return self.preset.kind

    def weigh_style_layers(self, style_moments: Mapping[str, FeatureMoments]) -> dict[str, float]:
        """The weight of each style layer's distance, given the style's moments."""
        weights = dict(
            zip(
                self.layers.style,
                self.preset.compute_layer_weights(self.list_channels()),
                strict=True,
            )
        )
        if not self.preset.relative:
            return weights
        return {
            name: weight / max(measure_style_energy(style_moments[name], self.kind), 1e-30)
            for name, weight in weights.items()
        }

    def list_channels(self) -> list[int]:
        """Channels of each style layer."""
        return [self.model.shape(name)[0] for name in self.layers.style]

    def get_loss(self, size: ImageSize) -> StyleTransferLoss:
        """The loss of a picture of this size. The last one is kept: the finished picture is judged by the targets it was painted to."""
        if size not in self.loss_cache:
            self.loss_cache.clear()
            self.loss_cache[size] = self.build_loss(size)
        return self.loss_cache[size]

    def build_loss(self, size: ImageSize) -> StyleTransferLoss:
        """The loss of a picture of this size, its targets found anew."""
        side, layers = self.choose_tile_side(size), self.layers
        pictures = [self.fit_style(picture, size).to(self.model.device) for picture in self.styles]
        samples = (
            extract_perceptual_features(self.model, layers.style, pictures[0], None)
            if self.kind == "sliced"
            else None
        )
        content = {}
        if self.content is not None and self.preset.content > 0:
            shown = resize_bicubic(self.content, size).to(self.model.device)
            found = extract_perceptual_features(self.model, layers.content, shown, side)
            content = {
                name: (
                    self.preset.content / len(found) / self.measure_content_unit(features),
                    features,
                )
                for name, features in found.items()
            }
        targets = [
            compute_image_moments(self.model, layers.style, picture, side) for picture in pictures
        ]
        regions = [] if samples else self.build_regions(targets, size)
        return StyleTransferLoss(
            self.weigh_style_layers(targets[0]), regions, content, self.kind, samples, self.seed
        )

    def measure_content_unit(self, features: Tensor) -> float:
        """What a content difference is divided by."""
        return max(float(features.square().mean()), 1e-30) if self.preset.relative else 1.0

    def build_regions(
        self, style_moments: Sequence[Mapping[str, FeatureMoments]], size: ImageSize
    ) -> list[StyleRegion]:
        """One region with all styles mixed, or one for each style where its mask is."""
        if self.masks is None:
            return [
                StyleRegion(
                    1.0,
                    {
                        name: blend_moments([one[name] for one in style_moments], self.style_shares)
                        for name in self.layers.style
                    },
                )
            ]
        sizes = measure_feature_map_sizes(self.model, self.layers.style, *size)
        grown = [
            F.interpolate(mask, size=size, mode="bilinear", align_corners=False).to(
                self.model.device
            )
            for mask in self.masks
        ]
        area = sum(float(mask.mean()) for mask in grown)
        return [
            StyleRegion(float(mask.mean()) / area, targets, compute_region_weights(mask, sizes))
            for mask, targets in zip(grown, style_moments, strict=True)
        ]

    def fit_style(self, picture: Tensor, size: ImageSize) -> Tensor:
        """A style picture at the size where its strokes are as large as wanted: as many pixels as the output, times scale²."""
        height, width = self.measure_style_size(picture, size)
        if min(height, width) < self.find_min_style_side():
            raise SightlineError(
                f"the style would be {height}×{width} pixels, which its deepest layer sees as a single place; raise style_scale or the size"
            )
        return resize_bicubic(picture, (height, width))

    def measure_style_size(self, picture: Tensor, size: ImageSize) -> ImageSize:
        """The size of a style picture beside an output of this one."""
        factor = self.style_scale * math.sqrt(
            math.prod(size) / (picture.shape[2] * picture.shape[3])
        )
        height, width = (max(1, round(side * factor)) for side in picture.shape[-2:])
        return height, width

    def find_min_style_side(self) -> int:
        """The short side that a style needs for more than a single place in the deepest layer."""
        return max(
            16, 2 * max(receptive_field(self.model, name).stride[0] for name in self.layers.style)
        )

    def has_large_enough_styles(self, size: ImageSize) -> bool:
        """Whether all styles are large enough beside an output of this size."""
        return all(
            min(self.measure_style_size(picture, size)) >= self.find_min_style_side()
            for picture in self.styles
        )

    def choose_pair_count(self, size: ImageSize) -> int:
        """How many pairs L-BFGS keeps of a picture of this size: the history that was given, or what a pixel has left."""
        if self.history_size is not None:
            return self.history_size
        left = (
            min(MAX_BYTES_PER_PIXEL, self.memory_gb * 1e9 / math.prod(size))
            - count_activations_per_pixel(self) * BYTES_PER_ACTIVATION
            - 12 * WORKING_PICTURES
        )
        return int(min(max(left / BYTES_PER_PAIR, MIN_PAIRS), MAX_PAIRS))

    def build_objective(self, size: ImageSize) -> Objective:
        """Minus the loss at a size, with total variation."""
        aim = self.get_loss(size).make_objective(self.choose_tile_side(size))
        return aim - self.preset.tv * tv() if self.preset.tv > 0 else aim

    def choose_tile_side(self, size: ImageSize) -> int | None:
        """The side of the tiles that keep within the memory, or None if the whole fits.

        Raises SightlineError where not even tiles of the least size do.
        """
        if estimate_painting_memory(self, size) <= self.memory_gb:
            return None
        if self.kind == "sliced":
            raise SightlineError(
                f"{self.describe_memory_need(size)}; the sliced loss sorts the whole picture and can't be had in tiles; raise memory, lower the size, or compare Gram matrices"
            )
        margin = max(
            receptive_field(self.model, name).size[0]
            for name in (*self.layers.style, *self.layers.content)
        )
        kept = math.prod(size) * count_picture_bytes(self, size) / 1e9
        side = (
            math.sqrt(
                max(self.memory_gb - kept, 0)
                * 1e9
                / (count_activations_per_pixel(self) * BYTES_PER_ACTIVATION)
            )
            - 2 * margin
        )
        if side < MIN_STYLE_TILE:
            least = (
                kept
                + (MIN_STYLE_TILE + 2 * margin) ** 2
                * count_activations_per_pixel(self)
                * BYTES_PER_ACTIVATION
                / 1e9
            )
            raise SightlineError(
                f"{self.describe_memory_need(size)}, and in tiles of {MIN_STYLE_TILE} pixels about {least:.3g} GB; raise memory or lower the size"
            )
        return int(side)

    def describe_memory_need(self, size: ImageSize) -> str:
        """What a picture of this size would take, in words."""
        return f"{size[0]}×{size[1]} pixels need about {estimate_painting_memory(self, size):.3g} GB, more than memory={self.memory_gb:g}"


def count_activations_per_pixel(builder: StyleLossBuilder) -> float:
    """Numbers for each pixel that a pass keeps: the outputs of all layers up to the deepest that is read."""
    model = builder.model
    wanted = {
        model.layer(name).removesuffix(":in")
        for name in (*builder.layers.style, *builder.layers.content)
    }
    order = list(model.layers)
    deepest = max(order.index(name) for name in wanted)
    shapes = [
        model.layers[name].shape
        for name in order[: deepest + 1]
        if not order[min(order.index(name) + 1, deepest)].startswith(f"{name}.")
    ]
    return sum(math.prod(shape) for shape in shapes) / model.size**2


def measure_style_energy(style_moments: FeatureMoments, kind: StyleDistanceKind) -> float:
    """The distance of a style to nothing."""
    if kind == "gram":
        return float(style_moments.gram.square().mean()) / 4
    return float(style_moments.gram.diagonal(dim1=1, dim2=2).mean())


def estimate_painting_memory(builder: StyleLossBuilder, size: ImageSize) -> float:
    """An estimate of what the ascent at a size needs, in GB: features, picture, and the optimizer's history."""
    return (
        math.prod(size)
        * (
            count_activations_per_pixel(builder) * BYTES_PER_ACTIVATION
            + count_picture_bytes(builder, size)
        )
        / 1e9
    )


def count_picture_bytes(builder: StyleLossBuilder, size: ImageSize) -> int:
    """Bytes for each pixel that whole pictures take: two for each step of the history, and those beside it."""
    return BYTES_PER_PAIR * builder.choose_pair_count(size) + 12 * WORKING_PICTURES
