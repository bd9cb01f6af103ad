"""Layers of a frozen network with less work than torch's own, by public operations.

Their weights need no gradient. The backward pass of a linear layer then reads only those rows of
the weight whose output has a gradient, a batch norm is one multiplication and one addition, and a
small convolution of 1×1 is a linear layer.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# A smaller weight is in the cache, where the whole product is as fast.
MIN_SPARSE_LINEAR_ELEMENTS = 1_000_000

# Where more of the outputs have a gradient, the whole product is as fast.
MAX_SPARSE_GRADIENT_SHARE = 0.75

# Larger convolutions of 1×1 are faster by oneDNN and a packed weight.
MAX_LINEAR_MULTIPLY_ADDS = 20_000_000

# A smaller batch norm without a gradient is as fast by torch's own kernel, which is called once.
MIN_BATCH_NORM_ELEMENTS = 30_000


def is_frozen_float32(x: Tensor, *weights: Tensor | None) -> bool:
    """Whether x is N×C or N×C×H×W, the weights are frozen, and all are float32 on the CPU."""
    tensors = [x]
    for weight in weights:
        if weight is None:
            continue
        if weight.requires_grad:
            return False
        tensors.append(weight)
    if type(x) is not Tensor or x.ndim not in (2, 4) or x.numel() == 0:
        return False
    return all(tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in tensors)


# ── linear layers ──


def try_frozen_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    """`F.linear` by a faster way that gives the same to rounding; None where torch's is as fast."""
    if x.ndim == 3 and not x.is_contiguous():
        # By a frozen weight torch multiplies each row of such a tensor on its own, which takes
        # several times as long: attention's tokens×batch×units is the transpose of a tensor.
        return F.linear(x.contiguous(), weight, bias)
    return try_sparse_linear(x, weight, bias)


def attend_contiguous_tokens(
    query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> Any:
    """`F.multi_head_attention_forward` of contiguous tensors, for the reason in the linear layer.

    Tensors that are one and the same stay so: torch projects these together.
    """
    copies: dict[int, Tensor] = {}
    for tensor in (query, key, value):
        copies[id(tensor)] = tensor.contiguous()
    tokens = (copies[id(query)], copies[id(key)], copies[id(value)])
    return F.multi_head_attention_forward(*tokens, *args, **kwargs)


def try_sparse_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    """`F.linear` of one vector by a large weight. Returns None when torch's kernel is faster."""
    is_one_vector = x.ndim == 2 and len(x) == 1
    if not is_one_vector or weight.numel() < MIN_SPARSE_LINEAR_ELEMENTS:
        return None
    needs_gradient = x.requires_grad and torch.is_grad_enabled()
    if not needs_gradient or not is_frozen_float32(x, weight, bias):
        return None
    return SparseGradientLinear.apply(x, weight, bias)


class SparseGradientLinear(torch.autograd.Function):
    """A linear layer of one vector that skips rows of the weight in its backward pass.

    Only rows whose output has a gradient are read. After a ReLU, or in the last layer when one
    class is differentiated, these are the smaller part, and reading the weight is what takes time.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore
        rows = grad[0].nonzero().view(1, -1)
        count = rows.shape[1]
        is_dense = count > grad.shape[1] * MAX_SPARSE_GRADIENT_SHARE
        # The sparse product is not differentiable again, and there is none of no rows.
        if torch.is_grad_enabled() or is_dense or count == 0:
            return grad @ ctx.weight, None, None
        input_gradient = F.embedding_bag(
            rows, ctx.weight, mode="sum", per_sample_weights=grad[0, rows]
        )
        return input_gradient, None, None


# ── convolutions ──


def try_pointwise_linear(  # noqa: PLR0917 - torch's own signature
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    """A small `F.conv2d` of 1×1 as a linear layer of the channels, or None for any other.

    It saves no input, and starts 0.1 ms sooner than oneDNN, which the smallest do not even take.
    """
    if weight.ndim != 4 or weight.shape[2:] != (1, 1) or groups != 1 or x.ndim != 4:
        return None
    if stride not in (1, (1, 1)) or padding not in (0, (0, 0)):
        return None
    multiply_adds = len(x) * x.shape[2] * x.shape[3] * weight.numel()
    if multiply_adds > MAX_LINEAR_MULTIPLY_ADDS or not is_frozen_float32(x, weight, bias):
        return None
    pixels = x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
    return F.linear(pixels, weight.flatten(1), bias).permute(0, 3, 1, 2)


# ── batch norms ──


def is_large_in_channels_last(x: Tensor) -> bool:
    """Whether x is large, and lies in memory with its channels last."""
    is_large = x.numel() >= MIN_BATCH_NORM_ELEMENTS
    return is_large and x.is_contiguous(memory_format=torch.channels_last)


def try_frozen_batch_norm(  # noqa: PLR0917 - torch's own signature
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    """`F.batch_norm` with running statistics, or None when it has to be torch's own.

    torch's backward pass would also compute gradients of the weight and the bias. Without a
    gradient, torch's own takes twice as long for large inputs in channels_last, and a third of the
    time for others.
    """
    if training or running_mean is None or running_var is None or input.ndim != 4:
        return None
    has_gradient = input.requires_grad and torch.is_grad_enabled()
    if not has_gradient and not is_large_in_channels_last(input):
        return None
    if not is_frozen_float32(input, running_mean, running_var, weight, bias):
        return None
    scale = (running_var + eps).rsqrt()
    if weight is not None:
        scale = scale * weight
    shift = running_mean * scale
    shift = -shift if bias is None else bias - shift
    return torch.addcmul(shift.view(1, -1, 1, 1), input, scale.view(1, -1, 1, 1))
