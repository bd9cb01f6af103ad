"""Optimizers of images: Adam, steps of a fixed length, and steps of a fixed gain.

They descend, as torch's optimizers do. Those import torch's compiler in their first step, which
takes longer than optimizing most images.
"""

from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F


class Optimizer(Protocol):
    """Moves the leaves that it was made for by their `.grad`. torch's optimizers fit as well."""

    def step(self) -> object: ...
    def zero_grad(self) -> object: ...


OptimizerFactory = Callable[[list[Tensor]], Optimizer]


class BaseOptimizer:
    """Base of the optimizers: holds the leaves and clears their gradients."""

    def __init__(self, parameters: list[Tensor]) -> None:
        self.parameters = parameters

    def zero_grad(self) -> None:
        """Clears the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Moves every leaf that has a gradient."""
        for index, parameter in enumerate(self.parameters):
            if parameter.grad is not None:
                self.update_parameter_(index, parameter, parameter.grad)

    def update_parameter_(self, index: int, parameter: Tensor, gradient: Tensor) -> None:
        """Moves the leaf of that index in place."""
        raise NotImplementedError

    def inherit_state(self, previous: "BaseOptimizer", objective_ratio: float) -> None:
        """Takes over what `previous` learned of the same images at another size.

        `previous` is of the same class. `objective_ratio` is how many times as large the objective
        is for this optimizer as it was for `previous`. By default nothing is taken over.
        """


class Adam(BaseOptimizer):
    """Adam (Kingma & Ba 2015); with `nesterov` NAdam (Dozat 2016).

    Equal to the bit to torch.optim.Adam(foreach=False) and torch.optim.NAdam(foreach=False).
    """

    def __init__(
        self,
        parameters: list[Tensor],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        nesterov: bool = False,
    ) -> None:
        super().__init__(parameters)
        self.lr = lr
        self.betas = betas
        self.eps = eps
        self.nesterov = nesterov
        self.first_moments = [torch.zeros_like(parameter) for parameter in parameters]
        self.second_moments = [torch.zeros_like(parameter) for parameter in parameters]
        self.step_count = 0
        self.momentum_product = 1.0

    def step(self) -> None:
        """Moves every leaf that has a gradient."""
        self.step_count += 1
        self.momentum_product *= self.compute_momentum(self.step_count)
        super().step()

    def compute_momentum(self, step: int) -> float:
        """NAdam's momentum of a step: it rises from about β₁/2 to β₁ (torch's momentum_decay)."""
        return self.betas[0] * (1.0 - 0.5 * 0.96 ** (step * 0.004))

    def update_parameter_(self, index: int, parameter: Tensor, gradient: Tensor) -> None:
        """Moves the leaf of that index in place."""
        beta1, beta2 = self.betas
        mean = self.first_moments[index]
        mean.lerp_(gradient, 1 - beta1)
        square = self.second_moments[index]
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)

        # The order of operations differs between torch's Adam and its NAdam, hence here too.
        mean_correction = 1 - beta1**self.step_count
        square_correction = 1 - beta2**self.step_count
        if not self.nesterov:
            denominator = square.sqrt() / square_correction**0.5
            denominator.add_(self.eps)
            parameter.addcdiv_(mean, denominator, value=-(self.lr / mean_correction))
            return

        denominator = square.div(square_correction).sqrt_()
        denominator.add_(self.eps)
        momentum = self.compute_momentum(self.step_count)
        next_momentum = self.compute_momentum(self.step_count + 1)
        next_product = self.momentum_product * next_momentum
        gradient_rate = -self.lr * (1.0 - momentum) / (1.0 - self.momentum_product)
        mean_rate = -self.lr * next_momentum / (1.0 - next_product)
        parameter.addcdiv_(gradient, denominator, value=gradient_rate)
        parameter.addcdiv_(mean, denominator, value=mean_rate)

    def inherit_state(self, previous: BaseOptimizer, objective_ratio: float) -> None:
        """Takes over the moments, resized to this optimizer's leaves N×C×H×W, and the step count.

        The moments keep their scale whatever `objective_ratio` is, as in style-transfer-pytorch
        (scale_adam, which resizes the first moments bicubically).
        """
        if not isinstance(previous, Adam):
            raise TypeError(f"Adam can't take over the state of {type(previous).__name__}")
        for index, parameter in enumerate(self.parameters):
            first_moment = resize_moment(previous.first_moments[index], parameter)
            second_moment = resize_moment(previous.second_moments[index], parameter)
            self.first_moments[index] = first_moment
            self.second_moments[index] = second_moment.clamp_min(0)
        self.step_count = previous.step_count
        self.momentum_product = previous.momentum_product


def resize_moment(moment: Tensor, parameter: Tensor) -> Tensor:
    """A moment N×C×h×w at the size of the parameter N×C×H×W. Unlike an image it isn't clamped."""
    size = parameter.shape[2:]
    return F.interpolate(moment, size=size, mode="bilinear", align_corners=False)


class SteepestDescent(BaseOptimizer):
    """Steps of a fixed length whatever the gradient's scale, each image for itself.

    linf: lr·sign(g) (Goodfellow 2015). l2: lr·g/‖g‖₂. mean: lr·g/mean|g| (DeepDream).
    """

    def __init__(
        self, parameters: list[Tensor], lr: float, norm: Literal["linf", "l2", "mean"]
    ) -> None:
        super().__init__(parameters)
        self.lr = lr
        self.norm = norm

    def update_parameter_(self, index: int, parameter: Tensor, gradient: Tensor) -> None:
        """Moves the leaf of that index in place."""
        parameter.sub_(self.lr * normalize_gradient(gradient, self.norm))


class FixedGainDescent(BaseOptimizer):
    """Plain steps rate·g, each image for itself.

    The rate is the one that would raise a linear score by `gain`, but at most `max_rate`
    (Yosinski 2015, "progress": min(max_rate, gain/‖g‖²)).
    """

    def __init__(self, parameters: list[Tensor], max_rate: float, gain: float) -> None:
        super().__init__(parameters)
        self.max_rate = max_rate
        self.gain = gain

    def update_parameter_(self, index: int, parameter: Tensor, gradient: Tensor) -> None:
        """Moves the leaf of that index in place."""
        squared_norm = gradient.flatten(1).square().sum(1).clamp_min(1e-30)
        rate = (self.gain / squared_norm).clamp_max(self.max_rate)
        parameter.sub_(broadcast_per_image(rate, gradient) * gradient)


def normalize_gradient(gradient: Tensor, norm: str) -> Tensor:
    """The gradient scaled to norm 1 for each image; a zero gradient stays zero."""
    if norm == "linf":
        return gradient.sign()
    flat = gradient.flatten(1)
    length = flat.norm(dim=1) if norm == "l2" else flat.abs().mean(1)
    return gradient / broadcast_per_image(length.clamp_min(1e-20), gradient)


def broadcast_per_image(values: Tensor, like: Tensor) -> Tensor:
    """One number per image, N, as N×1×…×1 with as many dimensions as `like`."""
    return values.view(-1, *[1] * (like.ndim - 1))
