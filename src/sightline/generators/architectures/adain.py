"""Any style in one pass: adaptive instance norm between encoder and decoder (Huang 2017).

The features of a content image take over the mean and standard deviation of a style's features,
channel by channel, and a decoder turns them into an image. The encoder is a frozen network up to
one layer; only the decoder is trained.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.errors import SightlineError
from sightline.models.model import Model
from sightline.optim.perceptual.losses import flatten_positions

ADAIN_EPS = 1e-5

# Style is compared in all of these layers; the deepest is decoded. Those of VGG are the paper's.
ADAIN_ENCODERS = {
    "sightnet": ("relu1", "relu2_1", "relu2_2", "relu3_1"),
    "sightnet_plain": ("relu1", "relu2_1", "relu2_2", "relu3_1"),
    "squeezenet1_0": ("relu1", "fire2", "fire3", "fire4"),
    "vgg16": ("relu1_1", "relu2_1", "relu3_1", "relu4_1"),
    "vgg19": ("relu1_1", "relu2_1", "relu3_1", "relu4_1"),
}


def compute_channel_statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of N×C×H×W over positions, N×C×1×1 each."""
    rows = flatten_positions(features)
    mean = rows.mean(1)
    deviation = (rows.var(1, correction=0) + ADAIN_EPS).sqrt()
    return mean[..., None, None], deviation[..., None, None]


def apply_adain(content: Tensor, style: tuple[Tensor, Tensor]) -> Tensor:
    """Gives content features N×C×H×W a style's mean and standard deviation, N×C×1×1 each (eq. 8).

    The content's own statistics leave the features unchanged.
    """
    mean, deviation = compute_channel_statistics(content)
    style_mean, style_deviation = style
    return (content - mean) / deviation * style_deviation + style_mean


class AdaINDecoder(nn.Module):
    """Turns features N×C×h×w into images N×3×(stride·h)×(stride·w) in [0, 1].

    Resize-convolutions with reflected borders and no norm (section 6.2).
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        width = 96
        layers: list[nn.Module] = [
            *make_conv_relu(channels, channels),
            *make_conv_relu(channels, width),
        ]
        for doubling in range(stride.bit_length() - 1):
            layers.append(nn.Upsample(scale_factor=2.0))
            next_width = width // 2
            if doubling == 0:
                # One convolution more at the smallest size, where it costs least, as in the
                # encoder.
                layers += make_conv_relu(width, width)
                next_width = 64
            layers += make_conv_relu(width, next_width)
            width = next_width
        layers.append(nn.Conv2d(width, 3, 5, padding=2, padding_mode="reflect"))
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features).float().sigmoid()


def make_conv_relu(channels: int, width: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, width, 3, padding=1, padding_mode="reflect"), nn.ReLU()]


class AdaINStylizer(nn.Module):
    """Encoder, adaptive instance norm and decoder, called as a `Stylizer` is.

    `model` is one of `ADAIN_ENCODERS`. `forward` takes images N×3×H×W and a mix N×(2C + 1): in each
    row the mean and the standard deviation of a style's deepest features, and the strength with
    which they are taken over. `scale` is the root mean square of the deepest features; the
    decoder's input is divided by it.
    """

    scale: Tensor

    def __init__(self, model: Model, seed: int = 0) -> None:
        if model.name not in ADAIN_ENCODERS:
            raise SightlineError(
                f"{model.name} can't be the encoder of a network for any style;"
                f" choose from {', '.join(ADAIN_ENCODERS)}"
            )
        super().__init__()
        self.model = model
        self.layers = [model.layer(name) for name in ADAIN_ENCODERS[model.name]]
        channels, feature_side = model.shape(self.layers[-1])[:2]
        # Without padding, features have a few positions less than size / stride, so the ratio is
        # rounded.
        self.stride = 2 ** round(torch.tensor(model.size / feature_side).log2().item())
        self.needs_resize = self.loses_border_positions()
        self.register_buffer("scale", torch.ones(()))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.decoder = AdaINDecoder(channels, self.stride)
        self.decoder.to(memory_format=torch.channels_last)
        self.to(model.device)

    @property
    def deepest_layer(self) -> str:
        """The layer whose features are decoded."""
        return self.layers[-1]

    @torch.no_grad()
    def loses_border_positions(self) -> bool:
        """Whether decoded features are smaller than the image, for want of padding."""
        side = 8 * self.stride + 1
        features = self.encode_image(torch.zeros(1, 3, side, side))
        return features.shape[-1] * self.stride < side

    def forward(self, image: Tensor, mix: Tensor) -> Tensor:
        """Restyles images; the output has their size.

        Strength 0 gives the decoder's reconstruction (section 7.1).
        """
        height, width = image.shape[-2:]
        content = self.encode_image(image)
        return self.stylize_features(content, mix, height, width)

    def make_style_row(self, style: Tensor, strength: float | Tensor = 1.0) -> Tensor:
        """The mix N×(2C + 1) of style images N×3×H×W of any size, with one strength or N."""
        strengths = torch.as_tensor(strength, device=self.model.device).expand(len(style))
        return self.pack_style_row(self.encode_image(style), strengths)

    def encode_image(self, image: Tensor) -> Tensor:
        """The deepest features N×C×h×w, in float32."""
        features = self.model.run(image, [self.deepest_layer])
        return features[self.deepest_layer].float()

    def pack_style_row(self, style_features: Tensor, strength: Tensor) -> Tensor:
        """Concatenates statistics of style features N×C×h×w and strengths N to a mix N×(2C + 1)."""
        mean, deviation = compute_channel_statistics(style_features)
        columns = [mean.flatten(1), deviation.flatten(1), strength[:, None].to(mean)]
        return torch.cat(columns, 1)

    def stylize_features(self, content: Tensor, mix: Tensor, height: int, width: int) -> Tensor:
        """Images N×3×height×width from content features that take over the statistics in `mix`."""
        statistics = mix[:, :-1, None, None]
        strength = mix[:, -1, None, None, None]
        mean, deviation = statistics.chunk(2, 1)
        change = apply_adain(content, (mean, deviation)) - content
        features = content + strength * change
        return self.decode_features(features, height, width)

    def decode_features(self, features: Tensor, height: int, width: int) -> Tensor:
        """The decoder's images N×3×height×width."""
        image = self.decoder(features / self.scale)
        if self.needs_resize:
            return F.interpolate(image, (height, width), mode="bilinear", align_corners=False)
        return image[..., :height, :width]
