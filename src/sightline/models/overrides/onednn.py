"""The same convolutions and batch norms, faster on a processor: a frozen network's weights are packed once.

oneDNN wants a convolution's weight in an order of its own, and torch brings it into that order at every call, forward and backward.
Deep layers have many weights and few places: there the ordering takes several times as long as the convolution. Here every weight is
kept in that order beside the weight itself, once for each direction that is asked for. Small convolutions, which torch gives to slower
code of its own, go the same way. Weights that are written to are packed anew.

A frozen batch norm is one multiplication and one addition; torch's backward pass computes the gradients of its weights as well.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from threading import local
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from sightline.models.overrides.max_pooling import try_bypassed_relu, try_compact_max_pool

IntPair = tuple[int, int]

ConvGeometry = tuple[IntPair, IntPair, IntPair, int]  # stride, padding, dilation, groups

# Writes through `.data` leave no other trace; those that matter change more than single numbers.
PROBED_ELEMENTS = 64

# A gradient of so few channels leaves oneDNN's vectors nearly empty.
MAX_PHASED_CHANNELS = 4

# A linear layer of fewer weights is in the cache; with a larger share of its outputs a gradient the whole product is as fast.
MIN_SPARSE_LINEAR_ELEMENTS, MAX_SPARSE_GRADIENT_SHARE = 1_000_000, 0.75

onednn: Any = torch.ops.mkldnn

core: Any = torch._C

PACKED_WEIGHTS: Any = WeakTensorKeyDictionary()  # of every weight: its Weights by Geometry

PACKING_STATE = local()


def use_packed_weights() -> AbstractContextManager[Any]:
    """Context in which the convolutions and batch norms of a frozen network on a processor are computed as this file has it.

    Where someone watches or transforms the operations (torch.func, forward-mode derivatives, a dispatch mode, `watched`) they stay torch's own.
    """
    seen = (
        core._len_torch_dispatch_stack()
        or core._functorch.peek_interpreter_stack()
        or forward_ad._current_level >= 0
    )
    return (
        nullcontext() if seen or getattr(PACKING_STATE, "watched", False) else PackedWeightsMode()
    )


class PackingDisabled:
    """Context in which `faster` changes nothing, so that a function mode sees every operation."""

    def __enter__(self) -> None:
        self.was_disabled, PACKING_STATE.watched = getattr(PACKING_STATE, "watched", False), True

    def __exit__(self, *_: object) -> None:
        PACKING_STATE.watched = self.was_disabled


class PackedWeightsMode(TorchFunctionMode):
    """Context in which frozen convolutions and batch norms are computed by packed weights, and `frugal` pools. No module is touched."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        found = None
        if func in (F.conv2d, F.linear) and not kwargs:
            found = try_packed_convolution(*args) if func is F.conv2d else try_sparse_linear(*args)
        elif func is F.batch_norm:
            found = try_frozen_batch_norm(*args, **kwargs or {})
        elif (
            func in (F.relu, F.max_pool2d) and not core._len_torch_function_stack()
        ):  # else another mode has its own
            found = (
                try_bypassed_relu(*args, **kwargs or {})
                if func is F.relu
                else try_compact_max_pool(*args, **kwargs or {})
            )
        return func(*args, **kwargs or {}) if found is None else found


def is_packable(x: Tensor, *weights: Tensor | None) -> bool:
    """Whether x is an ordinary batch of maps N×C×H×W or of vectors N×C and the weights get no gradient, all in single precision on a processor."""
    known = [weight for weight in weights if weight is not None]
    plain = (
        type(x) is Tensor
        and x.ndim in (2, 4)
        and x.numel() > 0
        and not any(weight.requires_grad for weight in known)
    )
    return plain and all(
        one.dtype == torch.float32 and one.device.type == "cpu" for one in (x, *known)
    )


# ── convolutions ──


def try_packed_convolution(  # noqa: PLR0917 - torch's own signature
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    """`F.conv2d`, or None where it had better be torch's own."""
    # A weight that is computed anew for each pass has nothing to keep; one made in inference mode does not tell when it is written to.
    kept = (
        isinstance(weight, nn.Parameter)
        and not weight.is_inference()
        and torch.backends.mkldnn.is_available()
    )
    if not kept or isinstance(padding, str) or x.ndim != 4 or not is_packable(x, weight, bias):
        return None
    x, geometry = (
        x.contiguous(memory_format=torch.channels_last),
        (expand_to_pair(stride), expand_to_pair(padding), expand_to_pair(dilation), groups),
    )
    if x.requires_grad and torch.is_grad_enabled():
        return PackedConvolution.apply(x, weight, bias, geometry, None)
    return get_packed_weight(weight, geometry).convolve_input(x, weight, bias)


def convolve_packed(x: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
    """A convolution (stride, padding, dilation, groups) by a packed weight where that can be had."""
    found = try_packed_convolution(x, weight, bias, *geometry)
    return torch.conv2d(x, weight, bias, *geometry) if found is None else found


class PackedConvolution(torch.autograd.Function):
    """A convolution of x or, with `size`, the gradient N×C×size of one with respect to what it was of, given the gradient x of what it gave.

    Each is the other's backward pass. Nothing but the weight is kept for it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: ConvGeometry,
        input_size: IntPair | None,
    ) -> Tensor:
        ctx.weight, ctx.geometry, ctx.size = (
            weight,
            geometry,
            (x.shape[2], x.shape[3]) if input_size is None else None,
        )
        ctx.packed = get_packed_weight(weight, geometry)
        return ctx.packed.run_direction(x, weight, bias, input_size)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if torch.is_grad_enabled() or ctx.weight._version != ctx.packed.version:
            return (
                PackedConvolution.apply(grad, ctx.weight, None, ctx.geometry, ctx.size),
                None,
                None,
                None,
                None,
            )
        return ctx.packed.run_direction(grad, ctx.weight, None, ctx.size), None, None, None, None


@dataclass
class PackedConvWeight:
    """One convolution's weight in oneDNN's order for both directions, as far as they were asked for.

    `version` and `probe`, some of its numbers as bytes, tell whether the weight was written to; `seen` shows those numbers as they are now.
    """

    geometry: ConvGeometry
    version: int
    probe_view: NDArray[Any]
    probe_bytes: bytes
    reordered: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    def run_direction(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, input_size: IntPair | None
    ) -> Tensor:
        """The convolution, or with `size` its gradient."""
        return (
            self.convolve_input(x, weight, bias)
            if input_size is None
            else self.backpropagate_gradient(x, weight, input_size)
        )

    def convolve_input(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution."""
        stride, padding, dilation, groups = self.geometry
        if "forward" not in self.reordered:
            self.reordered["forward"] = onednn._reorder_convolution_weight(
                weight, padding, stride, dilation, groups, x.shape
            )
        return onednn._convolution_pointwise.default(
            x, self.reordered["forward"], bias, padding, stride, dilation, groups, "none", [], ""
        )

    def backpropagate_gradient(self, grad: Tensor, weight: Tensor, input_size: IntPair) -> Tensor:
        """The gradient N×C×size of what the convolution was of, from that of its result."""
        stride, padding, dilation, groups = self.geometry
        grad = grad.contiguous(memory_format=torch.channels_last)
        if is_thin_strided_conv(weight, self.geometry):
            return self.backpropagate_by_phases(grad, weight, input_size)
        reach = [
            pad * 2 - far * (side - 1) - 1
            for pad, far, side in zip(padding, dilation, weight.shape[2:], strict=True)
        ]
        beyond = [
            n - (count - 1) * step + room
            for n, count, step, room in zip(input_size, grad.shape[2:], stride, reach, strict=True)
        ]
        if "back" not in self.reordered:
            self.reordered["back"] = onednn._reorder_convolution_transpose_weight(
                weight, padding, beyond, stride, dilation, groups, grad.shape
            )
        run = onednn._convolution_transpose_pointwise.default
        return run(
            grad,
            self.reordered["back"],
            None,
            padding,
            beyond,
            stride,
            dilation,
            groups,
            "none",
            [],
            "",
        )

    def backpropagate_by_phases(self, grad: Tensor, weight: Tensor, input_size: IntPair) -> Tensor:
        """The same, one ordinary convolution for all places that lie alike to the stride, whose results are then interleaved."""
        (step, _), (pad, _), side = *self.geometry[:2], weight.shape[2]
        # Row step·i + a gets what the rows i - d of the gradient have of the weight's row step·d + a + pad, which is there for these d.
        least, most = -((step - 1 + pad) // step), (side - 1 - pad) // step
        taps = most - least + 1
        if "back" not in self.reordered:
            before = -pad - step * least
            after = step * taps - side - before
            cut = (
                F.pad(weight, (before, after) * 2)
                .unflatten(3, (taps, step))
                .unflatten(2, (taps, step))
                .flip(2, 4)
            )
            phases = cut.permute(1, 3, 5, 0, 2, 4).flatten(0, 2).contiguous()
            self.reordered["back"] = onednn._reorder_convolution_weight(
                phases, [most] * 2, [1, 1], [1, 1], 1, grad.shape
            )
        around = max(
            most,
            *(
                -(-n // step) - least - count
                for n, count in zip(input_size, grad.shape[2:], strict=True)
            ),
        )
        found = onednn._convolution_pointwise.default(
            grad, self.reordered["back"], None, [around] * 2, [1, 1], [1, 1], 1, "none", [], ""
        )
        start = step * (around - most)
        return F.pixel_shuffle(found, step)[
            :, :, start : start + input_size[0], start : start + input_size[1]
        ]


def is_thin_strided_conv(weight: Tensor, geometry: ConvGeometry) -> bool:
    """Whether a convolution sees so few channels with so large a stride (a network's first) that its gradient had better be taken by phases."""
    stride, padding, dilation, groups = geometry
    square = (
        stride[0] == stride[1] > 1
        and padding[0] == padding[1]
        and weight.shape[2] == weight.shape[3] > 2 * stride[0]
    )
    return square and weight.shape[1] <= MAX_PHASED_CHANNELS and dilation == (1, 1) and groups == 1


def get_packed_weight(weight: Tensor, geometry: ConvGeometry) -> PackedConvWeight:
    """What is kept of a weight for convolutions of one geometry; nothing yet if it was written to since."""
    known: dict[ConvGeometry, PackedConvWeight] = PACKED_WEIGHTS.setdefault(weight, {})
    kept = known.get(geometry)
    if (
        kept is None
        or kept.version != weight._version
        or kept.probe_bytes != kept.probe_view.tobytes()
    ):
        seen = weight.detach().numpy().reshape(-1)[:: max(1, weight.numel() // PROBED_ELEMENTS)]
        kept = known[geometry] = PackedConvWeight(geometry, weight._version, seen, seen.tobytes())
    return kept


def expand_to_pair(value: int | tuple[int, ...]) -> IntPair:
    """One number for rows and one for columns."""
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


# ── linear layers ──


def try_sparse_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    """`F.linear` of one vector by many weights, or None where it had better be torch's own."""
    large = x.ndim == 2 and len(x) == 1 and weight.numel() >= MIN_SPARSE_LINEAR_ELEMENTS
    return (
        SparseGradientLinear.apply(x, weight, bias)
        if large and x.requires_grad and torch.is_grad_enabled() and is_packable(x, weight, bias)
        else None
    )


class SparseGradientLinear(torch.autograd.Function):
    """A linear layer of one vector. For its backward pass only those rows of the weight are read whose output has a gradient.

    After a ReLU, or in the last layer where one class is asked about, that is the smaller part, and reading them is what takes the time.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        rows = grad[0].nonzero().view(1, -1)
        if torch.is_grad_enabled() or rows.shape[1] > grad.shape[1] * MAX_SPARSE_GRADIENT_SHARE:
            return grad @ ctx.weight, None, None
        return (
            F.embedding_bag(rows, ctx.weight, mode="sum", per_sample_weights=grad[0, rows]),
            None,
            None,
        )


# ── batch norms ──


def try_frozen_batch_norm(  # noqa: PLR0917 - torch's own signature
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None, bias: Tensor | None = None,
    training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor | None:  # fmt: skip
    """`F.batch_norm` with statistics that are known, or None where it had better be torch's own."""
    if (
        training
        or running_mean is None
        or running_var is None
        or input.ndim != 4
        or not is_packable(input, running_mean, running_var, weight, bias)
    ):
        return None
    scale = (running_var + eps).rsqrt() * (1 if weight is None else weight)
    shift = (0 if bias is None else bias) - running_mean * scale
    return torch.addcmul(shift.view(1, -1, 1, 1), input, scale.view(1, -1, 1, 1))
