"""The loss of style transfer: style in regions and content by position, whole or tile by tile.

In tiles, a first pass without gradient sums means and Gram matrices over the tiles. The loss and
its gradient with respect to these sums are then computed once, on small matrices. A second pass
backpropagates that gradient through each tile. The result is the gradient of the whole image, so no
seams can arise. (Matching each tile's own Gram matrix would be another objective, whose style
varies from tile to tile.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.errors import guard_backward
from sightline.models.model import Model
from sightline.optim.objectives.objective import Objective, ScoreFunction
from sightline.optim.perceptual.losses import (
    FeatureMoments,
    StyleDistanceKind,
    compute_gram_loss,
    compute_gram_loss_from_features,
    compute_moments,
    compute_sliced_loss,
    compute_w2_loss,
    draw_random_directions,
)
from sightline.optim.perceptual.regions import (
    StyleRegion,
    compute_partial_moments,
    compute_region_moments,
    extract_perceptual_features,
    read_tile_features,
    sum_tile_moments,
)
from sightline.optim.perceptual.tiling import ImageTile, TilePlan, plan_tiles


@dataclass(frozen=True)
class StyleTransferLoss:
    """The loss of an image 1×3×H×W.

    Attributes:
        style_weights: Weight of each style layer.
        regions: The styles and where they should be.
        content_targets: Weight and target features 1×C×h×w of each content layer; the loss is the
            mean squared difference to these.
        kind: The style distance: "gram" (Gatys' E), "w2" (mean and covariance) or "sliced" (to
            `style_features`; not in tiles).
        style_features: The style's features by layer, for "sliced".
        seed: Of the random directions, for "sliced".
    """

    style_weights: Mapping[str, float]
    regions: Sequence[StyleRegion]
    content_targets: Mapping[str, tuple[float, Tensor]]
    kind: StyleDistanceKind = "gram"
    style_features: Mapping[str, Tensor] | None = None
    seed: int = 0

    @property
    def layers(self) -> tuple[str, ...]:
        """Every layer that is read, once."""
        return tuple(dict.fromkeys((*self.style_weights, *self.content_targets)))

    def make_objective(self, tile_side: int | None = None) -> Objective:
        """Minus the loss, of the whole image or in tiles of about `tile_side` pixels."""
        if tile_side is None:
            return Objective("style transfer", (), self.build_whole_score)
        return Objective(
            "style transfer in tiles", (), lambda model: self.build_tiled_score(model, tile_side)
        )

    def build_tiled_score(self, model: Model, tile_side: int) -> ScoreFunction:
        """The score of an image in tiles. Images of the same size share a plan."""

        @cache
        def plan_size(height: int, width: int) -> TilePlan:
            return plan_tiles(model, self.layers, (height, width), tile_side)

        def score(image: Tensor, _: Mapping[str, Tensor]) -> Tensor:
            plan = plan_size(image.shape[2], image.shape[3])
            loss: Tensor = TiledLossFunction.apply(image, self, model, plan)
            return -loss

        return score

    def build_whole_score(self, model: Model) -> ScoreFunction:
        """The score of an image at once.

        A layer's style term is computed as soon as the network has reached the layer. In the
        backward pass its gradient, as large as the layer's features, is then formed when the
        network's own gradient gets there, instead of those of all layers at the start.
        """
        directions = self.draw_directions(model)
        canonical_names = {name: model.layer(name) for name in self.layers}

        def score(image: Tensor, _: Mapping[str, Tensor]) -> Tensor:
            style_terms: dict[str, Tensor] = {}

            def add_style_terms(layer: str, features: Tensor) -> None:
                for name in self.style_weights:
                    if canonical_names[name] == layer:
                        style_terms[name] = self.compute_style_term(name, features, directions)

            features = model.run(image, canonical_names.values(), on_layer=add_style_terms)
            features_by_name = {name: features[layer] for name, layer in canonical_names.items()}
            content_loss = self.compute_content_loss(features_by_name)
            return -sum(style_terms.values(), content_loss)

        return score

    def compute_style_term(
        self, name: str, features: Tensor, directions: Mapping[str, Tensor]
    ) -> Tensor:
        """One layer's weighted term of the style loss: 1."""
        weight = self.style_weights[name]
        if self.style_features is not None:
            return weight * compute_sliced_loss(
                features, self.style_features[name], directions[name]
            )

        is_gram = self.kind == "gram"
        statistics: list[FeatureMoments | Tensor] = []
        for region in self.regions:
            position_weights = region.get_position_weights(name)
            if is_gram and position_weights is None:
                statistics.append(features)
            else:
                moments = compute_moments(features, position_weights, with_mean=not is_gram)
                statistics.append(moments)
        return weight * self.measure_style_distance(name, statistics)

    def measure_style_distance(
        self, name: str, statistics: Sequence[FeatureMoments | Tensor]
    ) -> Tensor:
        """A layer's unweighted distance to the style: 1.

        `statistics` are its moments in each region, or its features for a region that is
        everywhere.
        """
        distances: list[Tensor] = []
        for region, region_statistics in zip(self.regions, statistics, strict=True):
            target = region.targets[name]
            distance = compute_style_distance(region_statistics, target, self.kind)
            distances.append(region.share * distance)
        return torch.stack(distances).sum(0)

    def draw_directions(self, model: Model) -> dict[str, Tensor]:
        """The directions of "sliced" by layer, the same in every step of the optimization."""
        generator = torch.Generator().manual_seed(self.seed)
        style_features = self.style_features or {}
        return {
            name: draw_random_directions(features.shape[1], generator).to(model.device)
            for name, features in style_features.items()
        }

    def compute_style_loss(
        self, moments_by_region: Sequence[Mapping[str, FeatureMoments]]
    ) -> Tensor:
        """The weighted style loss of the moments in each region: 1."""
        if not moments_by_region or not self.style_weights:
            return torch.zeros(1)
        terms: list[Tensor] = []
        for name, weight in self.style_weights.items():
            moments = [region_moments[name] for region_moments in moments_by_region]
            terms.append(weight * self.measure_style_distance(name, moments))
        return torch.stack(terms).sum(0)

    def compute_content_loss(
        self, features: Mapping[str, Tensor], tile: ImageTile | None = None
    ) -> Tensor:
        """The weighted content loss of the features, or a tile's share of it: 1."""
        any_features = next(iter(features.values()))
        terms = [any_features.new_zeros(1)]
        for name, (weight, target) in self.content_targets.items():
            local_target = target
            if tile is not None:
                local_target = tile.crop_whole_map(name, target)
            difference = features[name].float() - local_target
            squared_error = difference.square().sum().view(1)
            terms.append(weight / target.numel() * squared_error)
        return torch.stack(terms).sum(0)


# ── inputs of the loss ──


@torch.no_grad()
def compute_image_moments(
    model: Model, layers: Sequence[str], image: Tensor, tile_side: int | None
) -> dict[str, FeatureMoments]:
    """The moments of an image's features by layer; with `tile_side` summed over tiles."""
    everywhere = StyleRegion(1.0, targets={})
    return compute_region_moments(model, layers, image, [everywhere], tile_side)[0]


def compute_region_weights(mask: Tensor, sizes: Mapping[str, tuple[int, int]]) -> dict[str, Tensor]:
    """A mask 1×1×H×W at the size of each layer's map, scaled to a sum of 1: 1×h×w by layer."""
    weights_by_layer: dict[str, Tensor] = {}
    for name, size in sizes.items():
        weights = F.interpolate(mask, size=size, mode="area")[:, 0]
        weights_by_layer[name] = weights / weights.sum().clamp_min(1e-12)
    return weights_by_layer


# ── measures of an image ──


@torch.no_grad()
def measure_style_losses(
    transfer_loss: StyleTransferLoss, model: Model, image: Tensor, tile_side: int | None
) -> dict[str, float]:
    """The unweighted distance to the style by layer, summed over the regions by their shares."""
    layers = list(transfer_loss.style_weights)
    style_features = transfer_loss.style_features
    losses: dict[str, float] = {}
    if style_features is not None:
        features = model.features(image, layers)
        directions = transfer_loss.draw_directions(model)
        for name in layers:
            loss = compute_sliced_loss(features[name], style_features[name], directions[name])
            losses[name] = float(loss)
        return losses

    moments_by_region = compute_region_moments(
        model, layers, image, transfer_loss.regions, tile_side
    )
    for name in layers:
        moments = [region_moments[name] for region_moments in moments_by_region]
        losses[name] = float(transfer_loss.measure_style_distance(name, moments))
    return losses


def measure_content_losses(
    transfer_loss: StyleTransferLoss, model: Model, image: Tensor, tile_side: int | None
) -> dict[str, float]:
    """The mean squared difference to the content by layer."""
    layers = list(transfer_loss.content_targets)
    features = extract_perceptual_features(model, layers, image, tile_side)
    return {
        name: float((features[name] - target).square().mean())
        for name, (_, target) in transfer_loss.content_targets.items()
    }


def compute_style_distance(
    statistics: FeatureMoments | Tensor, target: FeatureMoments, kind: StyleDistanceKind
) -> Tensor:
    """One layer's distance to a style, of its moments; for "gram" also of its features."""
    if isinstance(statistics, Tensor):
        return compute_gram_loss_from_features(statistics, target.gram)
    if kind == "w2":
        return compute_w2_loss(statistics, target)
    return compute_gram_loss(statistics.gram, target.gram)


# ── tile by tile ──


class TiledLossFunction(torch.autograd.Function):
    """The loss of an image in tiles, whose gradient is computed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, image: Tensor, transfer_loss: StyleTransferLoss, model: Model, plan: TilePlan
    ) -> Tensor:
        loss, gradient = compute_tiled_loss(image.detach(), transfer_loss, model, plan)
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_output: Tensor
    ) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_output.view(-1, 1, 1, 1), None, None, None


def compute_tiled_loss(
    image: Tensor, transfer_loss: StyleTransferLoss, model: Model, plan: TilePlan
) -> tuple[Tensor, Tensor]:
    """The loss, 1, and its gradient with respect to an image 1×3×H×W, in the tiles of a plan."""
    layers = list(transfer_loss.style_weights)
    regions = transfer_loss.regions
    moments_by_region = sum_tile_moments(model, layers, image, regions, plan)
    for region_moments in moments_by_region:
        for moments in region_moments.values():
            moments.mean.requires_grad_()
            moments.gram.requires_grad_()
    with torch.enable_grad():
        loss = transfer_loss.compute_style_loss(moments_by_region)
        if layers and regions:
            loss.sum().backward()
    loss = loss.detach()

    gradient = torch.zeros_like(image)
    for tile in plan.tiles:
        pixels = tile.crop_image(image).clone().requires_grad_()
        with torch.enable_grad():
            features = read_tile_features(model, transfer_loss.layers, pixels, tile)
            content_loss = transfer_loss.compute_content_loss(features, tile)
            surrogate = content_loss.sum()
            for region, region_moments in zip(regions, moments_by_region, strict=True):
                for name in layers:
                    surrogate = surrogate + build_gradient_surrogate(
                        features[name],
                        region.get_position_weights(name, tile),
                        plan.position_shares[name],
                        region_moments[name],
                    )
            with guard_backward():
                surrogate.backward()
        loss += content_loss.detach()
        if pixels.grad is not None:
            tile.crop_image(gradient).add_(pixels.grad)
    return loss, gradient


def build_gradient_surrogate(
    features: Tensor,
    position_weights: Tensor | None,
    position_share: float,
    whole_moments: FeatureMoments,
) -> Tensor:
    """A number with the same gradient as the loss with respect to a tile's features.

    `whole_moments` are those of the whole image, with the loss's gradient in their `.grad`.
    """
    tile_moments = compute_partial_moments(features, position_weights, position_share)
    surrogate = features.new_zeros(())
    if whole_moments.gram.grad is not None:
        surrogate = surrogate + (tile_moments.gram * whole_moments.gram.grad).sum()
    if whole_moments.mean.grad is not None:
        surrogate = surrogate + (tile_moments.mean * whole_moments.mean.grad).sum()
    return surrogate
