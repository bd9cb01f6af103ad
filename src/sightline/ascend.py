"""The one ascent: synthesis, DeepDream and adversarial examples differ in objective, parameterization and optimizer only."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .model import Model
from .objective import Objective
from .parameterize import Parameterization, Pixels
from .transform import Transform, blur


@dataclass(frozen=True)
class Step:
    """The progress event of every iterative method: steps done, steps in all, scores N, the image N×3×H×W before this step."""

    index: int
    total: int
    scores: Tensor
    image: Tensor


Callback = Callable[[Step], bool | None]
Optimizer = Callable[[list[Tensor]], torch.optim.Optimizer]


@torch.enable_grad()
def ascend(
    model: Model,
    objective: Objective,
    start: Parameterization,
    optimizer: Optimizer,
    steps: int,
    *,
    transform: Transform | None = None,
    regularize: Callable[[int], None] | None = None,
    callback: Callback | None = None,
) -> tuple[Tensor, Tensor]:
    """Increases the objective for every image of the batch by itself. Gives the final image N×3×H×W and the scores, steps×N.

    `transform` stands between image and network in every step; `regularize(step)` runs after every step.
    """
    score_of, layers = objective.bind(model), [model.layer(name) for name in objective.layers]
    stepper, history = optimizer(start.parameters), list[Tensor]()
    for index in range(steps):
        image = start()
        seen = transform(image) if transform else image
        scores = score_of(seen, model.run(seen, layers) if layers else {})
        stepper.zero_grad()
        (-scores.sum()).backward()
        shown = image.detach().clone() if callback else image
        stepper.step()
        if regularize:
            regularize(index)
        start.project_()
        history.append(scores.detach())
        if callback and callback(Step(index + 1, steps, history[-1], shown)):
            break
    return start().detach().clone(), torch.stack(history) if history else torch.empty(0, 0)


@torch.no_grad()
def score_of(model: Model, objective: Objective, image: Tensor) -> Tensor:
    """The objective of images N×3×H×W as they are, N."""
    image = image.to(model.device)
    layers = [model.layer(name) for name in objective.layers]
    return objective.bind(model)(image, model.run(image, layers) if layers else {})


class Steepest(torch.optim.Optimizer):
    """Steps of one length whatever the gradient's scale, each image for itself. Descends, as torch's optimizers do.

    linf: lr·sign(g) (Goodfellow 2015). l2: lr·g/‖g‖₂. mean: lr·g/mean|g| (DeepDream).
    """

    def __init__(self, parameters: list[Tensor], lr: float, norm: Literal["linf", "l2", "mean"]) -> None:
        super().__init__(parameters, {"lr": lr, "norm": norm})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(group["lr"] * direction(parameter.grad, group["norm"]))


def direction(gradient: Tensor, norm: str) -> Tensor:
    """The gradient scaled to one size per image; zero stays zero."""
    if norm == "linf":
        return gradient.sign()
    flat = gradient.flatten(1)
    length = flat.norm(dim=1) if norm == "l2" else flat.abs().mean(1)
    return gradient / length.clamp_min(1e-20).view(-1, *[1] * (gradient.ndim - 1))


@dataclass(frozen=True)
class Regularizer:
    """What keeps pixel ascent from noise: the lecture's four (Simonyan 2013; Yosinski 2015, section 3), around gray 0.5.

    `decay`: each step keeps (1 − decay) of the distance to gray. `sigma`, `every`: Gaussian blur of σ pixels every n steps.
    `small`: that share of pixels with the smallest distance to gray is set to gray;
    `idle`: likewise the share with the smallest |distance · gradient|, which contribute least.
    """

    decay: float = 0.0
    sigma: float = 0.0
    every: int = 4
    small: float = 0.0
    idle: float = 0.0

    @torch.no_grad()
    def apply_(self, start: Pixels, index: int) -> None:
        """Works on the pixels in place, after a step."""
        offset = start.pixels - 0.5
        offset *= 1 - self.decay
        if self.sigma > 0 and (index + 1) % self.every == 0:
            offset = blur(offset, self.sigma)
        # Both are measured before either clips: what is gray already contributes nothing and would fill the share of the idle.
        distance, gradient = offset.norm(dim=1), start.pixels.grad
        contribution = distance if gradient is None else (offset * gradient).sum(1).abs()
        if self.small > 0:
            offset = kept(offset, distance, self.small)
        if self.idle > 0 and gradient is not None:
            offset = kept(offset, contribution, self.idle)
        start.pixels.copy_(offset + 0.5)


def kept(offset: Tensor, importance: Tensor, share: float) -> Tensor:
    """Offsets with the least important `share` of pixels (importance N×H×W) set to zero."""
    threshold = importance.flatten(1).quantile(share, dim=1).view(-1, 1, 1)
    return offset * (importance >= threshold).unsqueeze(1)
