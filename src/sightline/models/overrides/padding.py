"""What a network sees beyond an image's borders: by itself zeros, which deep layers take for a frame; here the other side of a picture
that tiles, or its mirror image. The network's own padding stays as it is outside."""

from collections.abc import Callable, Iterable
from threading import local
from typing import Any, Literal

from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from sightline.models.overrides.average_pooling import MAX_POOL_FUNCTIONS
from sightline.models.overrides.onednn import PackingDisabled, convolve_packed, expand_to_pair

AVERAGE_POOL_FUNCTIONS: set[Any] = {F.avg_pool2d}

CONV2D_PARAMETERS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")

BORDER_STATE = local()

POOL2D_PARAMETERS = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode")


class BorderPaddingMode(TorchFunctionMode):
    """Context in which convolutions and poolings continue their maps "circular" or in "reflect", and give a place for every stride of them, also
    where they have no padding of their own. A picture whose sides are multiples of the network's stride is then one period to every layer. Of several,
    one in the other, only the innermost acts."""

    def __init__(self, mode: Literal["circular", "reflect"]) -> None:
        super().__init__()
        self.mode, self.packing_disabled = mode, PackingDisabled()

    def __enter__(self) -> "BorderPaddingMode":
        self.packing_disabled.__enter__()
        self.outer_mode, BORDER_STATE.innermost = getattr(BORDER_STATE, "innermost", None), self
        return super().__enter__()

    def __exit__(self, *exc_info: Any) -> None:
        super().__exit__(*exc_info)
        BORDER_STATE.innermost = self.outer_mode
        self.packing_disabled.__exit__(*exc_info)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if (
            BORDER_STATE.innermost is not self
        ):  # an outer one would continue what is continued already
            return func(*args, **kwargs)
        if func is F.conv2d:
            given = {**dict(zip(CONV2D_PARAMETERS, args, strict=False)), **kwargs}
            stride, dilation, padding = (
                expand_to_pair(given.get("stride", 1)),
                expand_to_pair(given.get("dilation", 1)),
                given.get("padding", 0),
            )
            if not isinstance(padding, str):
                x = self.pad_beyond_borders(
                    given["input"],
                    given["weight"].shape[-2:],
                    stride,
                    dilation,
                    expand_to_pair(padding),
                )
                return convolve_packed(
                    x,
                    given["weight"],
                    given.get("bias"),
                    stride,
                    (0, 0),
                    dilation,
                    given.get("groups", 1),
                )
        if func in MAX_POOL_FUNCTIONS or func in AVERAGE_POOL_FUNCTIONS:
            given = {**dict(zip(POOL2D_PARAMETERS, args, strict=False)), **kwargs}
            kernel, padding = (
                expand_to_pair(given["kernel_size"]),
                expand_to_pair(given.get("padding", 0)),
            )
            stride = expand_to_pair(given.get("stride") or kernel)
            return func(
                self.pad_beyond_borders(given["input"], kernel, stride, (1, 1), padding),
                kernel,
                stride,
            )
        return func(*args, **kwargs)

    def pad_beyond_borders(
        self, x: Tensor, kernel: Any, stride: Any, dilation: Any, padding: Any
    ) -> Tensor:
        """Maps N×C×H×W with as much beyond their borders as windows at every stride see."""
        sides: list[int] = []
        for axis in (1, 0):  # the last one first, as `pad` has it
            span, length = dilation[axis] * (kernel[axis] - 1) + 1, x.shape[2 + axis]
            total = max(0, (-(-length // stride[axis]) - 1) * stride[axis] + span - length)
            before = min(padding[axis] or (span - 1) // 2, total)
            sides += [before, total - before]
        # Maps of a few places are continued by their last one.
        most = min(x.shape[-2:]) - (self.mode == "reflect")
        return (
            F.pad(x, sides, mode=self.mode if max(sides) <= most else "replicate")
            if any(sides)
            else x
        )
