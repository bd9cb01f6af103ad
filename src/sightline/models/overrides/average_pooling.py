"""Average pooling in the place of max pooling, as in Gatys 2015 (section 2): the network's own pooling stays as it is outside."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

MAX_POOL_FUNCTIONS = {torch.max_pool2d, F.max_pool2d, F.max_pool2d_with_indices}


class AveragePoolingMode(TorchFunctionMode):
    """Context in which every 2-D max pooling averages, whoever calls it. Windows over the border count what lies inside only."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        return (
            average_like_max_pool(*args, **kwargs)
            if func in MAX_POOL_FUNCTIONS
            else func(*args, **kwargs)
        )


def average_like_max_pool(*args: Any, **kwargs: Any) -> torch.Tensor:
    """Average pooling with max pooling's arguments; dilation, which averages don't have, is taken as 1."""
    names = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    image, kernel, stride, padding = (
        given["input"],
        given["kernel_size"],
        given.get("stride"),
        given.get("padding", 0),
    )
    return F.avg_pool2d(
        image,
        kernel,
        stride or kernel,
        padding,
        bool(given.get("ceil_mode", False)),
        count_include_pad=False,
    )
