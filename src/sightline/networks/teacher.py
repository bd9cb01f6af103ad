"""What a style network is taught by: the losses of `perceptual` in one loss network, brought to units that need no tuning.

Each layer's E is divided by what untouched photographs have, for each style on its own, and the content loss by what two
unrelated photographs have. So a style loss of 1 means that nothing was done, a content loss of 1 that nothing was kept,
and one pair of weights holds for every style and every loss network.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import SightlineError
from ..model import Model
from ..objective import tv
from ..perceptual import Layers, content_loss, gram, gram_distance, gram_loss, refuse_other_scale
from ..receptive import receptive_field


@dataclass(frozen=True)
class Terms:
    """Content, style and total variation of each image, N each, unweighted."""

    content: Tensor
    style: Tensor
    variation: Tensor


class Teacher:
    """The losses of images against photographs and styles. `styles` are 1×3×H×W of any size, `photos` N×3×H×W a sample of the training data."""

    @torch.no_grad()
    def __init__(self, model: Model, layers: Layers, styles: Sequence[Tensor], photos: Tensor) -> None:
        refuse_other_scale(model, photos)
        self.model, self.layers = model, layers
        self.variation = tv().bind(model)
        self.grams = {name: torch.cat([gram(model.features(style, name)[name]) for style in styles]) for name in layers.style}
        seen = model.features(photos, [*layers.content, *layers.style])
        other = {name: seen[name].roll(1, 0) for name in layers.content}
        self.kept = {name: content_loss(seen[name], other[name]).mean() for name in layers.content}
        self.untouched = {name: self.distances(gram(seen[name]), name) for name in layers.style}

    def distances(self, grams: Tensor, layer: str) -> Tensor:
        """The mean E of Gram matrices N×C×C to each style, S."""
        return torch.stack([gram_loss(grams, target[None]).mean() for target in self.grams[layer]])

    def terms(self, made: Tensor, photo: Tensor, style: Tensor) -> Terms:
        """The losses of `made` N×3×H×W as restyled `photo`, each in the style of index `style` N. Differentiable."""
        with torch.no_grad():
            wanted = self.model.run(photo, self.names(self.layers.content))
        found = self.model.run(made, self.names([*self.layers.content, *self.layers.style]))
        content = [content_loss(found[name], wanted[name]) / self.kept[own] for own, name in self.pairs(self.layers.content)]
        manner = [
            gram_distance(found[name], self.grams[own][style]) / self.untouched[own][style] for own, name in self.pairs(self.layers.style)
        ]
        return Terms(torch.stack(content).mean(0), torch.stack(manner).mean(0), self.variation(made, {}))

    def names(self, layers: Sequence[str]) -> list[str]:
        return [self.model.layer(name) for name in layers]

    def pairs(self, layers: Sequence[str]) -> list[tuple[str, str]]:
        return list(zip(layers, self.names(layers), strict=True))


def check_style(image: Tensor, model: Model, layer: str, name: str) -> None:
    """Raises SightlineError for a style image of which the deepest style layer would see mostly border."""
    height, width = image.shape[-2:]
    least = max(receptive_field(model, layer).size)
    if min(height, width) < least:
        raise SightlineError(
            f"{name} is {height}×{width} pixels at this style size; {layer} of {model.name} sees {least}: use a larger picture or style size"
        )
