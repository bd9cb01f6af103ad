"""The loss of an image at each size, for style transfer and texture synthesis."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor
from torch.nn import functional as F

from sightline.errors import SightlineError
from sightline.images.transforms import ImageSize, resize_bicubic
from sightline.methods.style.memory import OptimizationMemory, count_feature_bytes
from sightline.models.model import Model
from sightline.models.tracing.receptive_field import receptive_field
from sightline.optim.objectives.objective import Objective, tv
from sightline.optim.perceptual.layers import PerceptualLayers, refuse_wrong_input_scale
from sightline.optim.perceptual.losses import FeatureMoments, StyleDistanceKind, blend_moments
from sightline.optim.perceptual.presets import StylePreset
from sightline.optim.perceptual.regions import StyleRegion, extract_perceptual_features
from sightline.optim.perceptual.tiling import measure_feature_map_sizes
from sightline.optim.perceptual.transfer_loss import (
    StyleTransferLoss,
    compute_image_moments,
    compute_region_weights,
)

# A style needs more than one position in its deepest layer, and no fewer pixels than this.
MIN_STYLE_SIDE = 16

# In place of an energy of zero, which can't be divided by.
MIN_ENERGY = 1e-30


@dataclass(frozen=True)
class StyleLossBuilder:
    """Builds the loss between an image, a content image and style images, at any size.

    Attributes:
        model: The network whose features are compared.
        content: The content image 1×3×H×W, or None for a texture.
        styles: Style images 1×3×H×W of any size.
        layers: Where content and style are read.
        preset: The weights of the terms and the distance between styles.
        style_shares: The share of each style, where there are no masks.
        masks: One mask 1×1×H×W for each style, 1 where the style should be; None mixes the styles.
        style_scale: The size of the style's strokes; 2 makes them twice as large.
        memory_gb: GB that the optimization may take; what needs more is computed in tiles.
        history_size: Pairs of images that the optimizer keeps; None for as many as fit.
        seed: Of the directions of the sliced distance.
    """

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
        """The distance between styles."""
        return self.preset.kind

    @property
    def memory(self) -> OptimizationMemory:
        """The memory that the optimization takes."""
        layers = (*self.layers.style, *self.layers.content)
        feature_bytes = count_feature_bytes(self.model, layers)
        return OptimizationMemory(self.memory_gb, feature_bytes, self.history_size)

    # ── the loss ──

    def build_objective(self, size: ImageSize) -> Objective:
        """Minus the loss at a size, with total variation."""
        objective = self.get_loss(size).make_objective(self.choose_tile_side(size))
        if self.preset.tv > 0:
            objective = objective - self.preset.tv * tv()
        return objective

    def get_loss(self, size: ImageSize) -> StyleTransferLoss:
        """The loss of an image of this size.

        The last one is cached: the finished image is measured with the targets that it was
        optimized for.
        """
        if size not in self.loss_cache:
            self.loss_cache.clear()
            self.loss_cache[size] = self.build_loss(size)
        return self.loss_cache[size]

    def build_loss(self, size: ImageSize) -> StyleTransferLoss:
        """The loss of an image of this size, with targets computed anew."""
        tile_side = self.choose_tile_side(size)
        style_layers = self.layers.style
        styles = [self.fit_style(style, size).to(self.model.device) for style in self.styles]
        style_features = None
        if self.kind == "sliced":
            style_features = extract_perceptual_features(self.model, style_layers, styles[0], None)

        content_targets = self.build_content_targets(size, tile_side)
        style_moments = [
            compute_image_moments(self.model, style_layers, style, tile_side) for style in styles
        ]
        regions: list[StyleRegion] = []
        if style_features is None:
            regions = self.build_regions(style_moments, size)

        return StyleTransferLoss(
            self.weigh_style_layers(style_moments[0]),
            regions,
            content_targets,
            self.kind,
            style_features,
            self.seed,
        )

    def build_content_targets(
        self, size: ImageSize, tile_side: int | None
    ) -> dict[str, tuple[float, Tensor]]:
        """The weight and the features of each content layer; empty without a content term."""
        if self.content is None or self.preset.content <= 0:
            return {}
        image = resize_bicubic(self.content, size).to(self.model.device)
        content_layers = self.layers.content
        features_by_layer = extract_perceptual_features(
            self.model, content_layers, image, tile_side
        )
        layer_weight = self.preset.content / len(features_by_layer)

        targets: dict[str, tuple[float, Tensor]] = {}
        for name, features in features_by_layer.items():
            weight = layer_weight / self.measure_content_unit(features)
            targets[name] = (weight, features)
        return targets

    def measure_content_unit(self, features: Tensor) -> float:
        """What a content difference is divided by: for relative presets the mean square."""
        if not self.preset.relative:
            return 1.0
        return max(float(features.square().mean()), MIN_ENERGY)

    def weigh_style_layers(self, style_moments: Mapping[str, FeatureMoments]) -> dict[str, float]:
        """The weight of each style layer's distance, for the moments of a style."""
        layer_weights = self.preset.compute_layer_weights(self.list_channels())
        weights = dict(zip(self.layers.style, layer_weights, strict=True))
        if self.preset.relative:
            for name in weights:
                energy = measure_style_energy(style_moments[name], self.kind)
                weights[name] /= max(energy, MIN_ENERGY)
        return weights

    def list_channels(self) -> list[int]:
        """The channels of each style layer."""
        return [self.model.shape(name)[0] for name in self.layers.style]

    def build_regions(
        self, style_moments: Sequence[Mapping[str, FeatureMoments]], size: ImageSize
    ) -> list[StyleRegion]:
        """One region with all styles mixed, or with masks one region for each style."""
        if self.masks is None:
            mixed_moments = {
                name: blend_moments([moments[name] for moments in style_moments], self.style_shares)
                for name in self.layers.style
            }
            return [StyleRegion(1.0, mixed_moments)]

        map_sizes = measure_feature_map_sizes(self.model, self.layers.style, *size)
        masks: list[Tensor] = []
        for mask in self.masks:
            resized = F.interpolate(mask, size=size, mode="bilinear", align_corners=False)
            masks.append(resized.to(self.model.device))
        total_area = sum(float(mask.mean()) for mask in masks)

        regions: list[StyleRegion] = []
        for mask, moments in zip(masks, style_moments, strict=True):
            share = float(mask.mean()) / total_area
            position_weights = compute_region_weights(mask, map_sizes)
            regions.append(StyleRegion(share, moments, position_weights))
        return regions

    # ── the size of the styles ──

    def fit_style(self, picture: Tensor, size: ImageSize) -> Tensor:
        """Resizes a style for an image of this size: as many pixels as that has, times scale².

        Raises SightlineError where the deepest style layer would have a single position.
        """
        height, width = self.measure_style_size(picture, size)
        if min(height, width) < self.find_min_style_side():
            raise SightlineError(
                f"the style would be {height}×{width} pixels, which is a single position in its"
                " deepest layer; raise style_scale or the size"
            )
        return resize_bicubic(picture, (height, width))

    def measure_style_size(self, picture: Tensor, size: ImageSize) -> ImageSize:
        """The size that `fit_style` gives a style for an image of this size."""
        height, width = picture.shape[-2:]
        pixel_ratio = math.prod(size) / (height * width)
        factor = self.style_scale * math.sqrt(pixel_ratio)
        resized_height = max(1, round(height * factor))
        resized_width = max(1, round(width * factor))
        return resized_height, resized_width

    def find_min_style_side(self) -> int:
        """The short side for which a style has two positions in its deepest layer."""
        strides = [receptive_field(self.model, name).stride[0] for name in self.layers.style]
        return max(MIN_STYLE_SIDE, 2 * max(strides))

    def has_large_enough_styles(self, size: ImageSize) -> bool:
        """Whether all styles are large enough for an image of this size."""
        min_side = self.find_min_style_side()
        return all(min(self.measure_style_size(style, size)) >= min_side for style in self.styles)

    # ── memory ──

    def choose_pair_count(self, size: ImageSize) -> int:
        """How many pairs of images the optimizer of an image of this size keeps."""
        return self.memory.choose_pair_count(size)

    def choose_tile_side(self, size: ImageSize) -> int | None:
        """The side in pixels of the tiles that keep within the memory; None if the whole fits.

        Raises SightlineError where no tiles fit, and where the distance can't be computed in tiles.
        """
        memory = self.memory
        if memory.fits(size):
            return None
        if self.kind == "sliced":
            raise SightlineError(
                f"{memory.describe_need(size)}; the sliced loss sorts the whole picture and can't"
                " be computed in tiles; raise memory, lower the size, or compare Gram matrices"
            )
        layers = (*self.layers.style, *self.layers.content)
        margin = max(receptive_field(self.model, name).size[0] for name in layers)
        return memory.choose_tile_side(size, margin)

    def describe_memory_need(self, size: ImageSize) -> str:
        """The beginning of an error message: what an image of this size takes."""
        return self.memory.describe_need(size)


def measure_style_energy(style_moments: FeatureMoments, kind: StyleDistanceKind) -> float:
    """The distance of a style to a constant 0."""
    if kind == "gram":
        return float(style_moments.gram.square().mean()) / 4
    return float(style_moments.gram.diagonal(dim1=1, dim2=2).mean())
