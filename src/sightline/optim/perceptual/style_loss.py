"""What a painted picture should be like: style in regions, content by place; as a whole, or tile by tile with the same gradient.

Means and Gram matrices are sums over places. So a first pass without gradient adds them up over tiles; the loss and its slope
by those sums are formed once, as small matrices; a second pass gives each tile its share of the slope. The result is the
whole image's gradient, and seams can't arise. (Matching each tile's own Gram matrix is another objective, whose style drifts.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

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
from sightline.optim.perceptual.tiling import ImageTile, TilePlan, plan_tiles


@dataclass(frozen=True)
class StyleRegion:
    """A style and where it is wanted: `targets` by layer; `weights` by layer, 1×h×w maps that sum to 1, or none for everywhere."""

    share: float
    targets: Mapping[str, FeatureMoments]
    weights: Mapping[str, Tensor] | None = None

    def get_position_weights(self, name: str, tile: ImageTile | None = None) -> Tensor | None:
        """The weights of a layer's places, 1×h×w, or of those of a tile."""
        if self.weights is None:
            return None
        return self.weights[name] if tile is None else tile.crop_whole_map(name, self.weights[name])


@dataclass(frozen=True)
class StyleTransferLoss:
    """The loss of an image 1×3×H×W: style in each layer (`style`: weight by layer; one region or several) and mean squared
    difference to the content's features (`content`: weight and target 1×C×h×w by layer).

    kind: "gram" (Gatys' E), "w2" (mean and covariance) or "sliced" (against `samples`, the style's features; whole images only).
    """

    style_weights: Mapping[str, float]
    regions: Sequence[StyleRegion]
    content_targets: Mapping[str, tuple[float, Tensor]]
    kind: StyleDistanceKind = "gram"
    style_features: Mapping[str, Tensor] | None = None
    seed: int = 0

    @property
    def layers(self) -> tuple[str, ...]:
        """Every layer that is read."""
        return tuple(dict.fromkeys((*self.style_weights, *self.content_targets)))

    def make_objective(self, tile_side: int | None = None) -> Objective:
        """Minus the loss, whole or in tiles of about `tile` pixels."""
        if tile_side is not None:
            return Objective(
                "painting in tiles", (), lambda model: self.build_tiled_score(model, tile_side)
            )
        return Objective("painting", (), self.build_whole_score)

    def build_tiled_score(self, model: Model, tile_side: int) -> ScoreFunction:
        """The score of an image tile by tile; an image of one size is planned once."""
        plan = cache(lambda *size: plan_tiles(model, self.layers, size, tile_side))
        return lambda image, _: (
            -TiledLossFunction.apply(image, self, model, plan(image.shape[2], image.shape[3]))
        )

    def build_whole_score(self, model: Model) -> ScoreFunction:
        """The score of an image from its features. A layer's part is formed as soon as the network is there: on the way back its gradient,
        as large as the layer's maps, is then formed when the network's own arrives there, and not that of all layers at the start."""
        directions, names = (
            self.draw_directions(model),
            {name: model.layer(name) for name in self.layers},
        )

        def score(image: Tensor, _: Mapping[str, Tensor]) -> Tensor:
            terms: dict[str, Tensor] = {}

            def read(layer: str, features: Tensor) -> None:
                terms.update(
                    {
                        name: self.compute_style_term(name, features, directions)
                        for name in self.style_weights
                        if names[name] == layer
                    }
                )

            found = model.run(image, names.values(), on_layer=read)
            return -(
                sum(
                    terms.values(),
                    self.compute_content_loss(
                        {name: found[layer] for name, layer in names.items()}
                    ),
                )
            )

        return score

    def compute_style_term(
        self, name: str, features: Tensor, directions: Mapping[str, Tensor]
    ) -> Tensor:
        """One layer's part of the style loss: 1."""
        if self.style_features is not None:
            return self.style_weights[name] * compute_sliced_loss(
                features, self.style_features[name], directions[name]
            )
        whole = self.kind == "gram"
        found = [
            features
            if whole and one.weights is None
            else compute_moments(features, one.get_position_weights(name), with_mean=not whole)
            for one in self.regions
        ]
        return self.style_weights[name] * self.measure_style_distance(name, found)

    def measure_style_distance(
        self, name: str, statistics: Sequence[FeatureMoments | Tensor]
    ) -> Tensor:
        """A layer's unweighted distance to the style, given its moments in each region, or the features of a region that is everywhere: 1."""
        pairs = zip(self.regions, statistics, strict=True)
        return torch.stack(
            [
                region.share * compute_style_distance(one, region.targets[name], self.kind)
                for region, one in pairs
            ]
        ).sum(0)

    def draw_directions(self, model: Model) -> dict[str, Tensor]:
        """The directions of the sliced loss, drawn once: an optimizer should see one objective."""
        generator = torch.Generator().manual_seed(self.seed)
        samples = self.style_features or {}
        return {
            name: draw_random_directions(features.shape[1], generator).to(model.device)
            for name, features in samples.items()
        }

    def compute_style_loss(
        self, moments_by_region: Sequence[Mapping[str, FeatureMoments]]
    ) -> Tensor:
        """The weighted style loss of the moments in each region: 1."""
        terms = (
            [
                weight
                * self.measure_style_distance(name, [seen[name] for seen in moments_by_region])
                for name, weight in self.style_weights.items()
            ]
            if moments_by_region
            else []
        )
        return torch.stack(terms).sum(0) if terms else torch.zeros(1)

    def compute_content_loss(
        self, features: Mapping[str, Tensor], tile: ImageTile | None = None
    ) -> Tensor:
        """The weighted content loss of the features, or a tile's part of the whole: 1."""
        terms = [features[next(iter(features))].new_zeros(1)]
        for name, (weight, target) in self.content_targets.items():
            wanted = target if tile is None else tile.crop_whole_map(name, target)
            terms.append(
                weight / target.numel() * (features[name].float() - wanted).square().sum().view(1)
            )
        return torch.stack(terms).sum(0)


@torch.no_grad()
def measure_style_losses(
    transfer_loss: StyleTransferLoss, model: Model, image: Tensor, tile_side: int | None
) -> dict[str, float]:
    """The unweighted distance to the style by layer, the regions' shares added up."""
    if transfer_loss.style_features is not None:
        found, directions = (
            model.features(image, list(transfer_loss.style_weights)),
            transfer_loss.draw_directions(model),
        )
        return {
            name: float(
                compute_sliced_loss(
                    found[name], transfer_loss.style_features[name], directions[name]
                )
            )
            for name in transfer_loss.style_weights
        }
    if tile_side is None:
        features = model.features(image, list(transfer_loss.style_weights))
        seen_by = [
            {
                name: compute_moments(features[name], region.get_position_weights(name))
                for name in transfer_loss.style_weights
            }
            for region in transfer_loss.regions
        ]
    else:
        seen_by = compute_region_moments(
            image, model, list(transfer_loss.style_weights), transfer_loss.regions, tile_side
        )
    return {
        name: float(transfer_loss.measure_style_distance(name, [one[name] for one in seen_by]))
        for name in transfer_loss.style_weights
    }


def measure_content_losses(
    transfer_loss: StyleTransferLoss, model: Model, image: Tensor, tile_side: int | None
) -> dict[str, float]:
    """The mean squared difference to the content by layer."""
    found = extract_perceptual_features(
        model, list(transfer_loss.content_targets), image, tile_side
    )
    return {
        name: float((found[name] - target).square().mean())
        for name, (_, target) in transfer_loss.content_targets.items()
    }


def compute_style_distance(
    statistics: FeatureMoments | Tensor, target: FeatureMoments, kind: StyleDistanceKind
) -> Tensor:
    """One layer's distance to a style, by its moments, or by its features themselves for the Gram matrix."""
    if isinstance(statistics, Tensor):
        return compute_gram_loss_from_features(statistics, target.gram)
    return (
        compute_w2_loss(statistics, target)
        if kind == "w2"
        else compute_gram_loss(statistics.gram, target.gram)
    )


class TiledLossFunction(torch.autograd.Function):
    """The loss of an image as a node of autograd whose gradient is found on the way forward."""

    @staticmethod
    def forward(
        ctx: Any, image: Tensor, transfer_loss: StyleTransferLoss, model: Model, plan: TilePlan
    ) -> Tensor:
        loss, gradient = compute_tiled_loss(image.detach(), transfer_loss, model, plan)
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return ctx.saved_tensors[0] * grad_output.view(-1, 1, 1, 1), None, None, None


def read_tile_features(
    model: Model, layers: Sequence[str], pixels: Tensor, tile: ImageTile
) -> dict[str, Tensor]:
    """The features that a tile answers for, by layer."""
    found = model.run(pixels, [model.layer(name) for name in layers])
    return {name: tile.crop_owned_features(name, found[model.layer(name)]) for name in layers}


def compute_tiled_loss(
    image: Tensor, transfer_loss: StyleTransferLoss, model: Model, plan: TilePlan
) -> tuple[Tensor, Tensor]:
    """The loss, 1, and its gradient by an image 1×3×H×W, in the tiles of a plan for the painting's layers."""
    shares = plan.position_shares
    found = sum_tile_moments(
        image, model, list(transfer_loss.style_weights), transfer_loss.regions, plan
    )
    leaves = [
        {
            name: FeatureMoments(one.mean.requires_grad_(), one.gram.requires_grad_())
            for name, one in layer.items()
        }
        for layer in found
    ]
    with torch.enable_grad():
        loss = transfer_loss.compute_style_loss(leaves)
        if transfer_loss.style_weights and transfer_loss.regions:
            loss.sum().backward()
    loss, gradient = loss.detach(), torch.zeros_like(image)
    for tile in plan.tiles:
        piece = tile.crop_image(image).clone().requires_grad_()
        with torch.enable_grad():
            features = read_tile_features(model, transfer_loss.layers, piece, tile)
            content = transfer_loss.compute_content_loss(features, tile)
            pulls = [
                build_gradient_surrogate(
                    features[name],
                    region.get_position_weights(name, tile),
                    shares[name],
                    leaf[name],
                )
                for region, leaf in zip(transfer_loss.regions, leaves, strict=True)
                for name in transfer_loss.style_weights
            ]
            (content.sum() + sum(pulls)).backward()
        loss += content.detach()
        tile.crop_image(gradient).add_(piece.grad if piece.grad is not None else 0)
    return loss, gradient


@torch.no_grad()
def sum_tile_moments(
    image: Tensor,
    model: Model,
    layers: Sequence[str],
    regions: Sequence[StyleRegion],
    plan: TilePlan,
) -> list[dict[str, FeatureMoments]]:
    """Mean and Gram matrix of each layer in each region over the whole image."""
    totals: list[dict[str, FeatureMoments]] = [{} for _ in regions]
    for tile in plan.tiles if layers else ():
        features = read_tile_features(model, layers, tile.crop_image(image), tile)
        for region, total in zip(regions, totals, strict=True):
            for name in layers:
                part = compute_partial_moments(
                    features[name],
                    region.get_position_weights(name, tile),
                    plan.position_shares[name],
                )
                total[name] = (
                    FeatureMoments(total[name].mean + part.mean, total[name].gram + part.gram)
                    if name in total
                    else part
                )
    return totals


@torch.no_grad()
def compute_image_moments(
    model: Model, layers: Sequence[str], image: Tensor, tile_side: int | None
) -> dict[str, FeatureMoments]:
    """The moments of an image's features by layer, whole or in tiles."""
    if tile_side is None:
        return {
            name: compute_moments(found) for name, found in model.features(image, layers).items()
        }
    return compute_region_moments(image, model, layers, [StyleRegion(1.0, {})], tile_side)[0]


def compute_region_moments(
    image: Tensor,
    model: Model,
    layers: Sequence[str],
    regions: Sequence[StyleRegion],
    tile_side: int,
) -> list[dict[str, FeatureMoments]]:
    """The moments in each region by layer, in tiles."""
    return sum_tile_moments(
        image,
        model,
        layers,
        regions,
        plan_tiles(model, layers, (image.shape[2], image.shape[3]), tile_side),
    )


@torch.no_grad()
def extract_perceptual_features(
    model: Model, layers: Sequence[str], image: Tensor, tile_side: int | None
) -> dict[str, Tensor]:
    """An image's features by layer, whole or put together from tiles."""
    if tile_side is None or not layers:
        return model.features(image, layers) if layers else {}
    plan = plan_tiles(model, layers, (image.shape[2], image.shape[3]), tile_side)
    whole = {
        name: torch.empty(1, model.shape(name)[0], *found, device=model.device)
        for name, found in plan.feature_map_sizes.items()
    }
    for tile in plan.tiles:
        for name, features in read_tile_features(
            model, layers, tile.crop_image(image), tile
        ).items():
            tile.crop_whole_map(name, whole[name]).copy_(features)
    return whole


def compute_partial_moments(
    features: Tensor, position_weights: Tensor | None, position_share: float
) -> FeatureMoments:
    """What some places add to the moments of all: each counts its weight, or `share`."""
    if position_weights is not None:
        return compute_moments(features, position_weights, normalized=True)
    part, counted = (
        compute_moments(features),
        position_share * features.shape[2] * features.shape[3],
    )
    return FeatureMoments(part.mean * counted, part.gram * counted)


def build_gradient_surrogate(
    features: Tensor,
    position_weights: Tensor | None,
    position_share: float,
    leaf_moments: FeatureMoments,
) -> Tensor:
    """A number whose gradient by the features is the loss's, given the loss's slope by the moments."""
    part = compute_partial_moments(features, position_weights, position_share)
    pulled = (
        (part.gram * leaf_moments.gram.grad).sum()
        if leaf_moments.gram.grad is not None
        else features.new_zeros(())
    )
    return (
        pulled + (part.mean * leaf_moments.mean.grad).sum()
        if leaf_moments.mean.grad is not None
        else pulled
    )


def compute_region_weights(mask: Tensor, sizes: Mapping[str, tuple[int, int]]) -> dict[str, Tensor]:
    """A mask 1×1×H×W for each layer's map, scaled to a sum of 1: 1×h×w."""
    scaled = {
        name: F.interpolate(mask, size=size, mode="area")[:, 0] for name, size in sizes.items()
    }
    return {name: weights / weights.sum().clamp_min(1e-12) for name, weights in scaled.items()}
