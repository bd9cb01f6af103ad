"""What a network sees beyond an image's borders.

Its own padding is zeros, which deep layers take for a frame. Here it is the opposite side of an
image that tiles, or the image's mirror image.
"""

import math
from collections.abc import Callable
from threading import local
from typing import Any, Literal

from torch import Tensor
from torch.nn import functional as F

from sightline.models.overrides.average_pooling import MAX_POOL_FUNCTIONS
from sightline.models.overrides.mode import OverrideMode
from sightline.models.overrides.onednn import (
    IntPair,
    PackingDisabled,
    convolve_packed,
    expand_to_pair,
)

_POOL_FUNCTIONS: set[Any] = {*MAX_POOL_FUNCTIONS, F.avg_pool2d}

_CONV2D_PARAMETERS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")

_POOL2D_PARAMETERS = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode")


class _PaddingState(local):
    """The innermost active mode of the thread."""

    innermost: "BorderPaddingMode | None" = None


_STATE = _PaddingState()


class BorderPaddingMode(OverrideMode):
    """Context in which convolutions and poolings pad their input "circular" or "reflect".

    They give one position for every stride of their input, also where they have no padding of their
    own. An image whose sides are multiples of the network's stride is then one period to every
    layer. Of several nested modes only the innermost acts. No module is touched.
    """

    def __init__(self, mode: Literal["circular", "reflect"]) -> None:
        super().__init__()
        self.mode = mode
        self.packing_disabled = PackingDisabled()

    def __enter__(self) -> "BorderPaddingMode":
        self.packing_disabled.__enter__()
        self.outer_mode = _STATE.innermost
        _STATE.innermost = self
        return super().__enter__()

    def __exit__(self, *exc_info: Any) -> None:
        super().__exit__(*exc_info)
        _STATE.innermost = self.outer_mode
        self.packing_disabled.__exit__(*exc_info)

    def run_function(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A convolution or pooling of the padded input, else the function's own result."""
        if _STATE.innermost is not self:
            # The input is already padded by the innermost mode.
            return func(*args, **kwargs)
        if func is F.conv2d:
            settings = {**dict(zip(_CONV2D_PARAMETERS, args, strict=False)), **kwargs}
            # "same" and "valid" stay torch's own.
            if not isinstance(settings.get("padding", 0), str):
                return self._convolve(settings)
        if func in _POOL_FUNCTIONS:
            settings = {**dict(zip(_POOL2D_PARAMETERS, args, strict=False)), **kwargs}
            return self._pool(func, settings)
        return func(*args, **kwargs)

    def _convolve(self, settings: dict[str, Any]) -> Tensor:
        weight: Tensor = settings["weight"]
        kernel = (weight.shape[2], weight.shape[3])
        stride = expand_to_pair(settings.get("stride", 1))
        padding = expand_to_pair(settings.get("padding", 0))
        dilation = expand_to_pair(settings.get("dilation", 1))
        padded = self._pad_borders(settings["input"], kernel, stride, dilation, padding)
        groups = settings.get("groups", 1)
        return convolve_packed(
            padded, weight, settings.get("bias"), stride, (0, 0), dilation, groups
        )

    def _pool(self, func: Callable[..., Any], settings: dict[str, Any]) -> Any:
        kernel = expand_to_pair(settings["kernel_size"])
        stride = expand_to_pair(settings.get("stride") or kernel)
        padding = expand_to_pair(settings.get("padding", 0))
        padded = self._pad_borders(settings["input"], kernel, stride, (1, 1), padding)
        return func(padded, kernel, stride)

    def _pad_borders(
        self, x: Tensor, kernel: IntPair, stride: IntPair, dilation: IntPair, padding: IntPair
    ) -> Tensor:
        """N×C×H×W, padded so that a window fits at every stride of the input."""
        sides: list[int] = []
        for axis in (1, 0):  # F.pad starts with the last axis
            length = x.shape[2 + axis]
            span = dilation[axis] * (kernel[axis] - 1) + 1
            sides += _split_padding(length, span, stride[axis], padding[axis])
        if not any(sides):
            return x
        largest = min(x.shape[2:])
        if self.mode == "reflect":
            largest -= 1  # the edge itself is not repeated
        # Tensors of a few positions are too small for these modes and repeat their edge.
        mode = self.mode if max(sides) <= largest else "replicate"
        return F.pad(x, sides, mode=mode)


def _split_padding(length: int, span: int, stride: int, padding: int) -> tuple[int, int]:
    """How many positions to add before and behind an axis, for one window at every stride.

    `span` is the extent of a window. The network's own padding is kept where it has one.
    """
    windows = math.ceil(length / stride)
    last_start = stride * (windows - 1)
    total = max(0, last_start + span - length)
    leading = min(padding or (span - 1) // 2, total)
    return leading, total - leading
