"""Backward rules: what a ReLU lets back.

Every spelling of ReLU is caught (`nn.ReLU`, `F.relu`, `torch.relu`, `.relu()`, `.relu_()`, ReLU6, clamping at 0,
`F.threshold`), because the rule
acts on the function called, not on a type of module. No module is touched.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

BackwardRule = Literal["gradient", "deconvnet", "guided", "redirect"]

IN_PLACE_RECTIFIERS = {torch.relu_, Tensor.relu_, F.relu_, F.hardtanh_}

RELU_FUNCTIONS = {torch.relu, Tensor.relu, F.relu, torch.relu_, Tensor.relu_, F.relu_}

HARDTANH_FUNCTIONS = {F.hardtanh, F.hardtanh_}

IN_PLACE_CLAMP_FUNCTIONS = {
    torch.clamp_,
    Tensor.clamp_,
    torch.clamp_min_,
    Tensor.clamp_min_,
    Tensor.clip_,
}

CLAMP_FUNCTIONS = {
    torch.clamp,
    Tensor.clamp,
    torch.clamp_min,
    Tensor.clamp_min,
    torch.clip,
    Tensor.clip,
    *IN_PLACE_CLAMP_FUNCTIONS,
}

THRESHOLD_FUNCTIONS = {F.threshold, torch.threshold}

aten: Any = torch.ops.aten


class RuledReLU(torch.autograd.Function):
    """ReLU with a backward pass that lets through where its input was active, where the gradient is positive, or where both hold.

    It writes in place where it is told to, and keeps its result for the backward pass: what torch's own does, and no slower.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, in_place: bool, only_active: bool, only_positive: bool
    ) -> Tensor:
        y = x.relu_() if in_place else x.relu()
        if in_place:
            ctx.mark_dirty(x)
        if only_active:
            ctx.save_for_backward(y)
        ctx.positive = only_positive
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not ctx.saved_tensors:
            return (grad.clamp_min(0) if ctx.positive else grad), None, None, None
        (y,) = ctx.saved_tensors
        grad = aten.threshold_backward(grad, y, 0)  # a tensor of its own, which may be written to
        return (grad.clamp_min_(0) if ctx.positive else grad), None, None, None


class RuledClippedReLU(torch.autograd.Function):
    """The same of a ReLU clipped at `high`. It keeps a mask, because the result of a clamp may be overwritten."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, high: float, only_active: bool, only_positive: bool) -> Tensor:
        ctx.positive = only_positive
        ctx.mask = (x > 0) & (x < high) if only_active else None
        return x.clamp(0, high)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if ctx.mask is not None:
            grad = grad * ctx.mask
        return (grad.clamp_min(0) if ctx.positive else grad), None, None, None


class RedirectedReLU(torch.autograd.Function):
    """ReLU clipped at `high`. To an image whose whole gradient ends here it lets all of it back but what would push an inactive
    input further away (lucid, misc/redirected_relu_grad.py). The gradient is that of a loss."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, high: float) -> Tensor:
        ctx.below, ctx.above = x <= 0, x >= high
        return x.clamp(0, high)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        through = grad * ~(ctx.below | ctx.above)
        away = (ctx.below & (grad > 0)) | (ctx.above & (grad < 0))
        alive = through.flatten(1).any(1).view(-1, *[1] * (grad.ndim - 1))
        return torch.where(alive, through, grad.masked_fill(away, 0)), None


class backward(TorchFunctionMode):  # noqa: N801 - reads as a verb: `with rules.backward("guided"):`
    """Context in which every ReLU of the forward pass gets the backward rule.

    gradient: g·1[x>0]. deconvnet (Zeiler & Fergus 2014): g·1[g>0]. guided (Springenberg 2015): g·1[x>0]·1[g>0].
    redirect (lucid): the gradient, but where none of an image's comes through, all that does not push inactive inputs further away.
    `count` tells how many ReLUs were met; without any, the three rules are the same.
    """

    def __init__(self, rule: BackwardRule) -> None:
        super().__init__()
        self.only_active, self.only_positive = rule != "deconvnet", rule != "gradient"
        self.redirect = rule == "redirect"
        self.count = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        high = find_relu_ceiling(func, args, kwargs)
        if high is None:
            return func(*args, **kwargs)
        self.count += 1
        x = args[0] if args else kwargs["input"]
        in_place = (
            func in IN_PLACE_RECTIFIERS
            or func in IN_PLACE_CLAMP_FUNCTIONS
            or kwargs.get("inplace")
            or any(value is True for value in args[1:])
        )
        if func in RELU_FUNCTIONS and not self.redirect:
            return RuledReLU.apply(x, bool(in_place), self.only_active, self.only_positive)
        y = (
            RedirectedReLU.apply(x, high)
            if self.redirect
            else RuledClippedReLU.apply(x, high, self.only_active, self.only_positive)
        )
        return x.copy_(y) if in_place else y


def find_relu_ceiling(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> float | None:
    """Where the function clips above if it is some ReLU, else None."""
    if func in RELU_FUNCTIONS:
        return math.inf
    if func is F.relu6:
        return 6.0
    if func in CLAMP_FUNCTIONS:
        low, high = (
            kwargs.get(name, args[i] if len(args) > i else None)
            for i, name in ((1, "min"), (2, "max"))
        )
        plain = (
            isinstance(low, (int, float))
            and low == 0
            and (high is None or (isinstance(high, (int, float)) and high > 0))
        )
        return (math.inf if high is None else float(high)) if plain else None
    if func in THRESHOLD_FUNCTIONS:
        low, value = (
            kwargs.get(name, args[i] if len(args) > i else None)
            for i, name in ((1, "threshold"), (2, "value"))
        )
        return math.inf if low == 0 and value == 0 else None
    if func in HARDTANH_FUNCTIONS:
        low, high = (
            kwargs.get(name, args[i] if len(args) > i else default)
            for i, name, default in ((1, "min_val", -1.0), (2, "max_val", 1.0))
        )
        return float(high) if low == 0 else None
    return None
