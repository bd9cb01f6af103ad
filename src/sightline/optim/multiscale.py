"""A picture painted from coarse to fine: the ascent at growing sizes, each starting from the enlarged result of the last."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.errors import SightlineError
from sightline.images.spectrum import PIVOT_WAVES
from sightline.images.transforms import ImageSize, resize_bicubic
from sightline.models.model import Model
from sightline.optim.ascent import maximize_objective, score_images
from sightline.optim.lbfgs import LBFGS
from sightline.optim.objectives.objective import Objective
from sightline.optim.optimizers import Adam
from sightline.optim.parameterizations.fourier import Pixels
from sightline.registry.progress import Callback, Step

OptimizerName = Literal["lbfgs", "adam"]

ADAM_BETAS = 0.9, 0.99  # of style-transfer-pytorch, for Adam

PICTURE_AVERAGE_DECAY = 0.99  # of its moving average of pictures

DEFAULT_LEARNING_RATES = {"lbfgs": 1.0, "adam": 0.02}

MAX_STEP_HALVINGS = 6

# Of 0, 0.5, 0.7 and 1 on three pairs of pictures: 1 falls behind after 100 steps, without any all take twice as long to step 40.
FREQUENCY_FALLOFF = 0.7

MAX_RMS_STEP = 0.1  # root mean square of a step of L-BFGS, of pixels in [0, 1]

MAX_COSINE_COUNT = 128  # half waves per side up to which coarse and fine are told apart


@dataclass(frozen=True)
class Stage:
    """Steps at one size (height, width)."""

    size: ImageSize
    steps: int


def plan_stages(
    size: ImageSize, steps: int, *, min_side: int = 128, first_steps_factor: float = 1.0
) -> list[Stage]:
    """Sizes that grow by √2 up to `size` from a short side of `least` or more (style-transfer-pytorch). The first has
    `first` × as many steps as the others: the picture is laid out there, where a step costs least."""
    count = max(0, math.floor(2 * math.log2(min(size) / min_side)))
    factors = [2 ** (-index / 2) for index in reversed(range(count + 1))]
    return [
        Stage(
            (round(size[0] * factor), round(size[1] * factor)),
            round(steps * first_steps_factor) if index == 0 and count else steps,
        )
        for index, factor in enumerate(factors)
    ]


class AveragedPixels(Pixels):
    """Pixels that keep a moving average of themselves, free of its start's weight (bias-corrected as Adam's moments)."""

    def __init__(self, image: Tensor, decay: float = PICTURE_AVERAGE_DECAY) -> None:
        super().__init__(image)
        self.decay, self.step_count, self.running_sum = decay, 0, torch.zeros_like(image)

    @torch.no_grad()
    def project_(self) -> None:
        super().project_()
        self.step_count += 1
        self.running_sum.lerp_(self.pixels, 1 - self.decay)

    @property
    def average(self) -> Tensor:
        """The average of what the pixels were after each step."""
        return (
            self.running_sum / (1 - self.decay**self.step_count)
            if self.step_count
            else self.pixels.detach()
        )


@dataclass
class CoarseToFineResult:
    """The picture 1×3×H×W, the score of every step, the evaluations weighed by their share of the final pixels, and what
    went wrong on the way, in words."""

    image: Tensor
    scores: list[float] = field(default_factory=list[float])
    weighted_evaluations: float = 0.0
    notes: list[str] = field(default_factory=list[str])
    stopped: bool = False


@dataclass
class StageOptimizer:
    """How a stage is gone: "lbfgs" or "adam", its step size, its memory, how much further L-BFGS trusts coarse changes than fine
    ones (`falloff`), and the optimizer as the stage before left it, with what the objective was divided by there."""

    algorithm: OptimizerName
    lr: float
    history_size: int = 10
    falloff: float = 0.0
    previous: tuple[LBFGS | Adam, float] | None = None

    def make_optimizer(self, parameters: list[Tensor], scale: float) -> LBFGS | Adam:
        """The optimizer of one stage, whose objective is divided by `scale`; with the moments or the pairs of the stage before, resized."""
        (before, divided), self.previous = self.previous or (None, scale), None
        if self.algorithm == "lbfgs":
            filter = (
                make_lowpass_preconditioner(parameters[0], self.falloff) if self.falloff else None
            )
            stepper = LBFGS(
                parameters,
                lr=self.lr,
                history=self.history_size,
                preconditioner=filter,
                max_rms_step=MAX_RMS_STEP,
            )
            if isinstance(before, LBFGS):
                stepper.inherit_history(before, divided / scale)
        else:
            stepper = Adam(parameters, self.lr, ADAM_BETAS)
            if isinstance(before, Adam):
                size = parameters[0].shape[-2:]
                grown = [
                    F.interpolate(one[0], size=size, mode="bilinear", align_corners=False)
                    for one in (before.first_moments, before.second_moments)
                ]
                stepper.first_moments, stepper.second_moments, stepper.step_count = (
                    [grown[0]],
                    [grown[1].clamp_min(0)],
                    before.step_count,
                )
        self.current = stepper, scale
        return stepper


def make_lowpass_preconditioner(image: Tensor, power: float) -> Callable[[Tensor], Tensor]:
    """What multiplies the cosine spectrum of images of this size by 1/frequency^power (1 at 4 waves per picture), what is finer
    than `FINEST` by the same as there: work in proportion to the pixels. Cosines, since a Fourier series would tie opposite edges."""
    rows, columns = (make_cosine_basis(length).to(image) for length in image.shape[2:])
    side = max(image.shape[2:])
    waves = [
        torch.arange(len(one), device=image.device) / 2 * side / one.shape[1]
        for one in (rows, columns)
    ]
    weights = (
        (waves[0][:, None].square() + waves[1].square()).sqrt().clamp_min(1) / PIVOT_WAVES
    ).pow(-power)
    least = float(weights.min())
    return lambda slope: (
        least * slope + rows.T @ ((weights - least) * (rows @ slope @ columns.T)) @ columns
    )


def make_cosine_basis(length: int) -> Tensor:
    """The first `FINEST` of an orthonormal base of cosines (DCT-II), each a row of `length`."""
    order = torch.arange(min(length, MAX_COSINE_COUNT))[:, None]
    base = torch.cos(math.pi / length * order * (torch.arange(length) + 0.5)) * math.sqrt(
        2 / length
    )
    return torch.where(order == 0, base / math.sqrt(2), base)


def optimize_coarse_to_fine(
    model: Model,
    make_objective: Callable[[ImageSize], Objective],
    image: Tensor,
    plan: Sequence[Stage],
    stage_optimizer: StageOptimizer,
    *,
    average: bool = False,
    enlarge: Callable[[Tensor, ImageSize], Tensor] | None = None,
    callback: Callback | None = None,
) -> CoarseToFineResult:
    """Ascends `aim(size)` through the stages from an image 1×3×H×W of any size. Between them the picture is `resized`, and what the
    optimizer knows of it; or it grows by `enlarge`, which may shift it, so that the optimizer starts anew.

    The objective is divided by the size of its first score: L-BFGS leaves out curvatures below 1e-10, and a mean-normalized
    Gram loss would stand still. If a score is no number, the stage goes back to the last picture that had one, with half the
    step. Raises SightlineError if that does not help either.
    """
    total, done, grown = sum(stage.steps for stage in plan), 0, enlarge or resize_bicubic
    painted = CoarseToFineResult(image)
    for stage in plan:
        objective = make_objective(stage.size)
        left = stage.steps
        start = grown(painted.image, stage.size)
        first = float(score_images(model, objective, start).abs().max())
        scale = first if math.isfinite(first) and first > 0 else 1.0
        while left > 0 and not painted.stopped:
            watch = StageMonitor(callback, done, total, scale)
            pixels = AveragedPixels(start) if average else Pixels(start)
            with warnings.catch_warnings(action="ignore"):  # what the warning says is told below
                optimizer = partial(stage_optimizer.make_optimizer, scale=scale)
                broken = maximize_objective(
                    model, objective * (1 / scale), pixels, optimizer, left, callback=watch
                ).stop_reason
            went = len(watch.scores)
            done, left = done + went, left - went
            painted.scores += watch.scores
            painted.weighted_evaluations += went * math.prod(stage.size) / math.prod(plan[-1].size)
            painted.stopped = watch.stopped
            if not broken:
                stage_optimizer.previous = None if enlarge else stage_optimizer.current
                start = (
                    pixels.average if isinstance(pixels, AveragedPixels) else pixels.pixels.detach()
                )
                break
            start = halve_step_size(painted, stage_optimizer, watch, start, done)
        painted.image = start.detach().clone()
        if painted.stopped:
            break
    painted.image = grown(painted.image, plan[-1].size).clamp(0, 1)
    return painted


def halve_step_size(
    result: CoarseToFineResult,
    stage_optimizer: StageOptimizer,
    monitor: "StageMonitor",
    start: Tensor,
    step: int,
) -> Tensor:
    """After a score that is no number: half the step, and the last good picture."""
    stage_optimizer.lr, stage_optimizer.previous = stage_optimizer.lr / 2, None
    result.notes.append(
        f"step {step + 1} gave no number; went back and halved the step to {stage_optimizer.lr:g}"
    )
    if len(result.notes) > MAX_STEP_HALVINGS:
        raise SightlineError(
            f"the loss is no number even with steps of {stage_optimizer.lr:g}; do the network and its weights fit together?"
        )
    return monitor.last_picture if monitor.last_picture is not None else start


class StageMonitor:
    """The callback of one stage: counts on over stages, keeps the scores and the last picture that had one."""

    def __init__(
        self, callback: Callback | None, steps_done: int, total_steps: int, objective_scale: float
    ) -> None:
        self.callback, self.steps_done, self.total_steps, self.objective_scale = (
            callback,
            steps_done,
            total_steps,
            objective_scale,
        )
        self.scores: list[float] = []
        self.last_picture: Tensor | None = None
        self.stopped = False

    def __call__(self, step: Step) -> bool:
        self.last_picture = step.image
        scores = step.scores * self.objective_scale
        self.scores.append(float(scores.sum()))
        self.stopped = bool(
            self.callback
            and self.callback(
                Step(self.steps_done + step.index, self.total_steps, scores, step.image)
            )
        )
        return self.stopped
