"""Loss weights of published style transfer implementations, converted to the units of `losses`."""

from collections.abc import Sequence
from dataclasses import dataclass

from sightline.models.weights.published import PublishedWeights
from sightline.optim.perceptual.losses import StyleDistanceKind


@dataclass(frozen=True)
class StylePreset:
    """How an implementation weights content, style and total variation.

    Attributes:
        content: Weight of the mean squared content difference.
        style: Weight of the style loss.
        channel_power: Each layer's E is multiplied by 4/C^power, for implementations that divide
            the Gram matrix by more than M or take a plain mean of squares. With 0 the layers are
            averaged instead.
        kind: The style distance.
        layer_shares: Relative weight of each style layer, shallowest first; the last one repeats.
        tv: Weight of total variation.
        source: Where the weights come from.
        relative: Whether each distance is divided by its value for zero features, |G − A|²/|A|² and
            |F − P|²/|P|², which makes it independent of the network's scale.
        published_network: The network that the weights were published for.
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
        """The weight of each layer's style loss (E for "gram"), shallowest first."""
        layer_count = len(channels)
        last_share = self.layer_shares[-1] if self.layer_shares else 1.0
        padded_shares = [*self.layer_shares, *[last_share] * layer_count]
        shares = padded_shares[:layer_count]
        if self.kind != "gram":
            total = sum(shares)
            return [self.style * share / total for share in shares]

        weights: list[float] = []
        for share, channel_count in zip(shares, channels, strict=True):
            if self.channel_power:
                factor = 4 / channel_count**self.channel_power
            else:
                factor = 1 / layer_count
            weights.append(self.style * share * factor)
        return weights

    def describe_network_mismatch(self, recognized: PublishedWeights | None) -> str:
        """A warning if the preset was published for a network with other weights, else ""."""
        if not self.published_network:
            return ""
        if recognized and recognized.name == self.published_network:
            return ""
        return (
            f"These weights were published for {self.published_network}; in a network whose "
            "activations have another scale, content or style may dominate."
        )

    def pair_losses(
        self, losses: Sequence[float], channels: Sequence[int]
    ) -> list[tuple[float, float]]:
        """Each layer's loss as E (or W2), and as this implementation would print it."""
        weights = self.compute_layer_weights(channels)
        return [(loss, weight * loss) for loss, weight in zip(losses, weights, strict=True)]


STYLE_PRESETS: dict[str, StylePreset] = {
    "relative": StylePreset(
        content=1.0,
        style=30.0,
        channel_power=0,
        relative=True,
        source="our own: the published weights hold only for VGG and its scale of activations",
    ),
    "gatys": StylePreset(
        content=1.0,
        style=1e3,
        channel_power=0,
        source=(
            "Gatys 2016: w_l = 1/5 each on E, content to style 1e-3; "
            "his content sum ½Σ is taken as a mean here"
        ),
        published_network="Caffe's VGG-19",
    ),
    "authors": StylePreset(
        content=1.0,
        style=1e3,
        channel_power=2,
        source="PytorchNeuralStyleTransfer's notebook: mean squared FFᵀ/M, 1e3/C² each, content 1",
        published_network="Caffe's VGG-19",
    ),
    "johnson": StylePreset(
        content=1.0,
        style=5.0,
        channel_power=2,
        tv=1e-6,
        source="fast-neural-style's train.lua: mean squared FFᵀ/CM, 5 each, content 1",
        published_network="Caffe's VGG-16",
    ),
    "crowson": StylePreset(
        content=0.015,
        style=1.0,
        channel_power=0,
        kind="w2",
        layer_shares=(256.0, 64.0, 16.0, 4.0, 1.0),
        tv=2.0,
        source="style-transfer-pytorch: mean and covariance, content 0.015",
        published_network="torchvision's VGG-19",
    ),
}
