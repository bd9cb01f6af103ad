"""Average pooling in place of max pooling, as in Gatys et al. 2015 (section 2)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.models.overrides.mode import OverrideMode

MAX_POOL_FUNCTIONS = {torch.max_pool2d, F.max_pool2d, F.max_pool2d_with_indices}

_MAX_POOL_PARAMETERS = (
    "input",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "ceil_mode",
    "return_indices",
)


class AveragePoolingMode(OverrideMode):
    """Context in which every 2-D max pooling averages, whoever calls it. No module is touched."""

    def run_function(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Average pooling for max pooling, else the function's own result."""
        if func in MAX_POOL_FUNCTIONS:
            return average_like_max_pool(*args, **kwargs)
        return func(*args, **kwargs)


def average_like_max_pool(*args: Any, **kwargs: Any) -> Tensor:
    """Average pooling with max pooling's arguments.

    A window over the border averages the elements inside only. Average pooling has no dilation: it
    is taken as 1.
    """
    settings = {**dict(zip(_MAX_POOL_PARAMETERS, args, strict=False)), **kwargs}
    kernel_size = settings["kernel_size"]
    return F.avg_pool2d(
        settings["input"],
        kernel_size,
        settings.get("stride") or kernel_size,
        settings.get("padding", 0),
        bool(settings.get("ceil_mode", False)),
        count_include_pad=False,
    )
