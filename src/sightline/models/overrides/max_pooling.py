"""Max pooling that keeps less memory for its backward pass.

torch keeps the output of a ReLU, often the largest tensors of a network, and the indices of each
maximum in 64 bits. Where a maximum is 0 the ReLU before it lets no gradient through, and elsewhere
it changes nothing. So the maximum alone tells what both do: of the ReLU nothing is kept, and of the
pooling the indices in 32 bits.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.models.overrides.fast_operations import backpropagate_max_pool, is_available

# Smaller tensors are not worth the overhead.
MIN_COMPACT_POOL_ELEMENTS = 1_000_000

# Under this key a ReLU's graph node holds the tensor that leads around it.
_BYPASS_KEY = "sightline_bypass"


def is_large_differentiable_batch(x: Tensor) -> bool:
    """Whether x is a large N×C×H×W on the CPU whose gradient will be needed."""
    return (
        type(x) is Tensor
        and x.ndim == 4
        and x.numel() >= MIN_COMPACT_POOL_ELEMENTS
        and x.requires_grad
        and torch.is_grad_enabled()
        and x.device.type == "cpu"
        and is_available("max pooling backward")
    )


def try_bypassed_relu(input: Tensor, inplace: bool = False) -> Tensor | None:
    """`F.relu` that notes a path around itself for a pooling that may follow.

    Returns None when the input is small.
    """
    if not is_large_differentiable_batch(input):
        return None
    bypass = GradientBypass.apply(input)
    output = F.relu(input, inplace)
    node: Any = output.grad_fn
    node.metadata[_BYPASS_KEY] = bypass
    return output


def try_compact_max_pool(  # noqa: PLR0917 - torch's own signature
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | None:
    """`F.max_pool2d`, or None when the input is small or the indices are asked for."""
    if return_indices or not is_large_differentiable_batch(input):
        return None
    node: Any = input.grad_fn
    bypass: Tensor | None = node.metadata.get(_BYPASS_KEY) if node is not None else None
    settings = (kernel_size, stride or kernel_size, padding, dilation, ceil_mode)
    if bypass is None:
        return CompactMaxPool.apply(input, False, input.detach(), settings)
    return CompactMaxPool.apply(bypass, True, input.detach(), settings)


class GradientBypass(torch.autograd.Function):
    """A stand-in of x's shape without its values; its gradient is x's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.new_zeros(1).expand(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore
        return grad


class CompactMaxPool(torch.autograd.Function):
    """Max pooling of `maps` whose gradient goes to `x`.

    With `is_rectified` the maps are the output of a ReLU and x stands for that ReLU's input.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, is_rectified: bool, maps: Tensor, settings: tuple[Any, ...]
    ) -> Tensor:
        output, indices = F.max_pool2d(maps, *settings, return_indices=True)
        if is_rectified:
            # -1 marks a maximum whose ReLU lets no gradient through; NaN is no such maximum.
            indices = torch.where(output <= 0, -1, indices)
        ctx.indices = indices.to(torch.int32)
        ctx.input_shape = maps.shape
        ctx.settings = settings
        is_channels_last = maps.is_contiguous(memory_format=torch.channels_last)
        ctx.memory_format = torch.channels_last if is_channels_last else torch.contiguous_format
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore
        pool_input = torch.empty(
            ctx.input_shape,
            dtype=grad.dtype,
            device=grad.device,
            memory_format=ctx.memory_format,
        )
        active_gradient = torch.where(ctx.indices < 0, 0, grad)
        input_gradient = backpropagate_max_pool(
            active_gradient.contiguous(memory_format=ctx.memory_format),
            pool_input,
            ctx.settings,
            ctx.indices.clamp_min(0).long(),
        )
        return input_gradient, None, None, None
