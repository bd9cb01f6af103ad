"""What a style network is taught by: the losses of `perceptual` in one loss network, brought to units that need no tuning.

Each layer's E is divided by what untouched photographs have, for each style on its own, and the content loss by what two
unrelated photographs have. So a style loss of 1 means that nothing was done, a content loss of 1 that nothing was kept,
and one pair of weights holds for every style and every loss network.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sightline.models.model import Model
from sightline.optim.objectives.objective import tv
from sightline.optim.perceptual.layers import PerceptualLayers, refuse_wrong_input_scale
from sightline.optim.perceptual.losses import (
    compute_content_loss,
    compute_gram,
    compute_gram_loss,
    compute_gram_loss_from_features,
)


@dataclass(frozen=True)
class LossTerms:
    """Content, style and total variation of each image, N each, unweighted."""

    content: Tensor
    style: Tensor
    total_variation: Tensor


class PerceptualLoss:
    """The losses of images against photographs and styles. `styles` are 1×3×H×W of any size, `photos` N×3×H×W a sample of the training data."""

    @torch.no_grad()
    def __init__(
        self, model: Model, layers: PerceptualLayers, styles: Sequence[Tensor], photos: Tensor
    ) -> None:
        refuse_wrong_input_scale(model, photos)
        self.model, self.layers = model, layers
        self.total_variation = tv().bind(model)
        self.style_grams = {
            name: torch.cat([compute_gram(model.features(style, name)[name]) for style in styles])
            for name in layers.style
        }
        seen = model.features(photos, [*layers.content, *layers.style])
        other = {name: seen[name].roll(1, 0) for name in layers.content}
        self.content_units = {
            name: compute_content_loss(seen[name], other[name]).mean() for name in layers.content
        }
        self.style_units = {
            name: self.measure_style_distances(compute_gram(seen[name]), name)
            for name in layers.style
        }

    def measure_style_distances(self, grams: Tensor, layer: str) -> Tensor:
        """The mean E of Gram matrices N×C×C to each style, S."""
        return torch.stack(
            [compute_gram_loss(grams, target[None]).mean() for target in self.style_grams[layer]]
        )

    def compute_terms(self, stylized: Tensor, photo: Tensor, style: Tensor) -> LossTerms:
        """The losses of `made` N×3×H×W as restyled `photo`, each in the style of index `style` N. Differentiable."""
        with torch.no_grad():
            wanted = self.model.run(photo, self.resolve_layers(self.layers.content))
        found = self.model.run(
            stylized, self.resolve_layers([*self.layers.content, *self.layers.style])
        )
        content = [
            compute_content_loss(found[name], wanted[name]) / self.content_units[own]
            for own, name in self.pair_layers(self.layers.content)
        ]
        manner = [
            compute_gram_loss_from_features(found[name], self.style_grams[own][style])
            / self.style_units[own][style]
            for own, name in self.pair_layers(self.layers.style)
        ]
        return LossTerms(
            torch.stack(content).mean(0),
            torch.stack(manner).mean(0),
            self.total_variation(stylized, {}),
        )

    def resolve_layers(self, layers: Sequence[str]) -> list[str]:
        return [self.model.layer(name) for name in layers]

    def pair_layers(self, layers: Sequence[str]) -> list[tuple[str, str]]:
        return list(zip(layers, self.resolve_layers(layers), strict=True))
