"""The weights of published implementations of style transfer, in the units of `perceptual`: each layer's loss is Gatys' E."""

from collections.abc import Sequence
from dataclasses import dataclass

from sightline.models.weights.published import PublishedWeights
from sightline.optim.perceptual.losses import StyleDistanceKind


@dataclass(frozen=True)
class StylePreset:
    """How a published implementation weighs its terms: of each layer's E (`share`, times 4/C^`power` for a Gram matrix that is
    divided by more than M or compared by a plain mean), of the mean squared content difference, of total variation.

    `relative` ones divide each distance by what it would be to nothing (|G − A|²/|A|² and |F − P|²/|P|²): free of the network's scale.
    The others hold for their authors' `network`.
    """

    content: float
    style: float
    channel_power: int
    kind: StyleDistanceKind = "gram"
    layer_shares: tuple[float, ...] = ()
    tv: float = 0.0
    source: str = ""
    relative: bool = False
    published_network: str = ""

    def compute_layer_weights(self, channels: Sequence[int]) -> list[float]:
        """The weight of each layer's E (of its distance for the other kinds), the deepest layer last."""
        count = len(channels)
        given = [
            *self.layer_shares,
            *[self.layer_shares[-1] if self.layer_shares else 1.0] * count,
        ][:count]
        if self.kind != "gram":
            return [self.style * share / sum(given) for share in given]
        factors = [4 / c**self.channel_power if self.channel_power else 1 / count for c in channels]
        return [self.style * share * factor for share, factor in zip(given, factors, strict=True)]

    def describe_network_mismatch(self, recognized: PublishedWeights | None) -> str:
        """What to say where the weights were published for another network than one with these weights, or nothing."""
        if not self.published_network or (recognized and recognized.name == self.published_network):
            return ""
        return f"These weights were published for {self.published_network}; where activations have another scale they may drown content or style."

    def pair_losses(
        self, losses: Sequence[float], channels: Sequence[int]
    ) -> list[tuple[float, float]]:
        """Each layer's loss as E (or W2) and as this implementation would print it."""
        return [
            (loss, weight * loss)
            for loss, weight in zip(losses, self.compute_layer_weights(channels), strict=True)
        ]


STYLE_PRESETS: dict[str, StylePreset] = {
    "relative": StylePreset(
        1.0,
        30.0,
        0,
        relative=True,
        source="our own: the published weights hold for VGG and its scale of activations only",
    ),
    "gatys": StylePreset(
        1.0,
        1e3,
        0,
        source="Gatys 2016: w_l = 1/5 each on E, content to style 1e-3; his content sum ½Σ is taken as a mean here",
        published_network="Caffe's VGG-19",
    ),
    "authors": StylePreset(
        1.0,
        1e3,
        2,
        source="PytorchNeuralStyleTransfer's notebook: mean squared FFᵀ/M, 1e3/C² each, content 1",
        published_network="Caffe's VGG-19",
    ),
    "johnson": StylePreset(
        1.0,
        5.0,
        2,
        tv=1e-6,
        source="fast-neural-style's train.lua: mean squared FFᵀ/CM, 5 each, content 1",
        published_network="Caffe's VGG-16",
    ),
    "crowson": StylePreset(
        0.015,
        1.0,
        0,
        "w2",
        (256.0, 64.0, 16.0, 4.0, 1.0),
        tv=2.0,
        source="style-transfer-pytorch: mean and covariance, content 0.015",
        published_network="torchvision's VGG-19",
    ),
}
