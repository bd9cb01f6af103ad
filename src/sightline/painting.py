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

from .model import Model
from .objective import Objective, Score
from .perceptual import Kind, Moments, gram_distance, gram_loss, moments, random_directions, sliced_loss, w2_loss
from .tiles import Plan, Tile, planned


@dataclass(frozen=True)
class Region:
    """A style and where it is wanted: `targets` by layer; `weights` by layer, 1×h×w maps that sum to 1, or none for everywhere."""

    share: float
    targets: Mapping[str, Moments]
    weights: Mapping[str, Tensor] | None = None

    def weight(self, name: str, tile: Tile | None = None) -> Tensor | None:
        """The weights of a layer's places, 1×h×w, or of those of a tile."""
        if self.weights is None:
            return None
        return self.weights[name] if tile is None else tile.of(name, self.weights[name])


@dataclass(frozen=True)
class Painting:
    """The loss of an image 1×3×H×W: style in each layer (`style`: weight by layer; one region or several) and mean squared
    difference to the content's features (`content`: weight and target 1×C×h×w by layer).

    kind: "gram" (Gatys' E), "w2" (mean and covariance) or "sliced" (against `samples`, the style's features; whole images only).
    """

    style: Mapping[str, float]
    regions: Sequence[Region]
    content: Mapping[str, tuple[float, Tensor]]
    kind: Kind = "gram"
    samples: Mapping[str, Tensor] | None = None
    seed: int = 0

    @property
    def layers(self) -> tuple[str, ...]:
        """Every layer that is read."""
        return tuple(dict.fromkeys((*self.style, *self.content)))

    def objective(self, tile: int | None = None) -> Objective:
        """Minus the loss, whole or in tiles of about `tile` pixels."""
        if tile is not None:
            return Objective("painting in tiles", (), lambda model: self.in_tiles(model, tile))
        return Objective("painting", (), self.whole)

    def in_tiles(self, model: Model, side: int) -> Score:
        """The score of an image tile by tile; an image of one size is planned once."""
        plan = cache(lambda *size: planned(model, self.layers, size, side))
        return lambda image, _: -InTiles.apply(image, self, model, plan(image.shape[2], image.shape[3]))

    def whole(self, model: Model) -> Score:
        """The score of an image from its features. A layer's part is formed as soon as the network is there: on the way back its gradient,
        as large as the layer's maps, is then formed when the network's own arrives there, and not that of all layers at the start."""
        directions, names = self.directions(model), {name: model.layer(name) for name in self.layers}

        def score(image: Tensor, _: Mapping[str, Tensor]) -> Tensor:
            terms: dict[str, Tensor] = {}

            def read(layer: str, features: Tensor) -> None:
                terms.update({name: self.style_term(name, features, directions) for name in self.style if names[name] == layer})

            found = model.run(image, names.values(), seen=read)
            return -(sum(terms.values(), self.content_loss({name: found[layer] for name, layer in names.items()})))

        return score

    def style_term(self, name: str, features: Tensor, directions: Mapping[str, Tensor]) -> Tensor:
        """One layer's part of the style loss: 1."""
        if self.samples is not None:
            return self.style[name] * sliced_loss(features, self.samples[name], directions[name])
        whole = self.kind == "gram"
        found = [features if whole and one.weights is None else moments(features, one.weight(name), mean=not whole) for one in self.regions]
        return self.style[name] * self.apart(name, found)

    def apart(self, name: str, found: Sequence[Moments | Tensor]) -> Tensor:
        """A layer's unweighted distance to the style, given its moments in each region, or the features of a region that is everywhere: 1."""
        pairs = zip(self.regions, found, strict=True)
        return torch.stack([region.share * distance(one, region.targets[name], self.kind) for region, one in pairs]).sum(0)

    def directions(self, model: Model) -> dict[str, Tensor]:
        """The directions of the sliced loss, drawn once: an optimizer should see one objective."""
        generator = torch.Generator().manual_seed(self.seed)
        samples = self.samples or {}
        return {name: random_directions(features.shape[1], generator).to(model.device) for name, features in samples.items()}

    def style_loss(self, found: Sequence[Mapping[str, Moments]]) -> Tensor:
        """The weighted style loss of the moments in each region: 1."""
        terms = [weight * self.apart(name, [seen[name] for seen in found]) for name, weight in self.style.items()] if found else []
        return torch.stack(terms).sum(0) if terms else torch.zeros(1)

    def content_loss(self, features: Mapping[str, Tensor], tile: Tile | None = None) -> Tensor:
        """The weighted content loss of the features, or a tile's part of the whole: 1."""
        terms = [features[next(iter(features))].new_zeros(1)]
        for name, (weight, target) in self.content.items():
            wanted = target if tile is None else tile.of(name, target)
            terms.append(weight / target.numel() * (features[name].float() - wanted).square().sum().view(1))
        return torch.stack(terms).sum(0)


@torch.no_grad()
def style_losses(painting: Painting, model: Model, image: Tensor, side: int | None) -> dict[str, float]:
    """The unweighted distance to the style by layer, the regions' shares added up."""
    if painting.samples is not None:
        found, directions = model.features(image, list(painting.style)), painting.directions(model)
        return {name: float(sliced_loss(found[name], painting.samples[name], directions[name])) for name in painting.style}
    if side is None:
        features = model.features(image, list(painting.style))
        seen_by = [{name: moments(features[name], region.weight(name)) for name in painting.style} for region in painting.regions]
    else:
        seen_by = all_moments(image, model, list(painting.style), painting.regions, side)
    return {name: float(painting.apart(name, [one[name] for one in seen_by])) for name in painting.style}


def content_losses(painting: Painting, model: Model, image: Tensor, side: int | None) -> dict[str, float]:
    """The mean squared difference to the content by layer."""
    found = features_of(model, list(painting.content), image, side)
    return {name: float((found[name] - target).square().mean()) for name, (_, target) in painting.content.items()}


def distance(found: Moments | Tensor, target: Moments, kind: Kind) -> Tensor:
    """One layer's distance to a style, by its moments, or by its features themselves for the Gram matrix."""
    if isinstance(found, Tensor):
        return gram_distance(found, target.gram)
    return w2_loss(found, target) if kind == "w2" else gram_loss(found.gram, target.gram)


class InTiles(torch.autograd.Function):
    """The loss of an image as a node of autograd whose gradient is found on the way forward."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, painting: Painting, model: Model, plan: Plan) -> Tensor:
        loss, gradient = tiled(image.detach(), painting, model, plan)
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return ctx.saved_tensors[0] * slope.view(-1, 1, 1, 1), None, None, None


def seen(model: Model, layers: Sequence[str], piece: Tensor, tile: Tile) -> dict[str, Tensor]:
    """The features that a tile answers for, by layer."""
    found = model.run(piece, [model.layer(name) for name in layers])
    return {name: tile.own(name, found[model.layer(name)]) for name in layers}


def tiled(image: Tensor, painting: Painting, model: Model, plan: Plan) -> tuple[Tensor, Tensor]:
    """The loss, 1, and its gradient by an image 1×3×H×W, in the tiles of a plan for the painting's layers."""
    shares = plan.shares
    found = summed(image, model, list(painting.style), painting.regions, plan)
    leaves = [{name: Moments(one.mean.requires_grad_(), one.gram.requires_grad_()) for name, one in layer.items()} for layer in found]
    with torch.enable_grad():
        loss = painting.style_loss(leaves)
        if painting.style and painting.regions:
            loss.sum().backward()
    loss, gradient = loss.detach(), torch.zeros_like(image)
    for tile in plan.tiles:
        piece = tile.cut(image).clone().requires_grad_()
        with torch.enable_grad():
            features = seen(model, painting.layers, piece, tile)
            content = painting.content_loss(features, tile)
            pulls = [
                pull(features[name], region.weight(name, tile), shares[name], leaf[name])
                for region, leaf in zip(painting.regions, leaves, strict=True)
                for name in painting.style
            ]
            (content.sum() + sum(pulls)).backward()
        loss += content.detach()
        tile.cut(gradient).add_(piece.grad if piece.grad is not None else 0)
    return loss, gradient


@torch.no_grad()
def summed(image: Tensor, model: Model, layers: Sequence[str], regions: Sequence[Region], plan: Plan) -> list[dict[str, Moments]]:
    """Mean and Gram matrix of each layer in each region over the whole image."""
    totals: list[dict[str, Moments]] = [{} for _ in regions]
    for tile in plan.tiles if layers else ():
        features = seen(model, layers, tile.cut(image), tile)
        for region, total in zip(regions, totals, strict=True):
            for name in layers:
                part = partial_moments(features[name], region.weight(name, tile), plan.shares[name])
                total[name] = Moments(total[name].mean + part.mean, total[name].gram + part.gram) if name in total else part
    return totals


@torch.no_grad()
def moments_of(model: Model, layers: Sequence[str], image: Tensor, side: int | None) -> dict[str, Moments]:
    """The moments of an image's features by layer, whole or in tiles."""
    if side is None:
        return {name: moments(found) for name, found in model.features(image, layers).items()}
    return all_moments(image, model, layers, [Region(1.0, {})], side)[0]


def all_moments(image: Tensor, model: Model, layers: Sequence[str], regions: Sequence[Region], side: int) -> list[dict[str, Moments]]:
    """The moments in each region by layer, in tiles."""
    return summed(image, model, layers, regions, planned(model, layers, (image.shape[2], image.shape[3]), side))


@torch.no_grad()
def features_of(model: Model, layers: Sequence[str], image: Tensor, side: int | None) -> dict[str, Tensor]:
    """An image's features by layer, whole or put together from tiles."""
    if side is None or not layers:
        return model.features(image, layers) if layers else {}
    plan = planned(model, layers, (image.shape[2], image.shape[3]), side)
    whole = {name: torch.empty(1, model.shape(name)[0], *found, device=model.device) for name, found in plan.sizes.items()}
    for tile in plan.tiles:
        for name, features in seen(model, layers, tile.cut(image), tile).items():
            tile.of(name, whole[name]).copy_(features)
    return whole


def partial_moments(features: Tensor, weight: Tensor | None, share: float) -> Moments:
    """What some places add to the moments of all: each counts its weight, or `share`."""
    if weight is not None:
        return moments(features, weight, normalized=True)
    part, counted = moments(features), share * features.shape[2] * features.shape[3]
    return Moments(part.mean * counted, part.gram * counted)


def pull(features: Tensor, weight: Tensor | None, share: float, slope: Moments) -> Tensor:
    """A number whose gradient by the features is the loss's, given the loss's slope by the moments."""
    part = partial_moments(features, weight, share)
    pulled = (part.gram * slope.gram.grad).sum() if slope.gram.grad is not None else features.new_zeros(())
    return pulled + (part.mean * slope.mean.grad).sum() if slope.mean.grad is not None else pulled


def region_weights(mask: Tensor, sizes: Mapping[str, tuple[int, int]]) -> dict[str, Tensor]:
    """A mask 1×1×H×W for each layer's map, scaled to a sum of 1: 1×h×w."""
    scaled = {name: F.interpolate(mask, size=size, mode="area")[:, 0] for name, size in sizes.items()}
    return {name: weights / weights.sum().clamp_min(1e-12) for name, weights in scaled.items()}
