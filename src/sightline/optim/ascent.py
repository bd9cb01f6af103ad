"""The one ascent: synthesis, DeepDream and adversarial examples differ in objective, parameterization and optimizer only."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sightline.errors import SightlineError
from sightline.images.transforms import Transform
from sightline.models.model import Model
from sightline.models.overrides.relu import backward
from sightline.optim.objectives.objective import Objective, ScoreFunction
from sightline.optim.optimizers import OptimizerFactory
from sightline.optim.parameterizations.fourier import Parameterization
from sightline.registry.progress import Callback, Step

# Steps in which an image whose gradient is held back by a ReLU gets the redirected one (lucid, misc/redirected_relu_grad.py).
REDIRECTED_RELU_STEPS = 16


class AscentResult(tuple[Tensor, Tensor]):
    """The final image N×3×H×W and the scores, steps×N; `moved`, N, says which images a gradient reached at all, `steps`, N,
    how many each made, and `note` why the run ended early, if it did."""

    received_gradient: Tensor
    step_counts: Tensor
    stop_reason: str


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
    """Increases the objective for every image of the batch by itself.

    `transform` stands between image and network in every step; it may give several views of each image, one after the other, whose
    scores are averaged. `regularize(step)` runs after every step. With `patience`, an image whose scores have not risen by a
    hundredth for that many steps keeps its picture, and the run ends when all do.

    A gradient that is not finite ends the run with a warning, and the last good picture is kept; raises SightlineError if that
    happens on the start.
    """
    climb = ObjectiveGradient(
        objective.bind(model), [model.layer(name) for name in objective.layers], model
    )
    stepper, history, note = make_optimizer(parameterization.parameters), list[Tensor](), ""
    plateau, moved = PlateauDetector(patience), torch.zeros(1, dtype=torch.bool)
    for index in range(steps):
        image = parameterization()
        seen = transform(image) if transform else image
        scores, slope = climb(seen, len(image), redirect=index < REDIRECTED_RELU_STEPS)
        steepest = find_max_gradient(slope, len(image))
        if not math.isfinite(float(steepest.sum() + scores.sum())):
            note = warn_nonfinite_gradient(objective, index, steps)
            break
        stepper.zero_grad()
        seen.backward(slope)
        shown = image.detach().clone() if callback else image
        stepper.step()
        if regularize:
            regularize(index)
        parameterization.project_()
        moved = moved.to(steepest.device) | (steepest > 0)
        history.append(scores)
        if callback and callback(Step(index + 1, steps, scores, shown)):
            break
        if patience and plateau.detect_plateau(history, parameterization):
            note = f"no image gained any more; the run ended after {index + 1} of {steps} steps"
            break
    found = AscentResult(
        (
            plateau.restore_stopped_pictures(parameterization().detach().clone()),
            torch.stack(history) if history else torch.empty(0, 0),
        )
    )
    found.received_gradient, found.stop_reason, found.step_counts = (
        moved,
        note,
        plateau.count_steps(history),
    )
    return found


def warn_nonfinite_gradient(objective: Objective, index: int, steps: int) -> str:
    """Why a run ends at a gradient that is not finite, said as a warning too; raises SightlineError if that is the first step."""
    if index == 0:
        raise SightlineError(
            f"{objective} or its gradient is not a finite number on the start; there is nothing to climb"
        )
    note = f"at step {index + 1} of {steps} the score or its gradient was not a finite number; the picture of step {index} is kept"
    warnings.warn(note, stacklevel=3)
    return note


@dataclass(frozen=True)
class ObjectiveGradient:
    """Scores of views of images, and the slope that the optimizer goes down."""

    score_function: ScoreFunction
    layers: list[str]
    model: Model

    def __call__(self, views: Tensor, image_count: int, *, redirect: bool) -> tuple[Tensor, Tensor]:
        """Scores of each of `count` images, and −∂(their sum)/∂(what the network saw).

        With `redirect`, an image to which nothing comes back gets the slope by the rule that starts dead ReLUs.
        """
        scores, slope = self.compute_gradient(views, image_count)
        if redirect and bool((dead := find_max_gradient(slope, image_count) == 0).any()):
            with backward("redirect"):
                other = self.compute_gradient(views, image_count)[1]
            slope = torch.where(
                dead.repeat_interleave(len(views) // image_count).view(-1, 1, 1, 1), other, slope
            )
        return scores, slope

    def compute_gradient(self, views: Tensor, image_count: int) -> tuple[Tensor, Tensor]:
        leaf = views.detach().requires_grad_()
        scores = (
            self.score_function(leaf, self.model.run(leaf, self.layers) if self.layers else {})
            .view(image_count, -1)
            .mean(1)
        )
        if not scores.requires_grad:
            return scores, torch.zeros_like(leaf)
        (slope,) = torch.autograd.grad(-scores.sum(), leaf, materialize_grads=True)
        return scores.detach(), slope


def find_max_gradient(gradient: Tensor, image_count: int) -> Tensor:
    """The largest magnitude of each image's slope, N; NaN where it has one."""
    return gradient.abs().amax((1, 2, 3)).view(image_count, -1).amax(1)


@dataclass
class PlateauDetector:
    """Notices, image by image, when the scores rise no more, and keeps the picture of that step."""

    patience: int
    stop_steps: dict[int, int] = field(default_factory=dict[int, int])
    stopped_pictures: dict[int, Tensor] = field(default_factory=dict[int, Tensor])

    def detect_plateau(self, history: list[Tensor], parameterization: Parameterization) -> bool:
        """Whether every image has stopped rising: the mean of its last `patience` scores is above that of the `patience` before
        by less than a hundredth of the whole rise so far."""
        now = len(history)
        if now < 2 * self.patience or now % self.patience:
            return False
        scores = torch.stack(history).unflatten(0, (-1, self.patience)).mean(1)
        still = scores[-1] - scores[-2] < 0.01 * (scores.amax(0) - scores[0]).clamp_min(1e-12)
        for number in still.nonzero().flatten().tolist():
            if number not in self.stop_steps:
                self.stop_steps[number], self.stopped_pictures[number] = (
                    now,
                    parameterization().detach()[number].clone(),
                )
        return len(self.stop_steps) == len(still)

    def restore_stopped_pictures(self, image: Tensor) -> Tensor:
        """The images, those that stopped earlier as they were then."""
        for number, picture in self.stopped_pictures.items():
            image[number] = picture
        return image

    def count_steps(self, history: list[Tensor]) -> Tensor:
        """The steps that each image made, N."""
        count = len(history[0]) if history else 0
        return torch.tensor([self.stop_steps.get(number, len(history)) for number in range(count)])


@torch.no_grad()
def score_images(model: Model, objective: Objective, image: Tensor) -> Tensor:
    """The objective of images N×3×H×W as they are, N."""
    image = image.to(model.device)
    layers = [model.layer(name) for name in objective.layers]
    return objective.bind(model)(image, model.run(image, layers) if layers else {})
