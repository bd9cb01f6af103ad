"""The feed-forward style network of Johnson 2016, with instance norm in the place of batch norm (Ulyanov 2017), one row of it for
each style (Dumoulin 2017). One pass restyles an image; training it is in `stylizer_training`.

Resize-convolutions instead of transposed ones (no checkerboard), reflection padding (no borders), a sigmoid at the end.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Norm = Literal["instance", "batch", "conditional"]

EPS = 1e-5
STRIDE = 4  # of the residual blocks
LEAST_SIDE = 16  # the outer convolutions reflect 4 pixels, the blocks 1 of a quarter of the side


class InstanceNorm(nn.Module):
    """Each channel of each image to mean 0 and variance 1 over its own positions, then scaled and shifted by a mix of rows.

    `weight` and `bias` are styles×channels; a mix N×styles blends rows for each image (Dumoulin 2017). With one style it is the
    instance norm of Ulyanov 2017. What comes in as channels_last goes out so; torch's own instance norm loses the layout.
    With `together` mean and variance are those of the whole batch, as batch norm has them while it trains.
    """

    together = False

    def __init__(self, channels: int, styles: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(styles, channels))
        self.bias = nn.Parameter(torch.zeros(styles, channels))

    def forward(self, x: Tensor, mix: Tensor) -> Tensor:
        weight, bias = mix @ self.weight, mix @ self.bias
        if torch.is_grad_enabled() and not self.together:
            # Batch norm of one image is instance norm, and has fused kernels for channels_last, forward and backward.
            rows = zip(x.split(1), weight, bias, strict=True)
            return torch.cat([F.batch_norm(one, None, None, scale, shift, training=True, eps=EPS) for one, scale, shift in rows])
        over = (0, 2, 3) if self.together else (2, 3)
        centred = x - x.mean(over, keepdim=True)
        scale = weight[..., None, None] * torch.rsqrt(centred.square().mean(over, keepdim=True) + EPS)
        return torch.addcmul(bias[..., None, None], centred, scale)


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that takes a mix and ignores it."""

    def forward(self, input: Tensor, mix: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(input)


class Block(nn.Module):
    """Convolution with reflected borders, norm, and ReLU unless it is the last; the image is enlarged or reduced first."""

    def __init__(self, channels: int, width: int, kernel: int, norm: Norm, styles: int, *, stride: int = 1, enlarge: int = 1) -> None:
        super().__init__()
        self.enlarge = enlarge
        # The norm's shift makes a bias superfluous.
        self.conv = nn.Conv2d(channels, width, kernel, stride, kernel // 2, padding_mode="reflect", bias=False)
        self.norm = BatchNorm(width) if norm == "batch" else InstanceNorm(width, styles)

    def forward(self, x: Tensor, mix: Tensor) -> Tensor:
        if self.enlarge > 1:
            x = F.interpolate(x, scale_factor=float(self.enlarge), mode="nearest")
        return self.norm(self.conv(x), mix)


class Residual(nn.Module):
    """Two blocks around a shortcut; no ReLU after the sum."""

    def __init__(self, width: int, norm: Norm, styles: int) -> None:
        super().__init__()
        self.one, self.two = Block(width, width, 3, norm, styles), Block(width, width, 3, norm, styles)

    def forward(self, x: Tensor, mix: Tensor) -> Tensor:
        return x + self.two(F.relu(self.one(x, mix)), mix)


class Stylizer(nn.Module):
    """Restyles images N×3×H×W in [0, 1], H and W at least 16, any size; `mix` N×styles says how much of each style, one row in all.

    `width` is the number of channels at full size (Johnson: 32), twice and four times that at half and quarter size.
    """

    def __init__(self, styles: int = 1, *, width: int = 24, blocks: int = 5, norm: Norm = "conditional") -> None:
        super().__init__()
        self.styles, self.width, self.blocks, self.kind = styles, width, blocks, norm
        self.down = nn.ModuleList(
            [
                Block(3, width, 9, norm, styles),
                Block(width, 2 * width, 3, norm, styles, stride=2),
                Block(2 * width, 4 * width, 3, norm, styles, stride=2),
            ]
        )
        self.middle = nn.ModuleList([Residual(4 * width, norm, styles) for _ in range(blocks)])
        self.up = nn.ModuleList(
            [Block(4 * width, 2 * width, 3, norm, styles, enlarge=2), Block(2 * width, width, 3, norm, styles, enlarge=2)]
        )
        self.last = Block(width, 3, 9, norm, styles)

    def forward(self, image: Tensor, mix: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        x = F.pad(image - 0.5, (0, -width % STRIDE, 0, -height % STRIDE), mode="reflect")
        for block in (*self.down, *self.middle, *self.up):
            x = block(x, mix) if isinstance(block, Residual) else F.relu(block(x, mix))
        return self.last(x, mix).float().sigmoid()[..., :height, :width]

    def normalize_together(self, together: bool = True) -> None:
        """Lets every instance norm take mean and variance over the whole batch, or of each image again."""
        for module in self.modules():
            if isinstance(module, InstanceNorm):
                module.together = together

    def one_hot(self, style: Tensor) -> Tensor:
        """The mix N×styles of style indices N."""
        return F.one_hot(style, self.styles).to(self.last.conv.weight)


def seeded(seed: int, styles: int = 1, *, width: int = 24, blocks: int = 5, norm: Norm = "conditional") -> Stylizer:
    """A fresh network, the same for the same seed whatever the process drew before, in channels_last."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Stylizer(styles, width=width, blocks=blocks, norm=norm).to(memory_format=torch.channels_last)
