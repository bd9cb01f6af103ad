"""Feature statistics of an image in regions, of the whole image at once or summed over tiles.

Means and Gram matrices are sums over positions, so those of the tiles add up to those of the whole
image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sightline.models.model import Model
from sightline.optim.perceptual.losses import FeatureMoments, compute_moments
from sightline.optim.perceptual.tiling import ImageTile, TilePlan, plan_tiles


@dataclass(frozen=True)
class StyleRegion:
    """A style, and the region of the image that should have it.

    Attributes:
        share: The region's weight in the style loss.
        targets: The style's moments by layer.
        weights: Weights of the positions by layer, 1×h×w with a sum of 1. None for everywhere.
    """

    share: float
    targets: Mapping[str, FeatureMoments]
    weights: Mapping[str, Tensor] | None = None

    def get_position_weights(self, name: str, tile: ImageTile | None = None) -> Tensor | None:
        """The weights of a layer's positions, 1×h×w, or of those that a tile owns."""
        if self.weights is None:
            return None
        if tile is None:
            return self.weights[name]
        return tile.crop_whole_map(name, self.weights[name])


@torch.no_grad()
def extract_perceptual_features(
    model: Model, layers: Sequence[str], image: Tensor, tile_side: int | None
) -> dict[str, Tensor]:
    """An image's features by layer; with `tile_side` assembled from tiles."""
    if not layers:
        return {}
    if tile_side is None:
        return model.features(image, layers)

    plan = plan_tiles(model, layers, (image.shape[2], image.shape[3]), tile_side)
    whole_maps: dict[str, Tensor] = {}
    for name, size in plan.feature_map_sizes.items():
        channels = model.shape(name)[0]
        whole_maps[name] = torch.empty(1, channels, *size, device=model.device)

    for tile in plan.tiles:
        tile_features = read_tile_features(model, layers, tile.crop_image(image), tile)
        for name, features in tile_features.items():
            tile.crop_whole_map(name, whole_maps[name]).copy_(features)
    return whole_maps


def read_tile_features(
    model: Model, layers: Sequence[str], pixels: Tensor, tile: ImageTile
) -> dict[str, Tensor]:
    """The features at the positions that a tile owns, by layer."""
    canonical_names = [model.layer(name) for name in layers]
    features = model.run(pixels, canonical_names)
    owned_features: dict[str, Tensor] = {}
    for name, layer in zip(layers, canonical_names, strict=True):
        owned_features[name] = tile.crop_owned_features(name, features[layer])
    return owned_features


@torch.no_grad()
def compute_region_moments(
    model: Model,
    layers: Sequence[str],
    image: Tensor,
    regions: Sequence[StyleRegion],
    tile_side: int | None,
) -> list[dict[str, FeatureMoments]]:
    """The moments in each region by layer; with `tile_side` summed over tiles."""
    if tile_side is not None:
        plan = plan_tiles(model, layers, (image.shape[2], image.shape[3]), tile_side)
        return sum_tile_moments(model, layers, image, regions, plan)

    features = model.features(image, layers)
    moments_by_region: list[dict[str, FeatureMoments]] = []
    for region in regions:
        moments = {
            name: compute_moments(features[name], region.get_position_weights(name))
            for name in layers
        }
        moments_by_region.append(moments)
    return moments_by_region


@torch.no_grad()
def sum_tile_moments(
    model: Model,
    layers: Sequence[str],
    image: Tensor,
    regions: Sequence[StyleRegion],
    plan: TilePlan,
) -> list[dict[str, FeatureMoments]]:
    """The moments of the whole image in each region by layer, summed over the tiles of a plan."""
    totals: list[dict[str, FeatureMoments]] = [{} for _ in regions]
    if not layers:
        return totals
    for tile in plan.tiles:
        features = read_tile_features(model, layers, tile.crop_image(image), tile)
        for region, total in zip(regions, totals, strict=True):
            for name in layers:
                moments = compute_partial_moments(
                    features[name],
                    region.get_position_weights(name, tile),
                    plan.position_shares[name],
                )
                if name in total:
                    moments = FeatureMoments(
                        total[name].mean + moments.mean, total[name].gram + moments.gram
                    )
                total[name] = moments
    return totals


def compute_partial_moments(
    features: Tensor, position_weights: Tensor | None, position_share: float
) -> FeatureMoments:
    """What some positions add to the moments of the whole image.

    Each position counts its weight or, without weights, `position_share`.
    """
    if position_weights is not None:
        return compute_moments(features, position_weights, normalized=True)
    moments = compute_moments(features)
    share = position_share * features.shape[2] * features.shape[3]
    return FeatureMoments(moments.mean * share, moments.gram * share)
