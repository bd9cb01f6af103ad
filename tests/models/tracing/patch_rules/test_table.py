"""Every rule against the literal result: each covered image made, and run whole."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.models.convnext import ConvNeXt as TimmConvNeXt
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

import sightline as sl
from sightline.models.tracing.incremental import score_occluded_windows
from sightline.models.tracing.windows import OcclusionScores, OcclusionWindows

WINDOWS = [(5, 9), (8, 5), (13, 11)]  # side and stride
# Of the largest change of a score; and of the largest score, for networks that hardly change it.
TOLERANCE = {torch.float32: (1e-5, 3e-6), torch.float64: (1e-12, 3e-15)}


class Made(nn.Module):
    """A stem of a patchify convolution, a function of its maps N×8×H×W, and a head."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.stem = nn.Conv2d(3, 8, 2, stride=2)
        self.depthwise = nn.Conv2d(8, 8, 7, padding=3, groups=8)
        self.strided = nn.Conv2d(8, 8, 5, stride=2, padding=2, groups=8)
        self.norm = nn.LayerNorm(8)
        self.widen = nn.Linear(8, 16)
        self.narrow = nn.Linear(16, 8, bias=False)
        self.scale = nn.Parameter(torch.zeros(8))
        self.last = nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.function(self, self.stem(x))
        return self.head(F.hardswish(self.last(x)).mean((2, 3)))


def randomize(network: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Random values for all parameters, also those that begin as zeros and ones."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            spread = (2 / parameter[0].numel()) ** 0.5 if parameter.ndim > 1 else 0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
    return network.eval().to(dtype)


def compare(
    network: nn.Module,
    window: int = 8,
    stride: int = 10,
    *,
    height: int = 40,
    width: int = 54,
    dtype: torch.dtype = torch.float32,
) -> OcclusionScores:
    """The incremental scores, after a comparison with those of every covered image run whole."""
    model = sl.load(randomize(network, dtype), size=(height, width), device="cpu")
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(1, 3, height, width, generator=generator)
    fill = torch.rand(1, 3, height, width, generator=generator)
    positions = [
        (top, left)
        for top in range(0, height - window + 1, stride)
        for left in range(0, width - window + 1, stride)
    ]
    literal: list[Tensor] = []
    for top, left in positions:
        covered = image.clone()
        area = (..., slice(top, top + window), slice(left, left + window))
        covered[area] = fill[area]
        with torch.no_grad():
            literal.append(model.logits(covered)[0])
    expected = torch.stack(literal)

    windows = OcclusionWindows(image, fill, positions, window)
    result = score_occluded_windows(model, windows, lambda logits: torch.arange(logits.shape[1]))
    assert result.scores.dtype == dtype
    error = (result.scores - expected).abs().max()
    of_changes, of_scores = TOLERANCE[dtype]
    largest_change = (expected.amax(0) - expected.amin(0)).max()
    assert error <= max(of_changes * largest_change, of_scores * expected.abs().max())
    return result


# ── blocks that are local ──


def convnext_block(n: Any, x: Tensor) -> Tensor:
    y = n.norm(n.depthwise(x).permute(0, 2, 3, 1))
    y = n.narrow(F.gelu(n.widen(y))).permute(0, 3, 1, 2)
    return x + n.scale.view(-1, 1, 1) * y


def channels_last_throughout(n: Any, x: Tensor) -> Tensor:
    y = n.depthwise(x).permute(0, 2, 3, 1).contiguous()
    z = n.scale * n.narrow(F.silu(n.widen(n.norm(y))))
    z += y
    return z.movedim(-1, 1)


def inverted_residual(n: Any, x: Tensor) -> Tensor:
    return F.hardswish(n.strided(F.silu(n.depthwise(x), inplace=True)))


def gated_channels(n: Any, x: Tensor) -> Tensor:
    value, gate = n.widen(x.permute(0, 2, 3, 1)).chunk(2, -1)
    return (value * torch.sigmoid(gate)).permute(0, 3, 1, 2)


def joined_channels(n: Any, x: Tensor) -> Tensor:
    y = x.permute(0, 2, 3, 1)
    return n.narrow(torch.cat([n.norm(y), y[..., 4:], y[..., :4]], -1)).permute(0, 3, 1, 2)


def rows_and_columns_exchanged(n: Any, x: Tensor) -> Tensor:
    return F.gelu(x.transpose(2, 3) * n.scale.view(-1, 1, 1)).transpose(-1, -2)


def mean_of_channels_last(n: Any, x: Tensor) -> Tensor:
    y = n.depthwise(x).permute(0, 2, 3, 1)
    return n.widen(y).mean((1, 2), keepdim=True)[..., :8].permute(0, 3, 1, 2).expand(-1, -1, 3, 4)


LOCAL = {
    block.__name__: block
    for block in (
        convnext_block,
        channels_last_throughout,
        inverted_residual,
        gated_channels,
        joined_channels,
        rows_and_columns_exchanged,
        mean_of_channels_last,
    )
}


@pytest.mark.parametrize("name", LOCAL)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=["single", "double"])
def test_local_blocks_are_exact(name: str, dtype: torch.dtype) -> None:
    result = compare(Made(LOCAL[name]), dtype=dtype)
    assert not result.fallback
    assert result.speedup_bound > 1.4
    least = 0.4 if name == "mean_of_channels_last" else 0.9
    assert result.localized_share > least


@pytest.mark.parametrize(("window", "stride"), WINDOWS)
def test_windows_of_any_size_and_stride(window: int, stride: int) -> None:
    assert compare(Made(convnext_block), window, stride).localized_share > 0.5
    assert (
        compare(Made(inverted_residual), window, stride, height=51, width=34).localized_share > 0.5
    )


# ── blocks that are not ──


def normalized_over_positions(n: Any, x: Tensor) -> Tensor:
    y = x.permute(0, 2, 3, 1)
    return F.layer_norm(y, y.shape[1:]).permute(0, 3, 1, 2)


def linear_along_rows(n: Any, x: Tensor) -> Tensor:
    weight = torch.linspace(-1, 1, x.shape[3] * 6).view(6, -1).to(x)
    return F.linear(x, weight)


def constants_that_vary_with_position(n: Any, x: Tensor) -> Tensor:
    y = x.permute(0, 2, 3, 1)
    ramp = torch.linspace(0, 1, y.shape[2] * 8).view(-1, 8).to(x)
    return (y + ramp).permute(0, 3, 1, 2)


def batch_moved(n: Any, x: Tensor) -> Tensor:
    return F.gelu(x.permute(1, 0, 2, 3)).permute(1, 0, 2, 3)


def squeeze_and_excitation(n: Any, x: Tensor) -> Tensor:
    gate = n.narrow(F.silu(n.widen(x.mean((2, 3)))))
    return x * torch.sigmoid(gate)[:, :, None, None]


def slices_of_rows(n: Any, x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)[:, 2:].permute(0, 3, 1, 2)


GLOBAL = {
    block.__name__: block
    for block in (
        normalized_over_positions,
        linear_along_rows,
        constants_that_vary_with_position,
        batch_moved,
        squeeze_and_excitation,
        slices_of_rows,
    )
}


@pytest.mark.parametrize("name", GLOBAL)
def test_what_mixes_positions_ends_the_localized_part(name: str) -> None:
    assert compare(Made(GLOBAL[name])).localized_share < 0.5


def test_the_fallback_names_the_operation() -> None:
    network = nn.Sequential(nn.Flatten(1), nn.Unflatten(1, (3, 40, 54)), Made(convnext_block))
    result = compare(network)
    assert result.localized_share == 0
    assert "view" in result.fallback


# ── architectures ──


def test_convnext_of_torchvision() -> None:
    blocks = [CNBlockConfig(8, 16, 1), CNBlockConfig(16, 24, 2), CNBlockConfig(24, None, 1)]
    result = compare(ConvNeXt(blocks, num_classes=5), 8, 40, height=96, width=128)
    assert result.localized_share > 0.6
    assert result.speedup_bound > 1.5


@pytest.mark.parametrize("conv_mlp", [True, False])
def test_convnext_of_timm(conv_mlp: bool) -> None:
    network = TimmConvNeXt(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32), conv_mlp=conv_mlp)
    result = compare(network, 8, 40, height=96, width=128)
    assert result.localized_share > 0.6
    assert result.speedup_bound > 1.5


@pytest.mark.parametrize(
    "name", ["convnextv2_atto", "poolformer_s12", "mobilenetv3_small_050", "edgenext_xx_small"]
)
def test_networks_that_mix_positions_early_are_exact(name: str) -> None:
    network = timm.create_model(name, num_classes=5)
    assert 0 <= compare(network, 16, 48, height=64, width=96).localized_share < 0.7
