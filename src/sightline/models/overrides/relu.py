"""Backward rules: what gradient a ReLU lets through.

Every spelling of ReLU is caught (`nn.ReLU`, `F.relu`, `torch.relu`, `.relu()`, `.relu_()`, ReLU6,
clamping at 0, `F.threshold`), because the rule acts on the function called and not on a type of
module. No module is touched.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.models.overrides.fast_operations import (
    backpropagate_clamp,
    backpropagate_threshold,
    is_available,
)
from sightline.models.overrides.mode import OverrideMode, is_transformed

BackwardRule = Literal["gradient", "deconvnet", "guided", "redirect"]

_RELU_FUNCTIONS = {torch.relu, Tensor.relu, F.relu, torch.relu_, Tensor.relu_, F.relu_}

_IN_PLACE_CLAMP_FUNCTIONS = {
    torch.clamp_,
    Tensor.clamp_,
    torch.clamp_min_,
    Tensor.clamp_min_,
    Tensor.clip_,
}

_CLAMP_FUNCTIONS = {
    torch.clamp,
    Tensor.clamp,
    torch.clamp_min,
    Tensor.clamp_min,
    torch.clip,
    Tensor.clip,
    *_IN_PLACE_CLAMP_FUNCTIONS,
}

_THRESHOLD_FUNCTIONS = {F.threshold, torch.threshold}

_HARDTANH_FUNCTIONS = {F.hardtanh, F.hardtanh_}

_IN_PLACE_FUNCTIONS = {
    torch.relu_,
    Tensor.relu_,
    F.relu_,
    F.hardtanh_,
    *_IN_PLACE_CLAMP_FUNCTIONS,
}


class RuledReLU(torch.autograd.Function):
    """ReLU whose backward pass lets the gradient through by rule.

    `only_active`: where the input is positive. `only_positive`: where the gradient is positive. It
    can write in place, and keeps its output for the backward pass as torch's own does.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, in_place: bool, only_active: bool, only_positive: bool) -> Tensor:
        del only_active, only_positive
        return x.relu_() if in_place else x.relu()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, in_place, only_active, ctx.only_positive = inputs
        if in_place:
            ctx.mark_dirty(x)
        if only_active:
            ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore
        if ctx.saved_tensors:
            (y,) = ctx.saved_tensors
            gated = mask_inactive_gradient(grad, y)  # a new tensor, which may be written to
            return (gated.clamp_min_(0) if ctx.only_positive else gated), None, None, None
        return (grad.clamp_min(0) if ctx.only_positive else grad), None, None, None


def mask_inactive_gradient(gradient: Tensor, relu_output: Tensor) -> Tensor:
    """The gradient where the ReLU was active and 0 elsewhere, as a new tensor."""
    if is_available("threshold backward"):
        return backpropagate_threshold(gradient, relu_output)
    return gradient.masked_fill(relu_output <= 0, 0)


class RuledClippedReLU(torch.autograd.Function):
    """`RuledReLU` clipped at `high`.

    It keeps its input for the backward pass as torch's own does, because the output of a clamp may
    be overwritten. With `keeps_output`, where the input will be, it keeps the output.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, high: float, only_active: bool, only_positive: bool, keeps_output: bool
    ) -> Tensor:
        del only_active, only_positive, keeps_output
        return x.clamp(0, high)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.high, only_active, ctx.only_positive, keeps_output = inputs
        if only_active:
            ctx.save_for_backward(output if keeps_output else x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        if ctx.saved_tensors:
            (clamped,) = ctx.saved_tensors
            gated = mask_clipped_gradient(grad, clamped, ctx.high)
            gated = gated.clamp_min_(0) if ctx.only_positive else gated
        else:
            gated = grad.clamp_min(0) if ctx.only_positive else grad
        return gated, None, None, None, None


def mask_clipped_gradient(gradient: Tensor, clamped: Tensor, high: float) -> Tensor:
    """The gradient where a clamp's input, or its output, is inside; 0 elsewhere; a new tensor."""
    if is_available("hardtanh backward"):
        return backpropagate_clamp(gradient, clamped, high)
    return gradient.masked_fill((clamped <= 0) | (clamped >= high), 0)


class RedirectedReLU(torch.autograd.Function):
    """ReLU clipped at `high` that passes a gradient even where all units are inactive.

    Where none of an image's gradient gets through, all of it passes except what would push an
    inactive input further away (lucid, misc/redirected_relu_grad.py). The gradient is a loss's.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, high: float) -> Tensor:
        return x.clamp(0, high)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        del output
        x, high = inputs
        ctx.save_for_backward(x <= 0, x >= high)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore
        below, above = ctx.saved_tensors
        plain = grad * ~(below | above)
        # A loss goes down against its gradient: a positive one pushes the input down.
        pushes_away = (below & (grad > 0)) | (above & (grad < 0))
        redirected = grad.masked_fill(pushes_away, 0)
        has_gradient = plain.flatten(1).any(1).view(-1, *[1] * (grad.ndim - 1))
        return torch.where(has_gradient, plain, redirected), None


class backward(OverrideMode):  # noqa: N801 - reads as a verb: `with sl.backward("guided"):`
    """Context in which every ReLU of the forward pass gets a backward rule.

    With x the input of the ReLU and g the gradient of its output:

    - gradient: g·1[x>0].
    - deconvnet (Zeiler & Fergus 2014): g·1[g>0].
    - guided (Springenberg et al. 2015): g·1[x>0]·1[g>0].
    - redirect (lucid): the gradient; for an image none of whose gradient gets through, all of it
      except what pushes an inactive input further away.

    `count` is the number of ReLUs that were met. Without any, all rules are the plain gradient.
    """

    def __init__(self, rule: BackwardRule) -> None:
        super().__init__()
        self.only_active = rule != "deconvnet"
        self.only_positive = rule != "gradient"
        self.redirect = rule == "redirect"
        self.count = 0

    def run_function(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A ReLU with the rule, else the function's own result."""
        high = find_relu_ceiling(func, args, kwargs)
        if high is None:
            return func(*args, **kwargs)
        self.count += 1
        x: Tensor = args[0] if args else kwargs["input"]
        in_place = _writes_in_place(func, args, kwargs)
        if self.redirect:
            y = RedirectedReLU.apply(x, high)
        elif func in _RELU_FUNCTIONS:
            writes_itself = in_place and not is_transformed()  # torch.vmap takes no such function
            y = RuledReLU.apply(x, writes_itself, self.only_active, self.only_positive)
            if writes_itself:
                return y
        else:
            # A copy of the output overwrites the input: only the output can be kept.
            y = RuledClippedReLU.apply(x, high, self.only_active, self.only_positive, in_place)
        return x.copy_(y) if in_place else y


def _writes_in_place(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> bool:
    """Whether a ReLU overwrites its input: by its name, or by `inplace`, its only flag."""
    if func in _IN_PLACE_FUNCTIONS or kwargs.get("inplace"):
        return True
    return any(value is True for value in args[1:])


def find_relu_ceiling(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> float | None:
    """The value at which the function clips from above if it is some ReLU, else None."""
    if func in _RELU_FUNCTIONS:
        return math.inf
    if func is F.relu6:
        return 6.0
    if func in _CLAMP_FUNCTIONS:
        low = _get_argument(args, kwargs, 1, "min")
        high = _get_argument(args, kwargs, 2, "max", math.inf)
        return _find_clamp_ceiling(low, math.inf if high is None else high)
    if func in _THRESHOLD_FUNCTIONS:
        threshold = _get_argument(args, kwargs, 1, "threshold")
        replacement = _get_argument(args, kwargs, 2, "value")
        return math.inf if threshold == 0 and replacement == 0 else None
    if func in _HARDTANH_FUNCTIONS:
        low = _get_argument(args, kwargs, 1, "min_val", -1.0)
        high = _get_argument(args, kwargs, 2, "max_val", 1.0)
        return float(high) if low == 0 else None
    return None


def _find_clamp_ceiling(low: Any, high: Any) -> float | None:
    """The upper bound of a clamp that is a ReLU: from the number 0 to a positive number."""
    if not isinstance(low, (int, float)) or not isinstance(high, (int, float)):
        return None
    return float(high) if low == 0 and high > 0 else None


def _get_argument(
    args: tuple[Any, ...], kwargs: dict[str, Any], index: int, name: str, default: Any = None
) -> Any:
    """An argument of a call, given by position or by name."""
    if name in kwargs:
        return kwargs[name]
    return args[index] if len(args) > index else default
