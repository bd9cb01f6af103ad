"""The one gradient ascent on an image.

Synthesis, DeepDream and adversarial examples differ in objective, parameterization and optimizer.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from sightline.errors import SightlineError
from sightline.images.transforms import Transform
from sightline.models.model import Model
from sightline.models.overrides.relu import backward
from sightline.optim.objectives.objective import Objective, ScoreFunction
from sightline.optim.optimizers import OptimizerFactory
from sightline.optim.parameterizations.fourier import Parameterization
from sightline.optim.score_gradient import (
    compute_loss_gradient,
    require_image_gradient,
    run_layers,
)
from sightline.registry.progress import Callback, Step

# For so many steps, an image whose gradient is zero behind dead ReLUs gets a redirected gradient
# (lucid, misc/redirected_relu_grad.py).
REDIRECTED_RELU_STEPS = 16

# An image is on a plateau when its mean score of `patience` steps gained less than this share of
# its rise so far.
MIN_PLATEAU_GAIN = 0.01


class AscentResult(tuple[Tensor, Tensor]):
    """The final image N×3×H×W and the scores, steps×N; it unpacks as `image, scores`.

    Attributes:
        received_gradient: Whether a gradient reached the image in any step, N.
        step_counts: How many steps the image made, N.
        stop_reason: Why the run ended early; empty if it didn't.
    """

    received_gradient: Tensor
    step_counts: Tensor
    stop_reason: str

    def __new__(
        cls,
        image: Tensor,
        scores: Tensor,
        *,
        received_gradient: Tensor,
        step_counts: Tensor,
        stop_reason: str,
    ) -> Self:
        result = super().__new__(cls, (image, scores))
        result.received_gradient = received_gradient
        result.step_counts = step_counts
        result.stop_reason = stop_reason
        return result


@torch.enable_grad()
def maximize_objective(
    model: Model,
    objective: Objective,
    parameterization: Parameterization,
    make_optimizer: OptimizerFactory,
    steps: int,
    *,
    transform: Transform | None = None,
    regularize: Callable[[int], None] | None = None,
    callback: Callback | None = None,
    patience: int = 0,
) -> AscentResult:
    """Increases the objective of every image of a batch, each image for itself.

    `transform` is applied between the image and the network in every step. It may return several
    views of each image, one after the other; their scores are averaged. `regularize(step)` runs
    after every step. With `patience`, an image whose mean score over that many steps rose by less
    than a hundredth of its rise so far keeps its pixels, and the run ends when all images have.

    A score or gradient that is not finite ends the run with a warning, and the image of the step
    before is returned. Raises SightlineError if that happens in the first step, and for a network
    that is cut off from differentiation.
    """
    compute_gradient = ObjectiveGradient(
        score_function=objective.bind(model),
        layers=[model.layer(name) for name in objective.layers],
        model=model,
    )
    optimizer = make_optimizer(parameterization.parameters)
    plateau = PlateauDetector(patience)
    history: list[Tensor] = []
    received_gradient = torch.zeros(1, dtype=torch.bool)
    stop_reason = ""

    for index in range(steps):
        image = parameterization()
        views = transform(image) if transform else image
        redirect = index < REDIRECTED_RELU_STEPS
        scores, gradient = compute_gradient(views, len(image), redirect=redirect)
        max_gradient = find_max_gradient(gradient, len(image))
        if index == 0:
            compute_gradient.require_gradient(views, max_gradient)
        if not math.isfinite(float(max_gradient.sum() + scores.sum())):
            stop_reason = warn_nonfinite_gradient(objective, index, steps)
            break

        optimizer.zero_grad()
        # A gradient that `backward` is given makes it import torch's compiler.
        (views * gradient).sum().backward()
        # A step may change the pixels in place, so the callback's copy is taken before it.
        step_image = image.detach().clone() if callback else image
        optimizer.step()
        if regularize:
            regularize(index)
        parameterization.project_()

        received_gradient = received_gradient.to(max_gradient.device) | (max_gradient > 0)
        history.append(scores)
        if callback and callback(Step(index + 1, steps, scores, step_image)):
            break
        if plateau.detect_plateau(history, parameterization):
            stop_reason = (
                f"no image gained any more; the run ended after {index + 1} of {steps} steps"
            )
            break

    final_image = parameterization().detach().clone()
    return AscentResult(
        plateau.restore_stopped_images(final_image),
        torch.stack(history) if history else torch.empty(0, 0),
        received_gradient=received_gradient,
        step_counts=plateau.count_steps(history),
        stop_reason=stop_reason,
    )


def warn_nonfinite_gradient(objective: Objective, index: int, steps: int) -> str:
    """Warns that the run ends at a score or gradient that is not finite, and returns the warning.

    Raises SightlineError in the first step.
    """
    if index == 0:
        raise SightlineError(
            f"{objective} or its gradient is not a finite number at the start; "
            "the ascent can't begin"
        )
    reason = (
        f"at step {index + 1} of {steps} the score or its gradient was not a finite number; "
        f"the image of step {index} is returned"
    )
    warnings.warn(reason, stacklevel=3)
    return reason


@dataclass(frozen=True)
class ObjectiveGradient:
    """Scores of views of images, and the gradient that an optimizer descends."""

    score_function: ScoreFunction
    layers: list[str]
    model: Model

    def __call__(self, views: Tensor, image_count: int, *, redirect: bool) -> tuple[Tensor, Tensor]:
        """Returns each image's mean score over its views, N, and −∂(sum of scores)/∂views.

        With `redirect`, an image whose gradient is zero gets the gradient that passes dead ReLUs.
        """
        scores, gradient = self.compute_gradient(views, image_count)
        if not redirect:
            return scores, gradient

        is_dead = find_max_gradient(gradient, image_count) == 0
        if is_dead.any():
            with backward("redirect"):
                _, redirected_gradient = self.compute_gradient(views, image_count)
            views_per_image = len(views) // image_count
            is_dead_view = is_dead.repeat_interleave(views_per_image).view(-1, 1, 1, 1)
            gradient = torch.where(is_dead_view, redirected_gradient, gradient)
        return scores, gradient

    def compute_gradient(self, views: Tensor, image_count: int) -> tuple[Tensor, Tensor]:
        """The same with the network's own ReLU gradients."""
        view_scores, gradient = compute_loss_gradient(
            self.model, self.score_function, self.layers, views
        )
        scores = view_scores.view(image_count, -1).mean(1)
        views_per_image = len(views) // image_count
        return scores, gradient / views_per_image

    def require_gradient(self, views: Tensor, max_gradient: Tensor) -> None:
        """Raises SightlineError if the network is cut off from differentiation.

        Where any of the images' largest gradients, N, is positive, it is not.
        """
        if bool((max_gradient > 0).any()):
            return

        def compute_scores(image: Tensor) -> Tensor:
            return self.score_function(image, run_layers(self.model, image, self.layers))

        require_image_gradient(self.model, compute_scores, views)


def find_max_gradient(gradient: Tensor, image_count: int) -> Tensor:
    """The largest magnitude in the gradient of each image's views, N; NaN if there is one."""
    view_maxima = gradient.abs().amax((1, 2, 3))
    return view_maxima.view(image_count, -1).amax(1)


@dataclass
class PlateauDetector:
    """Notices for each image when its scores no longer rise, and keeps the image of that step."""

    patience: int
    stop_steps: dict[int, int] = field(default_factory=dict[int, int])
    stopped_images: dict[int, Tensor] = field(default_factory=dict[int, Tensor])

    def detect_plateau(self, history: list[Tensor], parameterization: Parameterization) -> bool:
        """Whether every image has stopped rising. Checked once every `patience` steps.

        Without patience, never.
        """
        step_count = len(history)
        if not self.patience or step_count < 2 * self.patience or step_count % self.patience:
            return False

        # The mean score of every `patience` steps, windows×N.
        scores = torch.stack(history)
        window_means = scores.unflatten(0, (-1, self.patience)).mean(1)
        gain = window_means[-1] - window_means[-2]
        total_rise = window_means.amax(0) - window_means[0]
        min_gain = MIN_PLATEAU_GAIN * total_rise.clamp_min(1e-12)
        is_flat = gain < min_gain

        for index in is_flat.nonzero().flatten().tolist():
            if index not in self.stop_steps:
                self.stop_steps[index] = step_count
                self.stopped_images[index] = parameterization().detach()[index].clone()
        return len(self.stop_steps) == len(is_flat)

    def restore_stopped_images(self, image: Tensor) -> Tensor:
        """Writes the images that stopped early back into the batch, in place."""
        for index, stopped_image in self.stopped_images.items():
            image[index] = stopped_image
        return image

    def count_steps(self, history: list[Tensor]) -> Tensor:
        """The steps that each image made, N."""
        image_count = len(history[0]) if history else 0
        counts = [self.stop_steps.get(index, len(history)) for index in range(image_count)]
        return torch.tensor(counts)


@torch.no_grad()
def score_images(model: Model, objective: Objective, image: Tensor) -> Tensor:
    """The objective of images N×3×H×W as they are, N."""
    image = image.to(model.device)
    layers = [model.layer(name) for name in objective.layers]
    return objective.bind(model)(image, run_layers(model, image, layers))
