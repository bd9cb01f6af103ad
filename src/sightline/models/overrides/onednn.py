"""Convolutions of a frozen network on the CPU, by weights that are packed once.

oneDNN needs a convolution's weight in a memory layout of its own, and torch reorders the weight at
every call, forward and backward. Deep layers have large weights and few positions: there the
reordering takes several times as long as the convolution. Here each weight is kept in that layout
beside the weight itself, once for each direction that is used. Small convolutions, which torch
sends to a slower kernel of its own, also run through oneDNN. A weight that was written to is packed
again.

oneDNN's operations are not part of torch's public interface: `fast_operations` tries them first.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from threading import local
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from sightline.models.overrides.fast_operations import (
    ConvGeometry,
    are_operations_observed,
    backpropagate_packed_convolution,
    count_function_modes,
    get_packed_layout,
    is_available,
    is_left_to_torch,
    reorder_convolution_weight,
    reorder_transposed_weight,
    run_packed_convolution,
)
from sightline.models.overrides.frozen_layers import (
    PackedWeight,
    attend_contiguous_tokens,
    attend_to_oneself,
    is_frozen_float32,
    is_plain_bias,
    try_frozen_batch_norm,
    try_frozen_linear,
    try_pointwise_linear,
)
from sightline.models.overrides.max_pooling import try_bypassed_relu, try_compact_max_pool
from sightline.models.overrides.mode import OverrideMode
from sightline.models.overrides.unsaved_inputs import (
    InPlaceWrites,
    OwnLayersMode,
    UnsavedInputsMode,
    WriteWatchingMode,
    convolve_unsaved,
    normalize_copied,
)

IntPair = tuple[int, int]

# The gradient of so few channels leaves oneDNN's vector registers nearly empty.
MAX_PHASED_CHANNELS = 4

# A smaller weight is reordered as fast as it is found among the packed ones.
MIN_PACKED_WEIGHT_ELEMENTS = 50_000

DENSE_LAYOUTS = (torch.contiguous_format, torch.channels_last)

# Shapes for which a weight's layout is remembered; beyond, each costs a reordering again.
MAX_KEPT_SHAPES = 256

# A mode is told of every function that a network calls, which takes ten microseconds each. Where
# the weights are smaller than this in the mean, a pass without a gradient gains less than that.
MIN_MEAN_WEIGHT_ELEMENTS = 250_000

# Nor does a pass with a gradient gain it where a smaller share of the layers run by packed weights:
# not before faster batch norms, whose gain grows with the pixels, make up for it.
MIN_PACKED_SHARE = 1 / 20
MIN_FAST_PIXELS = 3 * 224**2

PACKED_WEIGHTS: Any = WeakTensorKeyDictionary()  # weight → its PackedConvWeight by ConvGeometry


class _PackingState(local):
    """Whether packing is disabled; False at the start of every thread."""

    packing_disabled = False


_STATE = _PackingState()


class LayerSizes(Enum):
    """What packed weights are worth to a network on the CPU."""

    LARGE = "large"  # every pass is faster
    SMALL = "small"  # passes with a gradient are
    THIN = "thin"  # passes with a gradient are, of many pixels at once


def find_layer_sizes(network: nn.Module) -> LayerSizes:
    """What packed weights are worth to a network.

    torch's multi-head attention of a frozen network takes several times as long without them, as
    soon as anything watches it.
    """
    modules = list(network.modules())
    if any(isinstance(module, nn.MultiheadAttention) for module in modules):
        return LayerSizes.LARGE
    layers = [module for module in modules if isinstance(module, (nn.Conv2d, nn.Linear))]
    weights: list[Tensor] = []
    packed_count = 0
    for layer in layers:
        # Not by `named_parameters`, which some layers have in a way of their own.
        weight = vars(layer)["_parameters"].get("weight")
        if weight is not None:
            weights.append(weight)
            packed_count += not is_thin_weight(weight, vars(layer).get("groups", 1))
    weight_size = sum(weight.numel() for weight in weights)
    if weights and weight_size >= MIN_MEAN_WEIGHT_ELEMENTS * len(weights):
        return LayerSizes.LARGE
    # Where there are no layers of these classes, it may call the functions itself.
    call_count = sum(not any(module.children()) for module in modules)
    if layers and packed_count < MIN_PACKED_SHARE * call_count:
        return LayerSizes.THIN
    return LayerSizes.SMALL


def use_packed_weights(
    *,
    keeps_layout: bool = False,
    sizes: LayerSizes = LayerSizes.LARGE,
    writes: InPlaceWrites | None = None,
    pixel_count: int = MIN_FAST_PIXELS,
) -> AbstractContextManager[Any]:
    """Context in which the layers of a frozen network on the CPU run by packed weights.

    Nothing changes while something observes or transforms the operations: a dispatch mode,
    torch.func, a forward-mode derivative, `PackingDisabled`. Nor where it would gain nothing.

    Args:
        keeps_layout: no weight is packed: what comes out lies in memory as what goes in, as with
            torch's own operations.
        sizes: what packed weights are worth to the network.
        writes: what is known of a network whose layers are not large.
        pixel_count: how many pixels the images of the pass have together.
    """
    if _STATE.packing_disabled:
        return nullcontext()
    if keeps_layout or not is_available("mode counts"):
        # Nothing tells without the counts whether the operations are observed, which this mode
        # allows.
        return UnsavedInputsMode()
    if are_operations_observed():
        return nullcontext()
    if sizes is LayerSizes.LARGE:
        return PackedWeightsMode()
    writes = writes or InPlaceWrites()
    if sizes is LayerSizes.SMALL or pixel_count >= MIN_FAST_PIXELS:
        return SmallLayersMode(writes)
    return OwnLayersMode(writes) if writes.may_occur else nullcontext()


class PackingDisabled:
    """Context in which `use_packed_weights` changes nothing, so a function mode sees every call."""

    def __enter__(self) -> None:
        self.previous = _STATE.packing_disabled
        _STATE.packing_disabled = True

    def __exit__(self, *_: object) -> None:
        _STATE.packing_disabled = self.previous


class PackedWeightsMode(OverrideMode):
    """Context in which frozen layers run by packed weights and pooling keeps less memory.

    No module is touched.
    """

    def run_function(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """The faster result where there is one, else the function's own."""
        return run_faster(func, args, kwargs)


class SmallLayersMode(WriteWatchingMode):
    """The same for networks of small layers, whose thin convolutions are torch's own.

    These are as fast so. Where the network may write to the input that they save, they don't save
    it.
    """

    def run_function(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """The faster result where there is one, else the function's own."""
        if not self.writes.is_known:
            self.note_input(func, args, kwargs)
        may_occur = self.writes.may_occur and not is_left_to_torch(args)
        if func is F.conv2d and is_thin_convolution(args, kwargs):
            return convolve_unsaved(*args, **kwargs) if may_occur else func(*args, **kwargs)
        if func is F.batch_norm and may_occur:
            output = try_cached_batch_norm(*args, **kwargs)
            return normalize_copied(*args, **kwargs) if output is None else output
        return run_faster(func, args, kwargs)


def run_faster(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The faster result where there is one, else the function's own."""
    replace = _REPLACEMENTS.get(func)
    if replace is None or is_left_to_torch(args):
        return func(*args, **kwargs)
    output = replace(*args, **kwargs)
    return func(*args, **kwargs) if output is None else output


def is_thin_convolution(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a convolution gains nothing by a packed weight: of one tap, grouped, or small.

    False where its weight is given by name.
    """
    if len(args) < 2:
        return False
    groups = args[6] if len(args) > 6 else kwargs.get("groups", 1)
    return is_thin_weight(args[1], groups)


def is_thin_weight(weight: Tensor, groups: int) -> bool:
    """`is_thin_convolution` by weight and number of groups. A linear layer's weight is not thin."""
    if weight.ndim != 4:
        return False
    if groups != 1 or weight.shape[2:] == (1, 1):
        return True
    # By phases its gradient gains at any size: kernels of more than twice a stride, which is two.
    may_have_phases = weight.shape[1] <= MAX_PHASED_CHANNELS and weight.shape[2] > 4
    return weight.numel() < MIN_PACKED_WEIGHT_ELEMENTS and not may_have_phases


def try_unobserved_relu(*args: Any, **kwargs: Any) -> Tensor | None:
    """`try_bypassed_relu`; None while another mode is active, which may have a rule of its own."""
    return None if count_function_modes() else try_bypassed_relu(*args, **kwargs)


def try_unobserved_max_pool(*args: Any, **kwargs: Any) -> Tensor | None:
    """`try_compact_max_pool`; None while another mode is active."""
    return None if count_function_modes() else try_compact_max_pool(*args, **kwargs)


def try_positional_linear(*args: Any, **kwargs: Any) -> Tensor | None:
    """`try_frozen_linear`; None where an argument is given by name."""
    return None if kwargs else try_frozen_linear(*args)


def try_contiguous_attention(*args: Any, **kwargs: Any) -> Any:
    """Attention of frozen weights; None where query, key or value is given by name."""
    if len(args) < 3:
        return None
    # Another mode may have to see the product of queries and keys.
    output = None if count_function_modes() else attend_to_oneself(*args, **kwargs)
    return attend_contiguous_tokens(*args, **kwargs) if output is None else output


def expand_to_pair(value: int | tuple[int, ...]) -> IntPair:
    """A setting of a convolution or a pooling as one number for rows and one for columns."""
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def is_plain_setting(value: Any, least: int) -> bool:
    """Whether a setting of a convolution is one or two whole numbers, none below `least`.

    By others torch says what is wrong with them, and oneDNN may end the process.
    """
    values: Sequence[Any] = value if isinstance(value, (tuple, list)) else (value,)
    return len(values) in (1, 2) and all(type(item) is int and item >= least for item in values)


def try_packed_convolution(  # noqa: PLR0917 - torch's own signature
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    """`F.conv2d` by a packed weight, or None when it has to be torch's own."""
    # A weight that is computed anew for each pass gains nothing from packing. One made in inference
    # mode does not count the writes to it.
    if not isinstance(weight, nn.Parameter) or weight.is_inference():
        return None
    if isinstance(padding, str) or x.ndim != 4 or not is_frozen_float32(x, weight, bias):
        return None
    # torch says what does not fit, oneDNN does not.
    if x.shape[1] != groups * weight.shape[1] or not is_available("packed convolution"):
        return None
    has_gradient = x.requires_grad and torch.is_grad_enabled()
    if not has_gradient and weight.numel() < MIN_PACKED_WEIGHT_ELEMENTS:
        return None
    # What is part of another tensor or repeats itself is watched by no view of its numbers.
    if not any(weight.is_contiguous(memory_format=layout) for layout in DENSE_LAYOUTS):
        return None
    if len(weight) % groups or not is_plain_bias(bias, len(weight)):
        return None
    settings = ((stride, 1), (padding, 0), (dilation, 1))
    if not all(is_plain_setting(value, least) for value, least in settings):
        return None
    geometry = ConvGeometry(
        expand_to_pair(stride), expand_to_pair(padding), expand_to_pair(dilation), groups
    )
    x = x.contiguous(memory_format=torch.channels_last)
    if has_gradient:
        return PackedConvolution.apply(x, weight, bias, geometry, None)
    return get_packed_weight(weight, geometry).convolve_input(x, weight, bias)


def convolve_packed(*args: Any, **kwargs: Any) -> Tensor:
    """`F.conv2d` by a packed weight where possible, or as a linear layer where that is faster."""
    output = None
    if not kwargs:
        output = try_pointwise_linear(*args)
        if output is None:
            output = try_packed_convolution(*args)
    return convolve_unsaved(*args, **kwargs) if output is None else output


try_cached_batch_norm = partial(try_frozen_batch_norm, keeps_factors=True)

# What takes the place of each function, or returns None where torch's own is as fast.
_REPLACEMENTS: dict[Callable[..., Any], Callable[..., Tensor | None]] = {
    F.conv2d: convolve_packed,
    F.linear: try_positional_linear,
    F.multi_head_attention_forward: try_contiguous_attention,
    F.batch_norm: try_cached_batch_norm,
    F.relu: try_unobserved_relu,
    F.max_pool2d: try_unobserved_max_pool,
}


class PackedConvolution(torch.autograd.Function):
    """A convolution or, given `input_size`, the gradient N×C×input_size of a convolution's input.

    For the gradient, x is the gradient of the convolution's output. Each of the two is the other's
    backward pass, and only the weight is kept for it.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd functions have positional arguments only
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: ConvGeometry,
        input_size: IntPair | None,
    ) -> Tensor:
        ctx.weight = weight
        ctx.geometry = geometry
        ctx.backward_size = (x.shape[2], x.shape[3]) if input_size is None else None
        ctx.packed = get_packed_weight(weight, geometry)
        return ctx.packed.run_direction(x, weight, bias, input_size)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        was_written = ctx.weight._version != ctx.packed.version
        if torch.is_grad_enabled() or was_written:
            input_gradient = PackedConvolution.apply(
                grad, ctx.weight, None, ctx.geometry, ctx.backward_size
            )
        else:
            input_gradient = ctx.packed.run_direction(grad, ctx.weight, None, ctx.backward_size)
        return input_gradient, None, None, None, None


@dataclass
class PackedConvWeight(PackedWeight):
    """One convolution's weight in oneDNN's layouts, for each direction that was used.

    Which layout is the fastest depends on the number of images and on their size: by that of
    another size a convolution can take forty times as long. Most sizes share one, which is kept
    once.

    Attributes:
        geometry: the convolution's settings.
        by_shape: the weight as it is best for a direction and the shape of what goes in.
    """

    geometry: ConvGeometry
    by_shape: dict[Hashable, Tensor] = field(default_factory=dict[Hashable, Tensor])

    def get_reordered(
        self, direction: str, shape: Hashable, reorder: Callable[[], Tensor]
    ) -> Tensor:
        """The weight as it is best for a direction and a shape; `reorder` makes it."""
        reordered = self.by_shape.get((direction, shape))
        if reordered is None:
            reordered = reorder()
            layout = (direction, get_packed_layout(reordered))
            reordered = self.reordered.setdefault(layout, reordered)
            if len(self.by_shape) >= MAX_KEPT_SHAPES:
                self.by_shape.clear()
            self.by_shape[direction, shape] = reordered
        return reordered

    def run_direction(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, input_size: IntPair | None
    ) -> Tensor:
        """The convolution or, given `input_size`, its gradient."""
        if input_size is None:
            return self.convolve_input(x, weight, bias)
        return self.backpropagate_gradient(x, weight, input_size)

    def convolve_input(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution."""
        reordered = self.get_reordered(
            "forward", x.shape, lambda: reorder_convolution_weight(weight, self.geometry, x.shape)
        )
        return run_packed_convolution(x, reordered, bias, self.geometry)

    def backpropagate_gradient(self, grad: Tensor, weight: Tensor, input_size: IntPair) -> Tensor:
        """The gradient N×C×input_size of the convolution's input, from that of its output."""
        grad = grad.contiguous(memory_format=torch.channels_last)
        if is_thin_strided_conv(weight, self.geometry):
            return self.backpropagate_by_phases(grad, weight, input_size)
        stride, padding, dilation, _ = self.geometry
        kernel_size = weight.shape[2:]
        output_size = grad.shape[2:]
        output_padding: list[int] = []
        for axis in (0, 1):
            span = dilation[axis] * (kernel_size[axis] - 1) + 1
            last_start = stride[axis] * (output_size[axis] - 1)
            covered = last_start + span - 2 * padding[axis]
            output_padding.append(input_size[axis] - covered)
        reordered = self.get_reordered(
            "backward",
            (grad.shape, input_size),
            lambda: reorder_transposed_weight(weight, self.geometry, output_padding, grad.shape),
        )
        return backpropagate_packed_convolution(grad, reordered, self.geometry, output_padding)

    def backpropagate_by_phases(self, grad: Tensor, weight: Tensor, input_size: IntPair) -> Tensor:
        """The same gradient as one ordinary convolution with stride 1.

        Input rows with the same remainder modulo the stride form a phase. The convolution computes
        all phases as channels, and a pixel shuffle interleaves them.
        """
        step = self.geometry.stride[0]
        pad = self.geometry.padding[0]
        # Input row step·i + a gets gradient row i - d times weight row step·d + a + pad. For some
        # a in 0 … step - 1 that weight row exists where d lies between these two.
        first_offset = -((step - 1 + pad) // step)
        last_offset = (weight.shape[2] - 1 - pad) // step

        def reorder_phases() -> Tensor:
            phases = _split_weight_into_phases(weight, step, pad, first_offset, last_offset)
            geometry = ConvGeometry(stride=(1, 1), padding=(last_offset, last_offset))
            return reorder_convolution_weight(phases, geometry, grad.shape)

        # The padding gives a position to every i that some input row needs.
        margin = last_offset
        for length, gradient_length in zip(input_size, grad.shape[2:], strict=True):
            phase_length = math.ceil(length / step)
            margin = max(margin, phase_length - first_offset - gradient_length)
        geometry = ConvGeometry(stride=(1, 1), padding=(margin, margin))
        reordered = self.get_reordered("backward", grad.shape, reorder_phases)
        phase_gradients = run_packed_convolution(grad, reordered, None, geometry)

        interleaved = F.pixel_shuffle(phase_gradients, step)
        start = step * (margin - last_offset)
        return interleaved[:, :, start : start + input_size[0], start : start + input_size[1]]


def _split_weight_into_phases(
    weight: Tensor, step: int, pad: int, first_offset: int, last_offset: int
) -> Tensor:
    """The weight O×C×k×k as (C·step·step)×O×taps×taps: one small flipped kernel for each phase."""
    taps = last_offset - first_offset + 1
    leading = -pad - step * first_offset
    trailing = step * taps - weight.shape[2] - leading
    padded = F.pad(weight, (leading, trailing, leading, trailing))
    # O×C×taps×step×taps×step; a convolution takes its taps in reverse.
    kernels = padded.unflatten(3, (taps, step)).unflatten(2, (taps, step))
    kernels = kernels.flip(2, 4)
    by_phase = kernels.permute(1, 3, 5, 0, 2, 4)
    return by_phase.flatten(0, 2).contiguous()


def is_thin_strided_conv(weight: Tensor, geometry: ConvGeometry) -> bool:
    """Whether the gradient is faster by phases: few input channels and a large stride.

    This is the first convolution of many networks.
    """
    row_stride, column_stride = geometry.stride
    row_padding, column_padding = geometry.padding
    _, channels, kernel_rows, kernel_columns = weight.shape
    if geometry.dilation != (1, 1) or geometry.groups != 1:
        return False
    if row_stride != column_stride or row_padding != column_padding:
        return False
    if kernel_rows != kernel_columns:
        return False
    return channels <= MAX_PHASED_CHANNELS and row_stride > 1 and kernel_rows > 2 * row_stride


def get_packed_weight(weight: Tensor, geometry: ConvGeometry) -> PackedConvWeight:
    """What is packed of a weight for convolutions of one geometry, empty if it was written to."""
    by_geometry: dict[ConvGeometry, PackedConvWeight] = PACKED_WEIGHTS.setdefault(weight, {})
    packed = by_geometry.get(geometry)
    if packed is None or not packed.is_current(weight):
        packed = PackedConvWeight.begin(weight, geometry=geometry)
        by_geometry[geometry] = packed
    return packed
