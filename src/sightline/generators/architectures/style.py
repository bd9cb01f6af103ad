"""The feed-forward style network of Johnson 2016, with instance norm in the place of batch norm (Ulyanov 2017), one row of it for
each style (Dumoulin 2017). One pass restyles an image; training it is in `stylizer_training`.

Resize-convolutions instead of transposed ones (no checkerboard), reflection padding (no borders), a sigmoid at the end.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NormKind = Literal["instance", "batch", "conditional"]

INSTANCE_NORM_EPS = 1e-5

STYLIZER_STRIDE = 4  # of the residual blocks

MIN_STYLIZER_SIDE = (
    16  # the outer convolutions reflect 4 pixels, the blocks 1 of a quarter of the side
)


class ConditionalInstanceNorm(nn.Module):
    """Each channel of each image to mean 0 and variance 1 over its own positions, then scaled and shifted by a mix of rows.

    `weight` and `bias` are styles×channels; a mix N×styles blends rows for each image (Dumoulin 2017). With one style it is the
    instance norm of Ulyanov 2017. What comes in as channels_last goes out so; torch's own instance norm loses the layout.
    With `together` mean and variance are those of the whole batch, as batch norm has them while it trains.
    """

    use_batch_statistics = False

    def __init__(self, channels: int, style_count: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(style_count, channels))
        self.bias = nn.Parameter(torch.zeros(style_count, channels))

    def forward(self, x: Tensor, mix: Tensor) -> Tensor:
        weight, bias = mix @ self.weight, mix @ self.bias
        if torch.is_grad_enabled() and not self.use_batch_statistics:
            # Batch norm of one image is instance norm, and has fused kernels for channels_last, forward and backward.
            rows = zip(x.split(1), weight, bias, strict=True)
            return torch.cat(
                [
                    F.batch_norm(
                        one, None, None, scale, shift, training=True, eps=INSTANCE_NORM_EPS
                    )
                    for one, scale, shift in rows
                ]
            )
        over = (0, 2, 3) if self.use_batch_statistics else (2, 3)
        centred = x - x.mean(over, keepdim=True)
        scale = weight[..., None, None] * torch.rsqrt(
            centred.square().mean(over, keepdim=True) + INSTANCE_NORM_EPS
        )
        return torch.addcmul(bias[..., None, None], centred, scale)


class MixFreeBatchNorm(nn.BatchNorm2d):
    """Batch norm that takes a mix and ignores it."""

    def forward(self, input: Tensor, mix: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(input)


class ConvNormBlock(nn.Module):
    """Convolution with reflected borders, norm, and ReLU unless it is the last; the image is enlarged or reduced first."""

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
        # The norm's shift makes a bias superfluous.
        self.conv = nn.Conv2d(
            channels, width, kernel, stride, kernel // 2, padding_mode="reflect", bias=False
        )
        self.norm = (
            MixFreeBatchNorm(width)
            if norm == "batch"
            else ConditionalInstanceNorm(width, style_count)
        )

    def forward(self, x: Tensor, mix: Tensor) -> Tensor:
        if self.enlarge > 1:
            x = F.interpolate(x, scale_factor=float(self.enlarge), mode="nearest")
        return self.norm(self.conv(x), mix)


class ResidualBlock(nn.Module):
    """Two blocks around a shortcut; no ReLU after the sum."""

    def __init__(self, width: int, norm: NormKind, style_count: int) -> None:
        super().__init__()
        self.one, self.two = (
            ConvNormBlock(width, width, 3, norm, style_count),
            ConvNormBlock(width, width, 3, norm, style_count),
        )

    def forward(self, x: Tensor, mix: Tensor) -> Tensor:
        return x + self.two(F.relu(self.one(x, mix)), mix)


class Stylizer(nn.Module):
    """Restyles images N×3×H×W in [0, 1], H and W at least 16, any size; `mix` N×styles says how much of each style, one row in all.

    `width` is the number of channels at full size (Johnson: 32), twice and four times that at half and quarter size.
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
        self.style_count, self.width, self.blocks, self.norm_kind = style_count, width, blocks, norm
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
        x = F.pad(
            image - 0.5, (0, -width % STYLIZER_STRIDE, 0, -height % STYLIZER_STRIDE), mode="reflect"
        )
        for block in (*self.down, *self.middle, *self.up):
            x = block(x, mix) if isinstance(block, ResidualBlock) else F.relu(block(x, mix))
        return self.last(x, mix).float().sigmoid()[..., :height, :width]

    def set_batch_statistics(self, enabled: bool = True) -> None:
        """Lets every instance norm take mean and variance over the whole batch, or of each image again."""
        for module in self.modules():
            if isinstance(module, ConditionalInstanceNorm):
                module.use_batch_statistics = enabled

    def make_one_hot(self, style: Tensor) -> Tensor:
        """The mix N×styles of style indices N."""
        return F.one_hot(style, self.style_count).to(self.last.conv.weight)


def make_stylizer(
    seed: int,
    style_count: int = 1,
    *,
    width: int = 24,
    blocks: int = 5,
    norm: NormKind = "conditional",
) -> Stylizer:
    """A fresh network, the same for the same seed whatever the process drew before, in channels_last."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Stylizer(style_count, width=width, blocks=blocks, norm=norm).to(
            memory_format=torch.channels_last
        )
