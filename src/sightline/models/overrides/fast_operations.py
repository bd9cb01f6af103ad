"""Fast operations of torch that are not part of its public interface, tried before they are used.

Another version of torch may lack them, change their arguments or compute something else. Each is
therefore run once on small tensors, when it is first needed, and compared with public operations.
Where one is missing or wrong, its caller uses torch's public operations, which give the same
results to rounding, only more slowly. A line at debug level says so.

SIGHTLINE_PORTABLE=1 in the environment turns all of them off.
"""

import logging
import math
import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.grad import conv2d_input
from torch.overrides import TorchFunctionMode

from sightline.models.overrides.mode import is_autocast_on, suspend_overrides

FastOperation = Literal[
    "packed convolution",
    "packed linear",
    "mode counts",
    "max pooling backward",
    "threshold backward",
    "hardtanh backward",
]

logger = logging.getLogger(__name__)

aten: Any = torch.ops.aten

# What a missing operation or another signature raises.
_PROBE_ERRORS = (AttributeError, ImportError, TypeError, ValueError, RuntimeError)


@cache
def is_available(operation: FastOperation) -> bool:
    """Whether a fast operation may be used: it is there and gives what the public ones give."""
    if os.environ.get("SIGHTLINE_PORTABLE") == "1":
        logger.debug("%s: turned off by SIGHTLINE_PORTABLE=1", operation)
        return False
    try:
        # What happens to be active at the first use must not decide for the whole process.
        with suspend_overrides(), torch.inference_mode(False), torch.no_grad():
            works = _PROBES[operation]()
    except _PROBE_ERRORS as error:
        logger.debug("%s: this torch has no such operation (%s)", operation, error)
        return False
    if not works:
        logger.debug("%s: this torch's operation computes something else", operation)
    return works


# ── the operations ──


class ConvGeometry(NamedTuple):
    """The settings of a 2-D convolution, each for rows and columns."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


def reorder_convolution_weight(
    weight: Tensor, geometry: ConvGeometry, input_shape: torch.Size
) -> Tensor:
    """A convolution's weight in oneDNN's own memory layout, for `run_packed_convolution`."""
    onednn: Any = torch.ops.mkldnn
    stride, padding, dilation, groups = geometry
    return onednn._reorder_convolution_weight(
        weight, padding, stride, dilation, groups, input_shape
    )


def get_packed_layout(packed_weight: Tensor) -> bytes:
    """oneDNN's description of a packed weight's layout, equal for equal layouts."""
    onednn: Any = torch.ops.mkldnn
    return onednn._get_mkldnn_serialized_md(packed_weight).numpy().tobytes()


def run_packed_convolution(
    x: Tensor, packed_weight: Tensor, bias: Tensor | None, geometry: ConvGeometry
) -> Tensor:
    """`F.conv2d` by a weight from `reorder_convolution_weight`, and a contiguous bias."""
    onednn: Any = torch.ops.mkldnn
    stride, padding, dilation, groups = geometry
    return onednn._convolution_pointwise.default(
        x, packed_weight, bias, padding, stride, dilation, groups, "none", [], ""
    )


def reorder_transposed_weight(
    weight: Tensor,
    geometry: ConvGeometry,
    output_padding: Sequence[int],
    gradient_shape: torch.Size,
) -> Tensor:
    """A convolution's weight in oneDNN's layout, for `backpropagate_packed_convolution`."""
    onednn: Any = torch.ops.mkldnn
    stride, padding, dilation, groups = geometry
    return onednn._reorder_convolution_transpose_weight(
        weight, padding, output_padding, stride, dilation, groups, gradient_shape
    )


def backpropagate_packed_convolution(
    gradient: Tensor, packed_weight: Tensor, geometry: ConvGeometry, output_padding: Sequence[int]
) -> Tensor:
    """The gradient of a convolution's input by a weight from `reorder_transposed_weight`.

    `output_padding` are the rows and columns at the end of the padded input that no window reached.
    """
    onednn: Any = torch.ops.mkldnn
    stride, padding, dilation, groups = geometry
    run_transposed = onednn._convolution_transpose_pointwise.default
    settings = (padding, output_padding, stride, dilation, groups)
    return run_transposed(gradient, packed_weight, None, *settings, "none", [], "")


def reorder_linear_weight(weight: Tensor) -> Tensor:
    """A linear layer's weight in oneDNN's own memory layout, for `run_packed_linear`."""
    onednn: Any = torch.ops.mkldnn
    return onednn._reorder_linear_weight(weight)


def run_packed_linear(x: Tensor, packed_weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` by a weight from `reorder_linear_weight`, and a contiguous bias."""
    onednn: Any = torch.ops.mkldnn
    return onednn._linear_pointwise.default(x, packed_weight, bias, "none", [], "")


def are_operations_observed() -> bool:
    """Whether a dispatch mode, torch.func or a forward-mode derivative acts on operations here."""
    core: Any = torch._C  # pyright: ignore[reportPrivateUsage]
    return bool(
        core._len_torch_dispatch_stack()
        or core._functorch.peek_interpreter_stack()
        or forward_ad._current_level >= 0  # pyright: ignore[reportPrivateUsage]
    )


def is_left_to_torch(args: tuple[Any, ...]) -> bool:
    """Whether a network calls a function with these arguments where only torch's own will do.

    It may observe or transform its operations itself. Under its autocast, torch chooses the
    precision of each one. Nested tensors have no shape.
    """
    if is_autocast_on() or are_operations_observed():
        return True
    return bool(args) and isinstance(args[0], Tensor) and args[0].is_nested


def count_function_modes() -> int:
    """How many function modes are active. A mode doesn't count itself while it runs a function."""
    core: Any = torch._C  # pyright: ignore[reportPrivateUsage]
    return core._len_torch_function_stack()


def backpropagate_max_pool(
    gradient: Tensor, pool_input: Tensor, settings: tuple[Any, ...], indices: Tensor
) -> Tensor:
    """The gradient of a max pooling's input; `pool_input` is read for its shape and layout only.

    `settings` are kernel size, stride, padding, dilation and ceil_mode.
    """
    return aten.max_pool2d_with_indices_backward(gradient, pool_input, *settings, indices)


def backpropagate_threshold(gradient: Tensor, relu_output: Tensor) -> Tensor:
    """The gradient of a ReLU's input in one pass over memory, as a tensor of its own."""
    return aten.threshold_backward(gradient, relu_output, 0)


def backpropagate_clamp(gradient: Tensor, clamped: Tensor, high: float) -> Tensor:
    """The gradient of the input of a clamp from 0 to `high` in one pass over memory.

    `clamped` is the input or the output: where the input is not inside, neither is the output.
    """
    return aten.hardtanh_backward(gradient, clamped, 0.0, high)


# ── the probes ──


def _make_values(*shape: int) -> Tensor:
    """Values from -1 to 1 without a symmetry, on the CPU under any default device and type."""
    steps = torch.arange(torch.Size(shape).numel(), dtype=torch.float32, device="cpu")
    return (steps * 0.7).sin().view(shape)


def _are_close(value: Tensor, expected: Tensor) -> bool:
    return value.shape == expected.shape and torch.allclose(value, expected, rtol=1e-4, atol=1e-5)


def _probe_packed_convolution() -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    geometry = ConvGeometry(stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2)
    x = _make_values(1, 4, 8, 9).contiguous(memory_format=torch.channels_last)
    weight = _make_values(6, 2, 3, 2)
    bias = _make_values(6)
    packed = reorder_convolution_weight(weight, geometry, x.shape)
    packed_again = reorder_convolution_weight(weight, geometry, x.shape)
    has_layouts = get_packed_layout(packed) == get_packed_layout(packed_again) != b""
    output = run_packed_convolution(x, packed, bias, geometry)
    expected = F.conv2d(x, weight, bias, *geometry)

    gradient = _make_values(*expected.shape).contiguous(memory_format=torch.channels_last)
    # At stride 2 the windows of 3 rows leave out the last of 8 + 2 rows.
    output_padding = (1, 0)
    packed = reorder_transposed_weight(weight, geometry, output_padding, gradient.shape)
    input_gradient = backpropagate_packed_convolution(gradient, packed, geometry, output_padding)
    settings: Any = geometry  # pairs, which the annotations of conv2d_input do not mention
    expected_gradient = conv2d_input(x.shape, weight, gradient, *settings)
    are_close = _are_close(output, expected) and _are_close(input_gradient, expected_gradient)
    return has_layouts and are_close


def _probe_packed_linear() -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    x = _make_values(2, 5, 7)
    weight = _make_values(6, 7)
    packed = reorder_linear_weight(weight)
    for bias in (None, _make_values(6)):
        if not _are_close(run_packed_linear(x, packed, bias), F.linear(x, weight, bias)):
            return False
    return True


def _probe_mode_counts() -> bool:
    from torch.utils._python_dispatch import TorchDispatchMode

    are_operations_observed()
    count = count_function_modes()
    with TorchFunctionMode():
        counts_functions = count_function_modes() == count + 1
    with TorchDispatchMode():
        sees_dispatch = are_operations_observed()
    return counts_functions and sees_dispatch


def _probe_max_pooling_backward() -> bool:
    x = _make_values(1, 2, 5, 6)
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        output, indices = F.max_pool2d(leaf, (3, 2), 2, (1, 0), return_indices=True)
        gradient = _make_values(*output.shape)
        # A gradient that `grad` is given makes it import torch's compiler.
        (expected,) = torch.autograd.grad((output * gradient).sum(), leaf)
    settings = ((3, 2), (2, 2), (1, 0), 1, False)
    return torch.equal(backpropagate_max_pool(gradient, x, settings, indices), expected)


def _probe_threshold_backward() -> bool:
    gradient = _make_values(3, 5)
    relu_output = gradient.flip(0, 1).clamp_min(0)
    expected = gradient.masked_fill(relu_output <= 0, 0)
    return torch.equal(backpropagate_threshold(gradient, relu_output), expected)


def _probe_hardtanh_backward() -> bool:
    gradient = _make_values(3, 5)
    values = gradient.flip(0, 1)
    values[0, 0], values[0, 1] = 0.0, 0.5
    inside = {high: (values > 0) & (values < high) for high in (0.5, math.inf)}
    return all(
        torch.equal(backpropagate_clamp(gradient, values, high), gradient * mask)
        for high, mask in inside.items()
    )


_PROBES: dict[FastOperation, Callable[[], bool]] = {
    "packed convolution": _probe_packed_convolution,
    "packed linear": _probe_packed_linear,
    "mode counts": _probe_mode_counts,
    "max pooling backward": _probe_max_pooling_backward,
    "threshold backward": _probe_threshold_backward,
    "hardtanh backward": _probe_hardtanh_backward,
}
