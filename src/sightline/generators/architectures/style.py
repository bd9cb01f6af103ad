"""The feed-forward style network: one pass restyles an image (Johnson 2016).

Batch norm is replaced by instance norm (Ulyanov 2017) with one row of scale and shift for each
style (Dumoulin 2017). Departures from Johnson: resize-convolutions instead of transposed ones,
which leave a checkerboard; reflection padding instead of zeros, which leave borders; a sigmoid at
the end. Training is in `generators/training`.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NormKind = Literal["instance", "batch", "conditional"]

INSTANCE_NORM_EPS = 1e-5

# Of the residual blocks.
STYLIZER_STRIDE = 4

# The outer convolutions reflect 4 pixels; those of the residual blocks 1, at a quarter of the size.
MIN_STYLIZER_SIDE = 16


class ConditionalInstanceNorm(nn.Module):
    """Instance norm whose scale and shift are a mix of rows, one for each style (Dumoulin 2017).

    Each channel of each image N×C×H×W is brought to mean 0 and variance 1 over its positions, then
    scaled and shifted by `mix` N×styles times `weight` and `bias` styles×C. With one style this is
    the instance norm of Ulyanov 2017. A channels_last input gives a channels_last output; torch's
    instance norm loses the layout.

    With `use_batch_statistics`, mean and variance are taken over the whole batch, as batch norm
    does in training.
    """

    use_batch_statistics = False

    def __init__(self, channels: int, style_count: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(style_count, channels))
        self.bias = nn.Parameter(torch.zeros(style_count, channels))

    def forward(self, x: Tensor, mix: Tensor) -> Tensor:
        weight = mix @ self.weight
        bias = mix @ self.bias
        if torch.is_grad_enabled() and not self.use_batch_statistics:
            return normalize_instances(x, weight, bias)
        axes = (0, 2, 3) if self.use_batch_statistics else (2, 3)

        centred = x - x.mean(axes, keepdim=True)
        variance = centred.square().mean(axes, keepdim=True)
        scale = weight[..., None, None] * torch.rsqrt(variance + INSTANCE_NORM_EPS)
        return torch.addcmul(bias[..., None, None], centred, scale)


def normalize_instances(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Instance norm of N×C×H×W with scale and shift N×C, image by image.

    Batch norm of one image is instance norm, and has fused channels_last kernels for forward and
    backward.
    """
    normalized = [
        F.batch_norm(image, None, None, scale, shift, training=True, eps=INSTANCE_NORM_EPS)
        for image, scale, shift in zip(x.split(1), weight, bias, strict=True)
    ]
    return torch.cat(normalized)


class MixFreeBatchNorm(nn.BatchNorm2d):
    """Batch norm that takes a mix and ignores it."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, input: Tensor, mix: Tensor
    ) -> Tensor:
        return super().forward(input)


class ConvNormBlock(nn.Module):
    """Convolution with reflected borders, then norm. `enlarge` scales the input up first."""

    def __init__(
        self,
        channels: int,
        width: int,
        kernel: int,
        norm: NormKind,
        style_count: int,
        *,
        stride: int = 1,
        enlarge: int = 1,
    ) -> None:
        super().__init__()
        self.enlarge = enlarge
        # No bias: the norm removes it and adds its own shift.
        self.conv = nn.Conv2d(
            channels, width, kernel, stride, kernel // 2, padding_mode="reflect", bias=False
        )
        if norm == "batch":
            self.norm = MixFreeBatchNorm(width)
        else:
            self.norm = ConditionalInstanceNorm(width, style_count)

    def forward(self, x: Tensor, mix: Tensor) -> Tensor:
        if self.enlarge > 1:
            x = F.interpolate(x, scale_factor=float(self.enlarge), mode="nearest")
        return self.norm(self.conv(x), mix)


class ResidualBlock(nn.Module):
    """Two convolutions around a shortcut; no ReLU after the sum."""

    def __init__(self, width: int, norm: NormKind, style_count: int) -> None:
        super().__init__()
        # The names of the layers are those in the files of weights.
        self.one = ConvNormBlock(width, width, 3, norm, style_count)
        self.two = ConvNormBlock(width, width, 3, norm, style_count)

    def forward(self, x: Tensor, mix: Tensor) -> Tensor:
        return x + self.two(F.relu(self.one(x, mix)), mix)


class Stylizer(nn.Module):
    """Restyles images N×3×H×W in [0, 1]; sides are at least 16, the output has the same shape.

    `mix` N×styles holds the weight of each style, with a sum of 1 in each row. `width` is the
    number of channels at full size (Johnson: 32); there are twice as many at half and four times as
    many at a quarter of the size.
    """

    def __init__(
        self,
        style_count: int = 1,
        *,
        width: int = 24,
        blocks: int = 5,
        norm: NormKind = "conditional",
    ) -> None:
        super().__init__()
        self.style_count = style_count
        self.width = width
        self.blocks = blocks
        self.norm_kind = norm
        self.down = nn.ModuleList(
            [
                ConvNormBlock(3, width, 9, norm, style_count),
                ConvNormBlock(width, 2 * width, 3, norm, style_count, stride=2),
                ConvNormBlock(2 * width, 4 * width, 3, norm, style_count, stride=2),
            ]
        )
        self.middle = nn.ModuleList(
            [ResidualBlock(4 * width, norm, style_count) for _ in range(blocks)]
        )
        self.up = nn.ModuleList(
            [
                ConvNormBlock(4 * width, 2 * width, 3, norm, style_count, enlarge=2),
                ConvNormBlock(2 * width, width, 3, norm, style_count, enlarge=2),
            ]
        )
        self.last = ConvNormBlock(width, 3, 9, norm, style_count)

    def forward(self, image: Tensor, mix: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        # Each side is padded to a multiple of the stride; the output is cut back.
        padding = (0, -width % STYLIZER_STRIDE, 0, -height % STYLIZER_STRIDE)
        x = F.pad(image - 0.5, padding, mode="reflect")

        for block in self.down:
            x = F.relu(block(x, mix))
        for block in self.middle:
            x = block(x, mix)
        for block in self.up:
            x = F.relu(block(x, mix))

        output = self.last(x, mix).float().sigmoid()
        return output[..., :height, :width]

    def set_batch_statistics(self, enabled: bool = True) -> None:
        """Makes every instance norm normalize over the whole batch, or over each image again."""
        for module in self.modules():
            if isinstance(module, ConditionalInstanceNorm):
                module.use_batch_statistics = enabled

    def make_one_hot(self, style: Tensor) -> Tensor:
        """The mix N×styles for style indices N."""
        return F.one_hot(style, self.style_count).to(self.last.conv.weight)


def make_stylizer(
    seed: int,
    style_count: int = 1,
    *,
    width: int = 24,
    blocks: int = 5,
    norm: NormKind = "conditional",
) -> Stylizer:
    """A network in channels_last with random weights, which depend on the seed alone.

    The state of the global random generator is preserved.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Stylizer(style_count, width=width, blocks=blocks, norm=norm)
    return network.to(memory_format=torch.channels_last)
