"""Any style in one pass (Huang 2017): a decoder paints features of a content image that were given the mean and deviation of a style's.

The encoder is a loss network up to one layer; only the decoder is trained, to give back an image whose features are the given ones.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import SightlineError
from ..model import Model
from ..perceptual import content_loss, rows_of
from .photos import Photos

EPS = 1e-5
ENCODERS = {"sightnet": ("relu1", "relu2_1", "relu2_2", "relu3_1"), "squeezenet1_0": ("relu1", "fire2", "fire3", "fire4")}


def statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of N×C×H×W over places, N×C×1×1 each."""
    rows = rows_of(features)
    mean, deviation = rows.mean(1), (rows.var(1, correction=0) + EPS).sqrt()
    return mean[..., None, None], deviation[..., None, None]


def adain(content: Tensor, style: Tensor) -> Tensor:
    """The content's features with the mean and deviation of the style's, channel by channel (eq. 8). The same features come back as they are."""
    (mean, deviation), (other, spread) = statistics(content), statistics(style)
    return (content - mean) / deviation * spread + other


class Decoder(nn.Module):
    """Features N×channels at a `stride`-th of the size to images in [0, 1]: resize-convolutions, reflected borders, no norm (section 6.2)."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, 96, 3, padding=1, padding_mode="reflect"), nn.ReLU()]
        width = 96
        while stride > 1:
            less = max(24, width // 2)
            layers += [nn.Upsample(scale_factor=2.0), nn.Conv2d(width, less, 3, padding=1, padding_mode="reflect"), nn.ReLU()]
            width, stride = less, stride // 2
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 3, 5, padding=2, padding_mode="reflect"))

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features).sigmoid()


class AnyStyle:
    """Encoder, adaptive instance norm and decoder. `model` is one of `ENCODERS`; its deepest layer there is what is decoded."""

    def __init__(self, model: Model, seed: int = 0) -> None:
        if model.name not in ENCODERS:
            raise SightlineError(f"no encoder for any style in {model.name}; choose from {', '.join(ENCODERS)}")
        self.model, self.layers = model, [model.layer(name) for name in ENCODERS[model.name]]
        # Feature maps may be a pixel short of the size divided by the stride, so that is rounded.
        self.stride = 2 ** round(torch.tensor(model.size / model.shape(self.layers[-1])[1]).log2().item())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.decoder = Decoder(model.shape(self.layers[-1])[0], self.stride).to(model.device)
        # The deepest features are brought to about unit size, whatever the encoder's own scale.
        self.scale = 1.0

    def encoded(self, image: Tensor, layers: Sequence[str] | None = None) -> dict[str, Tensor]:
        """The encoder's features."""
        return self.model.run(image, layers or self.layers)

    def decoded(self, features: Tensor, height: int, width: int) -> Tensor:
        """The decoder's picture at a size."""
        made = self.decoder(features / self.scale)
        return made if made.shape[-2:] == (height, width) else F.interpolate(made, (height, width), mode="bilinear", align_corners=False)

    def restyled(self, image: Tensor, style: Tensor, strength: float = 1.0) -> Tensor:
        """Images N×3×H×W in the style of an image of any size; `strength` from 0, the decoder's reconstruction, to 1 (section 7.1)."""
        deep = self.layers[-1]
        content, manner = (self.encoded(picture, [deep])[deep] for picture in (image, style))
        return self.decoded(content + strength * (adain(content, manner) - content), *image.shape[-2:])

    def loss(self, photo: Tensor, style: Tensor, style_weight: float) -> Tensor:
        """Content to the features that were asked for, and mean and deviation in every layer (eq. 11 to 13), each over its own size: N."""
        deep = self.layers[-1]
        with torch.no_grad():
            wanted = self.encoded(style)
            target = adain(self.encoded(photo, [deep])[deep], wanted[deep])
        found = self.encoded(self.decoded(target, *photo.shape[-2:]))
        terms = content_loss(found[deep], target) / target.square().mean()
        for layer in self.layers:
            for one, other in zip(statistics(found[layer]), statistics(wanted[layer]), strict=True):
                terms = terms + style_weight * content_loss(one, other) / other.square().mean() / len(self.layers)
        return terms

    def learn(
        self,
        photos: Photos,
        styles: Photos,
        *,
        steps: int,
        size: int,
        batch: int = 4,
        lr: float = 1e-3,
        style_weight: float = 2.0,
        seed: int = 0,
    ) -> list[float]:
        """Trains the decoder on pairs of photographs and styles; gives the loss of each step."""
        self.scale = float(self.encoded(photos.drawn(seed, 0, batch, size).to(self.model.device))[self.layers[-1]].square().mean().sqrt())
        optimizer: Any = torch.optim.Adam(self.decoder.parameters(), lr)
        told = list[float]()
        for step in range(steps):
            photo, style = (source.drawn(seed + i, step, batch, size).to(self.model.device) for i, source in enumerate((photos, styles)))
            loss = self.loss(photo, style, style_weight).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            told.append(float(loss.detach()))
        return told
