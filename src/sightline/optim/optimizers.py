"""How the parameters move: Adam, steps of one length, and steps of one gain. They descend, as torch's optimizers do.

torch's own would import its compiler at the first step, which takes longer than most pictures.
"""

from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import Tensor


class Optimizer(Protocol):
    """Moves the leaves that it was made for by their `.grad`. torch's optimizers are such."""

    def step(self) -> object: ...
    def zero_grad(self) -> object: ...


OptimizerFactory = Callable[[list[Tensor]], Optimizer]


class BaseOptimizer:
    """What the optimizers share: the leaves, and forgetting their gradients."""

    def __init__(self, parameters: list[Tensor]) -> None:
        self.parameters = parameters

    def zero_grad(self) -> None:
        """Forgets the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Moves every leaf that has a gradient."""
        for number, parameter in enumerate(self.parameters):
            if parameter.grad is not None:
                self.update_parameter_(number, parameter, parameter.grad)

    def update_parameter_(self, index: int, parameter: Tensor, gradient: Tensor) -> None:
        """One step of the leaf of that number, in place."""
        raise NotImplementedError


class Adam(BaseOptimizer):
    """Adam (Kingma & Ba 2015), to the bit as torch.optim.Adam(foreach=False) computes it; `nesterov` makes it NAdam (Dozat 2016)."""

    def __init__(
        self,
        parameters: list[Tensor],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        nesterov: bool = False,
    ) -> None:
        super().__init__(parameters)
        self.lr, self.betas, self.eps, self.nesterov = lr, betas, eps, nesterov
        self.first_moments, self.second_moments = (
            [torch.zeros_like(parameter) for parameter in parameters] for _ in range(2)
        )
        self.step_count, self.momentum_product = 0, 1.0

    def step(self) -> None:
        """Moves every leaf that has a gradient."""
        self.step_count += 1
        self.momentum_product *= self.compute_momentum(self.step_count)
        super().step()

    def compute_momentum(self, step: int) -> float:
        """NAdam's momentum of a step: it rises from about half to β₁ (torch's momentum_decay, 0.004)."""
        return self.betas[0] * (1.0 - 0.5 * 0.96 ** (step * 0.004))

    def update_parameter_(self, index: int, parameter: Tensor, gradient: Tensor) -> None:
        """One step of the leaf of that number, in place."""
        first, second = self.betas
        mean = self.first_moments[index].lerp_(gradient, 1 - first)
        square = (
            self.second_moments[index].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        )
        if self.nesterov:
            spread = square.div(1 - second**self.step_count).sqrt_().add_(self.eps)
            now, then = (
                self.compute_momentum(self.step_count),
                self.compute_momentum(self.step_count + 1),
            )
            parameter.addcdiv_(
                gradient, spread, value=-self.lr * (1.0 - now) / (1.0 - self.momentum_product)
            )
            parameter.addcdiv_(
                mean, spread, value=-self.lr * then / (1.0 - self.momentum_product * then)
            )
        else:
            spread = (square.sqrt() / (1 - second**self.step_count) ** 0.5).add_(self.eps)
            parameter.addcdiv_(mean, spread, value=-(self.lr / (1 - first**self.step_count)))


class SteepestDescent(BaseOptimizer):
    """Steps of one length whatever the gradient's scale, each image for itself.

    linf: lr·sign(g) (Goodfellow 2015). l2: lr·g/‖g‖₂. mean: lr·g/mean|g| (DeepDream).
    """

    def __init__(
        self, parameters: list[Tensor], lr: float, norm: Literal["linf", "l2", "mean"]
    ) -> None:
        super().__init__(parameters)
        self.lr, self.norm = lr, norm

    def update_parameter_(self, index: int, parameter: Tensor, gradient: Tensor) -> None:
        """One step of the leaf of that number, in place."""
        parameter.sub_(self.lr * normalize_gradient(gradient, self.norm))


class FixedGainDescent(BaseOptimizer):
    """Plain steps rate·g, each image for itself, with the rate that would raise the score by `gain` but at most `most`
    (Yosinski 2015, «progress»: min(most, gain/‖g‖²))."""

    def __init__(self, parameters: list[Tensor], max_rate: float, gain: float) -> None:
        super().__init__(parameters)
        self.max_rate, self.gain = max_rate, gain

    def update_parameter_(self, index: int, parameter: Tensor, gradient: Tensor) -> None:
        """One step of the leaf of that number, in place."""
        square = gradient.flatten(1).square().sum(1).clamp_min(1e-30)
        rate = (self.gain / square).clamp_max(self.max_rate)
        parameter.sub_(rate.view(-1, *[1] * (gradient.ndim - 1)) * gradient)


def normalize_gradient(gradient: Tensor, norm: str) -> Tensor:
    """The gradient scaled to one size per image; zero stays zero."""
    if norm == "linf":
        return gradient.sign()
    flat = gradient.flatten(1)
    length = flat.norm(dim=1) if norm == "l2" else flat.abs().mean(1)
    return gradient / length.clamp_min(1e-20).view(-1, *[1] * (gradient.ndim - 1))
