"""Layers of a frozen network with less work than torch's own.

Their weights need no gradient. The backward pass of a linear layer then reads only those rows of
the weight whose output has a gradient, a batch norm is one multiplication and one addition, and a
small convolution of 1×1 is a linear layer. Linear layers of many positions, as transformers have
them, run by weights that are packed once for each direction.
"""

import math
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from sightline.models.overrides.fast_operations import (
    is_available,
    reorder_linear_weight,
    run_packed_linear,
)

# A smaller weight is in the cache, where the whole product is as fast.
MIN_SPARSE_LINEAR_ELEMENTS = 1_000_000

# Where more of the outputs have a gradient, the whole product is as fast.
MAX_SPARSE_GRADIENT_SHARE = 0.75

# Smaller products, or those of few positions, gain nothing by a packed weight.
MIN_PACKED_MULTIPLY_ADDS = 20_000_000
MIN_PACKED_POSITIONS = 32

# The first linear layers of old networks have larger weights, and are given few positions.
MAX_PACKED_WEIGHT_ELEMENTS = 32_000_000

# Writes through `.data` leave no trace but the values. Of a weight with more, a sample is compared.
FEW_ELEMENTS = 1024

PACKED_LINEAR_WEIGHTS: Any = WeakTensorKeyDictionary()  # weight → its PackedLinearWeight
NORM_FACTORS: Any = WeakTensorKeyDictionary()  # running variance → its NormFactors

# Larger convolutions of 1×1 are faster by oneDNN and a packed weight.
MAX_LINEAR_MULTIPLY_ADDS = 20_000_000


@dataclass(kw_only=True)
class WeightStamp:
    """Tells whether a weight was written to since something was made of it.

    `address`, `version` and `sample_bytes` are the weight's of then; `sample_view` shows the same
    sample of its values as they are now, and keeps their memory from being given to others.
    """

    address: int
    version: int
    sample_view: NDArray[Any]
    sample_bytes: bytes

    @classmethod
    def begin(cls, weight: Tensor, **settings: Any) -> Self:
        """The stamp of a weight as it is now."""
        sample_view = view_sample(weight)
        return cls(
            address=weight.data_ptr(),
            version=weight._version,
            sample_view=sample_view,
            sample_bytes=sample_view.tobytes(),
            **settings,
        )

    def is_current(self, weight: Tensor) -> bool:
        """Whether this is the weight, and was not written to since."""
        is_same = self.version == weight._version and self.address == weight.data_ptr()
        return is_same and self.sample_bytes == self.sample_view.tobytes()


def view_sample(weight: Tensor) -> NDArray[Any]:
    """A view of a weight's numbers, in large ones of some of each filter and each input channel.

    So a filter that is pruned shows, also by `weight.data[3] = 0`, which counts as no write.
    `weight` is dense in memory, contiguous or in channels_last.
    """
    values = weight.detach()
    inner = 1
    if values.ndim > 1 and values.is_contiguous():
        inner = values[0, 0].numel()
    elif values.ndim == 4:
        values = values.permute(0, 2, 3, 1)  # as channels_last has them
    flat = values.numpy().reshape(-1)
    if weight.ndim < 2 or len(flat) <= FEW_ELEMENTS:
        return flat
    filters, channels = weight.shape[:2]
    # Steps of a number of channels that shares no divisor with all of them pass by each of them.
    step = min(filters, channels)
    while math.gcd(step, channels) > 1:
        step -= 1
    return flat[:: step * inner]


@dataclass(kw_only=True)
class PackedWeight(WeightStamp):
    """A weight in oneDNN's layouts, by direction and whatever else tells them apart."""

    reordered: dict[Hashable, Tensor] = field(default_factory=dict[Hashable, Tensor])


def is_frozen_float32(x: Tensor, *weights: Tensor | None) -> bool:
    """Whether x is N×C or N×C×H×W, the weights are frozen, and all are float32 on the CPU."""
    return x.ndim in (2, 4) and are_frozen_float32(x, *weights)


def are_frozen_float32(x: Tensor, *weights: Tensor | None) -> bool:
    """Whether x has numbers, the weights are frozen, and all are float32 on the CPU."""
    tensors = [x]
    for weight in weights:
        if weight is None:
            continue
        if weight.requires_grad:
            return False
        tensors.append(weight)
    if type(x) is not Tensor or x.numel() == 0:
        return False
    return all(tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in tensors)


# ── linear layers ──


def try_frozen_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    """`F.linear` by a faster way that gives the same to rounding; None where torch's is as fast."""
    if is_worth_packing(x, weight, bias):
        return PackedLinear.apply(x, weight, bias, False)
    if x.ndim == 3 and not x.is_contiguous():
        # By a frozen weight torch multiplies each row of such a tensor on its own, which takes
        # several times as long: attention's tokens×batch×units is the transpose of a tensor.
        return F.linear(x.contiguous(), weight, bias)
    return try_sparse_linear(x, weight, bias)


def is_worth_packing(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether a linear layer is faster by a packed weight, which it may have."""
    # A weight that is computed anew for each pass gains nothing from packing. One made in inference
    # mode does not count the writes to it.
    if not isinstance(weight, nn.Parameter) or weight.is_inference() or weight.ndim != 2:
        return False
    positions = x.numel() // max(1, weight.shape[1])
    is_large = (
        positions >= MIN_PACKED_POSITIONS
        and positions * weight.numel() >= MIN_PACKED_MULTIPLY_ADDS
        and weight.numel() <= MAX_PACKED_WEIGHT_ELEMENTS
    )
    if not is_large or x.shape[-1] != weight.shape[1] or not weight.is_contiguous():
        return False
    if not is_plain_bias(bias, len(weight)):
        return False
    return are_frozen_float32(x, weight, bias) and is_available("packed linear")


def is_plain_bias(bias: Tensor | None, count: int) -> bool:
    """Whether a bias is one number for each of `count` outputs, next to each other.

    oneDNN reads it so, whatever its shape and strides are.
    """
    return bias is None or (bias.shape == (count,) and bias.is_contiguous())


@dataclass(kw_only=True)
class PackedLinearWeight(PackedWeight):
    """A linear layer's weight in oneDNN's layout, as it is and transposed."""

    def multiply(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, *, transposed: bool
    ) -> Tensor:
        """The linear layer by the weight or, `transposed`, the gradient of its input."""
        direction = "backward" if transposed else "forward"
        if direction not in self.reordered:
            matrix = weight.detach().T.contiguous() if transposed else weight.detach()
            self.reordered[direction] = reorder_linear_weight(matrix)
        return run_packed_linear(x, self.reordered[direction], bias)


def get_packed_linear_weight(weight: Tensor) -> PackedLinearWeight:
    """What is packed of a linear layer's weight, empty if it was written to."""
    packed: PackedLinearWeight | None = PACKED_LINEAR_WEIGHTS.get(weight)
    if packed is None or not packed.is_current(weight):
        packed = PackedLinearWeight.begin(weight)
        PACKED_LINEAR_WEIGHTS[weight] = packed
    return packed


class PackedLinear(torch.autograd.Function):
    """A linear layer or, `transposed`, the gradient of its input, by a packed weight.

    Each of the two is the other's backward pass, and only the weight is kept for it.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool
    ) -> Tensor:
        ctx.weight = weight
        ctx.transposed = transposed
        ctx.packed = get_packed_linear_weight(weight)
        return ctx.packed.multiply(x, weight, bias, transposed=transposed)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore
        was_written = ctx.weight._version != ctx.packed.version
        if torch.is_grad_enabled() or was_written:
            gradient = PackedLinear.apply(grad, ctx.weight, None, not ctx.transposed)
        else:
            gradient = ctx.packed.multiply(grad, ctx.weight, None, transposed=not ctx.transposed)
        return gradient, None, None, None


# Keys and values of torch's attention that are given ready made.
STATIC_TENSORS = ("static_k", "static_v")


def attend_to_oneself(  # noqa: PLR0917 - torch's own signature
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    **settings: Any,
) -> tuple[Tensor, None] | None:
    """`F.multi_head_attention_forward` of tokens among each other, by packed weights.

    None for any other attention: with masks, of other keys, whose weights are asked for.
    """
    is_of_itself = key is query is value and query.ndim == 3
    extras = (key_padding_mask, attn_mask, bias_k, bias_v, *map(settings.get, STATIC_TENSORS))
    is_plain = all(extra is None for extra in extras) and not any(
        (need_weights, add_zero_attn, use_separate_proj_weight, settings.get("is_causal"))
    )
    if not is_of_itself or not is_plain or (training and dropout_p):
        return None
    if in_proj_weight is None or query.shape[2] != embed_dim_to_check:
        return None
    tokens = query.transpose(0, 1).contiguous()
    has_whole_heads = embed_dim_to_check % num_heads == 0
    if not has_whole_heads or not is_worth_packing(tokens, in_proj_weight, in_proj_bias):
        return None
    projected = PackedLinear.apply(tokens, in_proj_weight, in_proj_bias, False)
    return attend_by_heads(projected, num_heads, out_proj_weight, out_proj_bias), None


def attend_by_heads(
    projected: Tensor, head_count: int, output_weight: Tensor, output_bias: Tensor | None
) -> Tensor:
    """Attention from queries, keys and values of all heads, N×T×3C, to T×N×C."""
    by_head = projected.unflatten(2, (3, head_count, -1)).permute(2, 0, 3, 1, 4)
    queries, keys, values = by_head.unbind(0)
    attended = F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2)
    if is_worth_packing(attended, output_weight, output_bias):
        output = PackedLinear.apply(attended, output_weight, output_bias, False)
    else:
        output = F.linear(attended, output_weight, output_bias)
    return output.transpose(0, 1)


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


# Running mean and variance, weight and bias.
NormStatistics = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


@dataclass(frozen=True)
class NormFactors:
    """A batch norm with running statistics as x · scale + shift, both 1×C×1×1.

    `stamps` are those of the tensors that it was computed from, and None for a missing one.
    """

    eps: float
    stamps: tuple[WeightStamp | None, ...]
    scale: Tensor
    shift: Tensor

    @classmethod
    def compute(cls, statistics: NormStatistics, eps: float) -> Self:
        """The factors of a batch norm as it is now."""
        stamps = (None if tensor is None else WeightStamp.begin(tensor) for tensor in statistics)
        return cls(eps, tuple(stamps), *compute_norm_factors(statistics, eps))

    def are_current(self, statistics: NormStatistics, eps: float) -> bool:
        """Whether they are those of these tensors as they are now, which are frozen."""
        if self.eps != eps:
            return False
        for stamp, tensor in zip(self.stamps, statistics, strict=True):
            if stamp is None or tensor is None:
                if stamp is not tensor:
                    return False
            # Tensors of inference mode don't count the writes to them.
            elif tensor.requires_grad or tensor.is_inference() or not stamp.is_current(tensor):
                return False
        return True


def compute_norm_factors(statistics: NormStatistics, eps: float) -> tuple[Tensor, Tensor]:
    """Scale and shift of a batch norm, each 1×C×1×1."""
    mean, variance, weight, bias = statistics
    scale = (variance + eps).rsqrt()
    if weight is not None:
        scale = scale * weight
    shift = mean * scale
    shift = -shift if bias is None else bias - shift
    return scale.view(1, -1, 1, 1), shift.view(1, -1, 1, 1)


def try_frozen_batch_norm(  # noqa: PLR0917 - torch's own signature
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    keeps_factors: bool = False,
) -> Tensor | None:
    """`F.batch_norm` with running statistics, or None when it has to be torch's own.

    torch's backward pass would also compute gradients of the weight and the bias. Without a
    gradient, torch's own is as fast. With `keeps_factors`, where nothing observes or transforms the
    operations, what is computed from the statistics alone is computed once.
    """
    if training or running_mean is None or running_var is None or input.ndim != 4:
        return None
    if not input.requires_grad or not torch.is_grad_enabled():
        return None
    statistics = (running_mean, running_var, weight, bias)
    factors: NormFactors | None = NORM_FACTORS.get(running_var) if keeps_factors else None
    if factors is not None and factors.are_current(statistics, eps):
        if not is_frozen_float32(input):
            return None
        return torch.addcmul(factors.shift, input, factors.scale)
    if not is_frozen_float32(input, *statistics):
        return None
    if not keeps_factors or any(
        tensor is not None and tensor.is_inference() for tensor in statistics
    ):
        scale, shift = compute_norm_factors(statistics, eps)
        return torch.addcmul(shift, input, scale)
    factors = NormFactors.compute(statistics, eps)
    NORM_FACTORS[running_var] = factors
    return torch.addcmul(factors.shift, input, factors.scale)
