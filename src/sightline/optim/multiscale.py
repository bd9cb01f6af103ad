"""Coarse-to-fine ascent: each stage starts from the enlarged image of the one before."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor

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

# Of style-transfer-pytorch: Adam's betas, and the decay of its moving average of images.
ADAM_BETAS = (0.9, 0.99)
PICTURE_AVERAGE_DECAY = 0.99

DEFAULT_LEARNING_RATES = {"lbfgs": 1.0, "adam": 0.02}

MAX_STEP_HALVINGS = 6

# Chosen from 0, 0.5, 0.7 and 1 on three pairs of images: 1 falls behind after 100 steps, and 0
# takes twice as long to reach the loss of step 40.
FREQUENCY_FALLOFF = 0.7

# Bound on the root mean square of a step of L-BFGS, of pixels in [0, 1].
MAX_RMS_STEP = 0.1

# Half waves per side up to which the preconditioner distinguishes frequencies.
MAX_COSINE_COUNT = 128


@dataclass(frozen=True)
class Stage:
    """A number of steps at one size (height, width)."""

    size: ImageSize
    steps: int


def plan_stages(
    size: ImageSize, steps: int, *, min_side: int = 128, first_steps_factor: float = 1.0
) -> list[Stage]:
    """Stages whose sizes grow by √2 up to `size`, from a short side of at least `min_side`.

    As in style-transfer-pytorch. The first of several stages has `first_steps_factor` times as many
    steps: it lays out the image, and its steps cost least.
    """
    height, width = size
    doublings = math.log2(min(size) / min_side)
    growth_count = max(0, math.floor(2 * doublings))
    stages: list[Stage] = []
    for index in range(growth_count + 1):
        remaining_growths = growth_count - index
        factor = 2 ** (-remaining_growths / 2)
        stage_size = (round(height * factor), round(width * factor))
        stage_steps = steps
        if index == 0 and growth_count > 0:
            stage_steps = round(steps * first_steps_factor)
        stages.append(Stage(stage_size, stage_steps))
    return stages


class AveragedPixels(Pixels):
    """Pixels with a moving average of themselves, bias-corrected like Adam's moments."""

    def __init__(self, image: Tensor, decay: float = PICTURE_AVERAGE_DECAY) -> None:
        super().__init__(image)
        self.decay = decay
        self.step_count = 0
        self.running_sum = torch.zeros_like(image)

    @torch.no_grad()
    def project_(self) -> None:
        """Clamps the pixels to [0, 1] and adds them to the average."""
        super().project_()
        self.step_count += 1
        self.running_sum.lerp_(self.pixels, 1 - self.decay)

    @property
    def average(self) -> Tensor:
        """The average of the pixels after each step."""
        if not self.step_count:
            return self.pixels.detach()
        return self.running_sum / (1 - self.decay**self.step_count)


@dataclass
class CoarseToFineResult:
    """What a coarse-to-fine ascent made.

    Attributes:
        image: The image, 1×3×H×W.
        scores: The score of every step.
        weighted_evaluations: The evaluations, each weighted by its share of the final pixel count.
        notes: What went wrong on the way, in words.
        stopped: Whether the callback stopped the run.
    """

    image: Tensor
    scores: list[float] = field(default_factory=list[float])
    weighted_evaluations: float = 0.0
    notes: list[str] = field(default_factory=list[str])
    stopped: bool = False


@dataclass(frozen=True)
class StageState:
    """The optimizer of a stage, and the number that the stage's objective was divided by."""

    optimizer: LBFGS | Adam
    objective_scale: float


@dataclass
class StageOptimizer:
    """Makes the optimizer of each stage, with the state of the one before.

    Attributes:
        algorithm: "lbfgs" or "adam".
        lr: The step size.
        history_size: Curvature pairs of L-BFGS.
        falloff: How much further L-BFGS steps along coarse changes than along fine ones: in
            proportion to 1/frequency^falloff.
        previous: What the next stage continues from, if anything.
        current: The stage that is running.
    """

    algorithm: OptimizerName
    lr: float
    history_size: int = 10
    falloff: float = 0.0
    previous: StageState | None = None
    current: StageState | None = field(default=None, init=False)

    def make_optimizer(self, parameters: list[Tensor], scale: float) -> LBFGS | Adam:
        """The optimizer of one stage, whose objective is divided by `scale`."""
        if self.algorithm == "lbfgs":
            optimizer = self.make_lbfgs(parameters)
        else:
            optimizer = Adam(parameters, self.lr, ADAM_BETAS)
        if self.previous is not None:
            objective_ratio = self.previous.objective_scale / scale
            optimizer.inherit_state(self.previous.optimizer, objective_ratio)
            self.previous = None
        self.current = StageState(optimizer, scale)
        return optimizer

    def make_lbfgs(self, parameters: list[Tensor]) -> LBFGS:
        """L-BFGS for images of the parameters' size."""
        preconditioner = None
        if self.falloff:
            preconditioner = make_lowpass_preconditioner(parameters[0], self.falloff)
        return LBFGS(
            parameters,
            lr=self.lr,
            history=self.history_size,
            preconditioner=preconditioner,
            max_rms_step=MAX_RMS_STEP,
        )

    def finish_stage(self, *, keep_state: bool) -> None:
        """Lets the next stage continue from the optimizer's state, or start without one."""
        self.previous = self.current if keep_state else None

    def halve_step(self) -> None:
        """Halves the step size; the next optimizer starts without a state."""
        self.lr /= 2
        self.previous = None


def make_lowpass_preconditioner(image: Tensor, power: float) -> Callable[[Tensor], Tensor]:
    """A filter for images of this size that weights their cosine spectrum by 1/frequency^power.

    The weight is 1 at `PIVOT_WAVES` waves per image. Frequencies beyond `MAX_COSINE_COUNT` half
    waves share the smallest weight, which keeps the work proportional to the pixels. It is a cosine
    and not a Fourier series since that would tie opposite edges together.
    """
    height, width = image.shape[2:]
    row_basis = make_cosine_basis(height).to(image)
    column_basis = make_cosine_basis(width).to(image)

    # Waves per longer side of the image; a row of the basis adds half a wave.
    side = max(height, width)
    row_order = torch.arange(len(row_basis), device=image.device)
    column_order = torch.arange(len(column_basis), device=image.device)
    row_waves = row_order / 2 * side / height
    column_waves = column_order / 2 * side / width
    waves = (row_waves[:, None].square() + column_waves.square()).sqrt()
    weights = (waves.clamp_min(1) / PIVOT_WAVES).pow(-power)

    # Written as the smallest weight for everything plus what the coarse waves have more.
    min_weight = float(weights.min())
    extra_weights = (weights - min_weight).to(image)  # torch's default precision may be another

    def precondition(gradient: Tensor) -> Tensor:
        spectrum = row_basis @ gradient @ column_basis.T
        coarse_part = row_basis.T @ (extra_weights * spectrum) @ column_basis
        return min_weight * gradient + coarse_part

    return precondition


def make_cosine_basis(length: int) -> Tensor:
    """The first `MAX_COSINE_COUNT` rows of an orthonormal DCT-II matrix, each of `length`."""
    count = min(length, MAX_COSINE_COUNT)
    order = torch.arange(count)[:, None]
    position = torch.arange(length) + 0.5
    angle = math.pi / length * order * position
    basis = torch.cos(angle) * math.sqrt(2 / length)
    return torch.where(order == 0, basis / math.sqrt(2), basis)


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
    """Maximizes `make_objective(size)` through the stages, from an image 1×3×H×W of any size.

    Between stages the image is resized, and the optimizer's state with it. An `enlarge` of one's
    own may shift the image, so the optimizer then starts without a state. With `average` a stage
    returns the moving average of its images.

    The objective is divided by the magnitude of the stage's first score: L-BFGS leaves out
    curvatures below 1e-10, and with a Gram loss normalized by means it wouldn't move at all. After
    a score that is not finite the stage continues from its last good image with half the step size;
    the result's `notes` say so. Raises SightlineError if that doesn't help.
    """
    resize = enlarge or resize_bicubic
    result = CoarseToFineResult(image)
    total_steps = sum(stage.steps for stage in plan)
    steps_done = 0
    for stage in plan:
        objective = make_objective(stage.size)
        stage_image = resize(result.image, stage.size)
        scale = measure_objective_scale(model, objective, stage_image)
        pixel_share = math.prod(stage.size) / math.prod(plan[-1].size)
        stage_end = steps_done + stage.steps

        while steps_done < stage_end and not result.stopped:
            monitor = StageMonitor(callback, steps_done, total_steps, scale)
            pixels = AveragedPixels(stage_image) if average else Pixels(stage_image)
            # The warning of a score that is not finite becomes a note of the result.
            with warnings.catch_warnings(action="ignore"):
                ascent = maximize_objective(
                    model,
                    objective * (1 / scale),
                    pixels,
                    partial(stage_optimizer.make_optimizer, scale=scale),
                    stage_end - steps_done,
                    callback=monitor,
                )
            step_count = len(monitor.scores)
            steps_done += step_count
            result.scores += monitor.scores
            result.weighted_evaluations += step_count * pixel_share
            result.stopped = monitor.stopped

            if not ascent.stop_reason:
                stage_optimizer.finish_stage(keep_state=enlarge is None)
                stage_image = pixels.pixels.detach()
                if isinstance(pixels, AveragedPixels):
                    stage_image = pixels.average
                break
            recover_from_nonfinite_score(stage_optimizer, result, steps_done)
            if monitor.last_image is not None:
                stage_image = monitor.last_image

        result.image = stage_image.detach().clone()
        if result.stopped:
            break
    result.image = resize(result.image, plan[-1].size).clamp(0, 1)
    return result


def measure_objective_scale(model: Model, objective: Objective, image: Tensor) -> float:
    """The magnitude of an image's score, or 1 where it is zero or not finite."""
    magnitude = float(score_images(model, objective, image).abs().max())
    return magnitude if math.isfinite(magnitude) and magnitude > 0 else 1.0


def recover_from_nonfinite_score(
    stage_optimizer: StageOptimizer, result: CoarseToFineResult, steps_done: int
) -> None:
    """Halves the step size and notes it in the result.

    Raises SightlineError after `MAX_STEP_HALVINGS` times.
    """
    stage_optimizer.halve_step()
    result.notes.append(
        f"the score of step {steps_done + 1} was not a finite number; "
        f"the step size was halved to {stage_optimizer.lr:g}"
    )
    if len(result.notes) > MAX_STEP_HALVINGS:
        raise SightlineError(
            f"the loss is not a finite number even with a step size of {stage_optimizer.lr:g}; "
            "check that the weights belong to the network"
        )


class StageMonitor:
    """The callback of one stage: counts steps over all stages, and keeps scores and image."""

    def __init__(
        self, callback: Callback | None, steps_done: int, total_steps: int, objective_scale: float
    ) -> None:
        self.callback = callback
        self.steps_done = steps_done
        self.total_steps = total_steps
        self.objective_scale = objective_scale
        self.scores: list[float] = []
        # The image of the last step that had a finite score.
        self.last_image: Tensor | None = None
        self.stopped = False

    def __call__(self, step: Step) -> bool:
        self.last_image = step.image
        scores = step.scores * self.objective_scale
        self.scores.append(float(scores.sum()))
        if self.callback:
            index = self.steps_done + step.index
            overall_step = Step(index, self.total_steps, scores, step.image)
            self.stopped = bool(self.callback(overall_step))
        return self.stopped
