"""The losses that train a style network, in units that need no tuning.

The style loss of a layer is Gatys' E divided by the mean E of untouched photographs, for each style
on its own. The content loss of a layer is the mean squared difference divided by that of two
unrelated photographs. A style loss of 1 means that nothing was changed, a content loss of 1 that
nothing was preserved, and one pair of weights holds for every style and every loss network.
"""

from collections.abc import Mapping, Sequence
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
    """Content and style losses of restyled images.

    `styles` are S images 1×3×H×W of any size, `photos` N×3×H×W a sample of the training data that
    sets the units.
    """

    @torch.no_grad()
    def __init__(
        self, model: Model, layers: PerceptualLayers, styles: Sequence[Tensor], photos: Tensor
    ) -> None:
        refuse_wrong_input_scale(model, photos)
        self.model = model
        self.layers = layers
        self.total_variation = tv().bind(model)
        self.style_grams = {
            name: torch.cat([compute_gram(model.features(style, name)[name]) for style in styles])
            for name in layers.style
        }
        photo_features = model.features(photos, [*layers.content, *layers.style])
        self.content_units = self.measure_content_units(photo_features)
        self.style_units = self.measure_style_units(photo_features)

    def measure_content_units(self, photo_features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The mean content loss between each photograph and the one before it, by layer."""
        units: dict[str, Tensor] = {}
        for name in self.layers.content:
            features = photo_features[name]
            units[name] = compute_content_loss(features, features.roll(1, 0)).mean()
        return units

    def measure_style_units(self, photo_features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The mean style loss of the photographs to each style, S, by layer."""
        units: dict[str, Tensor] = {}
        for name in self.layers.style:
            grams = compute_gram(photo_features[name])
            distances = [
                compute_gram_loss(grams, style_gram[None]).mean()
                for style_gram in self.style_grams[name]
            ]
            units[name] = torch.stack(distances)
        return units

    def compute_terms(self, stylized: Tensor, photo: Tensor, style: Tensor) -> LossTerms:
        """The losses of images `stylized` N×3×H×W, which were made from `photo`.

        `style` N holds the index of each image's style. Differentiable in `stylized`.
        """
        content_layers = [self.model.layer(name) for name in self.layers.content]
        style_layers = [self.model.layer(name) for name in self.layers.style]
        with torch.no_grad():
            target = self.model.run(photo, content_layers)
        features = self.model.run(stylized, [*content_layers, *style_layers])

        # Units and Gram matrices are kept under the names that were asked for, features under the
        # network's own.
        content_losses: list[Tensor] = []
        for name, layer in zip(self.layers.content, content_layers, strict=True):
            unit = self.content_units[name]
            error = compute_content_loss(features[layer], target[layer])
            content_losses.append(error / unit)

        style_losses: list[Tensor] = []
        for name, layer in zip(self.layers.style, style_layers, strict=True):
            unit = self.style_units[name][style]
            target_grams = self.style_grams[name][style]
            error = compute_gram_loss_from_features(features[layer], target_grams)
            style_losses.append(error / unit)

        return LossTerms(
            torch.stack(content_losses).mean(0),
            torch.stack(style_losses).mean(0),
            self.total_variation(stylized, {}),
        )
