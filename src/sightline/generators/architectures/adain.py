"""Any style in one pass (Huang 2017): a decoder paints features of a content image that were given the mean and deviation of a style's.

The encoder is a frozen network up to one layer; only the decoder is trained, to give back an image whose features are the given ones.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.errors import SightlineError
from sightline.models.model import Model
from sightline.optim.perceptual.losses import flatten_positions

ADAIN_EPS = 1e-5

# Style is compared in all of these; the deepest is decoded. The paper's are VGG's.
ADAIN_ENCODERS = {
    "sightnet": ("relu1", "relu2_1", "relu2_2", "relu3_1"),
    "squeezenet1_0": ("relu1", "fire2", "fire3", "fire4"),
    "vgg16": ("relu1_1", "relu2_1", "relu3_1", "relu4_1"),
    "vgg19": ("relu1_1", "relu2_1", "relu3_1", "relu4_1"),
}


def compute_channel_statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of N×C×H×W over places, N×C×1×1 each."""
    rows = flatten_positions(features)
    mean, deviation = rows.mean(1), (rows.var(1, correction=0) + ADAIN_EPS).sqrt()
    return mean[..., None, None], deviation[..., None, None]


def apply_adain(content: Tensor, style: tuple[Tensor, Tensor]) -> Tensor:
    """The content's features with a style's mean and deviation, channel by channel (eq. 8). Its own give it back as it is."""
    (mean, deviation), (other, spread) = compute_channel_statistics(content), style
    return (content - mean) / deviation * spread + other


class AdaINDecoder(nn.Module):
    """Features N×channels at a `stride`-th of the size to images in [0, 1]: resize-convolutions, reflected borders, no norm (section 6.2)."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        width = 96
        layers: list[nn.Module] = [
            *make_conv_relu(channels, channels),
            *make_conv_relu(channels, width),
        ]
        for doubling in range(stride.bit_length() - 1):
            layers.append(nn.Upsample(scale_factor=2.0))
            if doubling == 0:  # where it costs least, a convolution more, as in the encoder
                layers += make_conv_relu(width, width)
            less = 64 if doubling == 0 else width // 2
            layers += make_conv_relu(width, less)
            width = less
        self.layers = nn.Sequential(
            *layers, nn.Conv2d(width, 3, 5, padding=2, padding_mode="reflect")
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features).float().sigmoid()


def make_conv_relu(channels: int, width: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, width, 3, padding=1, padding_mode="reflect"), nn.ReLU()]


class AdaINStylizer(nn.Module):
    """Encoder, adaptive instance norm and decoder. `model` is one of `ENCODERS`, `scale` about the size of its deepest features.

    Called as a `Stylizer` is, with images N×3×H×W and rows that say what to do: here mean and deviation of a style's
    features and how strongly they are taken over, N×(2C + 1).
    """

    scale: Tensor

    def __init__(self, model: Model, seed: int = 0) -> None:
        if model.name not in ADAIN_ENCODERS:
            raise SightlineError(
                f"no encoder for any style in {model.name}; choose from {', '.join(ADAIN_ENCODERS)}"
            )
        super().__init__()
        self.model, self.layers = model, [model.layer(name) for name in ADAIN_ENCODERS[model.name]]
        channels, side = model.shape(self.layers[-1])[:2]
        # Without padding, feature maps are a pixel short of the size divided by the stride, so that is rounded.
        self.stride = 2 ** round(torch.tensor(model.size / side).log2().item())
        odd = 8 * self.stride + 1
        with torch.no_grad():
            self.needs_resize = (
                self.encode_image(torch.zeros(1, 3, odd, odd)).shape[-1] * self.stride < odd
            )
        self.register_buffer("scale", torch.ones(()))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.decoder = AdaINDecoder(channels, self.stride)
        self.decoder.to(memory_format=torch.channels_last)
        self.to(model.device)

    @property
    def deepest_layer(self) -> str:
        """The layer that is decoded."""
        return self.layers[-1]

    def forward(self, image: Tensor, mix: Tensor) -> Tensor:
        """Images restyled, of the same size (section 7.1): strength 0 is the decoder's reconstruction."""
        return self.stylize_features(self.encode_image(image), mix, *image.shape[-2:])

    def make_style_row(self, style: Tensor, strength: float | Tensor = 1.0) -> Tensor:
        """What `forward` takes for style images N×3×H×W of any size, N×(2C + 1)."""
        return self.pack_style_row(
            self.encode_image(style),
            torch.as_tensor(strength, device=self.model.device).expand(len(style)),
        )

    def encode_image(self, image: Tensor) -> Tensor:
        """The features that are restyled and decoded."""
        return self.model.run(image, [self.deepest_layer])[self.deepest_layer].float()

    def pack_style_row(self, style_features: Tensor, strength: Tensor) -> Tensor:
        """The rows of a style's features and strengths N."""
        mean, deviation = compute_channel_statistics(style_features)
        return torch.cat([mean.flatten(1), deviation.flatten(1), strength[:, None].to(mean)], 1)

    def stylize_features(self, content: Tensor, mix: Tensor, height: int, width: int) -> Tensor:
        """The picture, of a size, of features that take over what rows say."""
        mean, deviation = (part[..., None, None] for part in mix[:, :-1].chunk(2, 1))
        changed = apply_adain(content, (mean, deviation)) - content
        return self.decode_features(content + mix[:, -1, None, None, None] * changed, height, width)

    def decode_features(self, features: Tensor, height: int, width: int) -> Tensor:
        """The decoder's picture at a size."""
        made = self.decoder(features / self.scale)
        return (
            F.interpolate(made, (height, width), mode="bilinear", align_corners=False)
            if self.needs_resize
            else made[..., :height, :width]
        )
