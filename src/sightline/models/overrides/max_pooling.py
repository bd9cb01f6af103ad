"""Max pooling that keeps less for its backward pass: of what it pools, where each maximum stood, in 32 bits; of a ReLU before it, nothing.

torch keeps a ReLU's result, the largest maps of a network, and the places in 64 bits. Where a maximum is 0 the ReLU lets nothing back,
and nowhere else does it change anything; so the maximum alone tells what both do, and the map between them can go.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# Maps with fewer numbers are not worth the way.
MIN_COMPACT_POOL_ELEMENTS = 1_000_000

aten: Any = torch.ops.aten


def is_large_differentiable_batch(x: Tensor) -> bool:
    """Whether x is a large batch of maps N×C×H×W, on a processor, that a gradient will be asked for."""
    return (
        type(x) is Tensor
        and x.ndim == 4
        and x.numel() >= MIN_COMPACT_POOL_ELEMENTS
        and x.requires_grad
        and torch.is_grad_enabled()
        and x.device.type == "cpu"
    )


def try_bypassed_relu(input: Tensor, inplace: bool = False) -> Tensor | None:
    """`F.relu`, which notes a way around itself for a pooling that may follow, or None where the input is small."""
    if not is_large_differentiable_batch(input):
        return None
    around = GradientBypass.apply(input)
    found = F.relu(input, inplace)
    node: Any = found.grad_fn
    node.metadata["around"] = around
    return found


def try_compact_max_pool(  # noqa: PLR0917 - torch's own signature
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | None:
    """`F.max_pool2d`, or None where the input is small or the places are asked for."""
    if not is_large_differentiable_batch(input) or return_indices:
        return None
    node: Any = input.grad_fn
    around: Tensor | None = node.metadata.get("around") if node is not None else None
    geometry = kernel_size, stride or [], padding, dilation, ceil_mode
    return CompactMaxPool.apply(
        *(input, False) if around is None else (around, True), input.detach(), geometry
    )


class GradientBypass(torch.autograd.Function):
    """Stands for x, without its numbers, so that gradients reach what x came from."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.new_zeros(1).expand(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad


class CompactMaxPool(torch.autograd.Function):
    """Max pooling of `maps`, whose gradient goes to `x`; if the maps were `rectified`, to what they were before that."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, is_rectified: bool, maps: Tensor, geometry: tuple[Any, ...]
    ) -> Tensor:
        found, places = aten.max_pool2d_with_indices(maps, *geometry)
        ctx.places = (torch.where(found <= 0, -1, places) if is_rectified else places).to(
            torch.int32
        )
        ctx.shape, ctx.geometry, ctx.last = (
            maps.shape,
            geometry,
            maps.is_contiguous(memory_format=torch.channels_last),
        )
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        order = torch.channels_last if ctx.last else torch.contiguous_format
        like = torch.empty(
            ctx.shape, dtype=grad.dtype, memory_format=order
        )  # read for its shape only
        alive = torch.where(ctx.places < 0, 0, grad).contiguous(memory_format=order)
        return (
            aten.max_pool2d_with_indices_backward(
                alive, like, *ctx.geometry, ctx.places.clamp_min(0).long()
            ),
            None,
            None,
            None,
        )
