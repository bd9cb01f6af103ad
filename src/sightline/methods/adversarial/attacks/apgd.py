"""Auto-PGD: projected steps that adapt their own size (Croce & Hein 2020, algorithm 1)."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from sightline.methods.adversarial.attacks.goal import AttackRun
from sightline.methods.adversarial.attacks.norm_ball import NormBall, reshape_per_image

APGD_MOMENTUM = 0.75  # α of the paper
MIN_RISE_SHARE = 0.75  # ρ of the paper


@dataclass
class AscentState:
    """The ascent of the images that are still under attack; every field has one row per image.

    `active_rows` are their indices among the images of the run. `rise_count` is how often the
    score rose since the last checkpoint; `checkpoint_step_size` and `checkpoint_best_score` are
    the step size and the best score at that checkpoint.
    """

    active_rows: Tensor
    image: Tensor
    previous_image: Tensor
    gradient: Tensor
    score: Tensor
    best_image: Tensor
    best_gradient: Tensor
    best_score: Tensor
    step_size: Tensor
    rise_count: Tensor
    checkpoint_step_size: Tensor
    checkpoint_best_score: Tensor

    def select_images(self, keep: Tensor) -> "AscentState":
        """The state of the images that `keep` marks."""
        selected = [getattr(self, field.name)[keep] for field in fields(self)]
        return AscentState(*selected)

    def propose_image(self, norm_ball: NormBall, is_first: bool) -> Tensor:
        """The next image: a projected step, then α of it and 1 − α of the previous move."""
        direction = norm_ball.find_steepest_step(self.gradient, self.image)
        step = reshape_per_image(self.step_size) * direction
        target = norm_ball.project_image(self.image + step)
        if is_first:
            return target
        previous_move = self.image - self.previous_image
        return norm_ball.project_image(
            self.image + APGD_MOMENTUM * (target - self.image) + (1 - APGD_MOMENTUM) * previous_move
        )

    def accept_image(self, image: Tensor, gradient: Tensor, score: Tensor) -> None:
        """Moves to the proposed image, with its gradient and score, and updates the best one."""
        self.rise_count = self.rise_count + (score > self.score)
        self.previous_image = self.image
        self.image = image
        self.gradient = gradient
        self.score = score

        is_better = score > self.best_score
        is_better_image = is_better.view(-1, 1, 1, 1)
        self.best_image = torch.where(is_better_image, image, self.best_image)
        self.best_gradient = torch.where(is_better_image, gradient, self.best_gradient)
        self.best_score = torch.where(is_better, score, self.best_score)

    def review_step_sizes(self, period: int) -> None:
        """At a checkpoint, `period` steps after the last: halves the step size of stalled images.

        A stalled image goes back to its best image. It is stalled if its score rose in less than ρ
        of the steps (condition 1), or if neither its step size nor its best score changed
        since the last checkpoint (condition 2).
        """
        rose_too_rarely = self.rise_count < MIN_RISE_SHARE * period
        kept_step_size = self.checkpoint_step_size == self.step_size
        kept_best_score = self.checkpoint_best_score >= self.best_score
        is_stalled = rose_too_rarely | (kept_step_size & kept_best_score)

        self.checkpoint_step_size = self.step_size
        self.checkpoint_best_score = self.best_score
        self.rise_count = torch.zeros_like(self.rise_count)

        self.step_size = torch.where(is_stalled, self.step_size / 2, self.step_size)
        is_stalled_image = is_stalled.view(-1, 1, 1, 1)
        self.image = torch.where(is_stalled_image, self.best_image, self.image)
        self.gradient = torch.where(is_stalled_image, self.best_gradient, self.gradient)
        self.score = torch.where(is_stalled, self.best_score, self.score)


def start_ascent(image: Tensor, gradient: Tensor, score: Tensor, step_size: float) -> AscentState:
    """The state at the starting images."""
    step_sizes = torch.full_like(score, step_size)
    return AscentState(
        active_rows=torch.arange(len(image), device=image.device),
        image=image,
        previous_image=image,
        gradient=gradient,
        score=score,
        best_image=image,
        best_gradient=gradient,
        best_score=score,
        step_size=step_sizes,
        rise_count=torch.zeros_like(score),
        checkpoint_step_size=step_sizes,
        checkpoint_best_score=score,
    )


@dataclass(frozen=True)
class ApgdSteps:
    """APGD as one run of `steps` steps.

    With `early`, an image leaves the batch once it reaches its goal in 8 bits too.
    """

    steps: int
    early: bool = True

    def __call__(
        self, run: AttackRun, norm_ball: NormBall, generator: torch.Generator, rows: Tensor
    ) -> Tensor:
        """One run for the images at `rows` of the batch.

        Gives the last image that reached the goal; where none did, the one with the best score.
        """
        image = norm_ball.sample_image(generator)
        gradient, score, logits = run.compute_gradient(image, rows)
        state = start_ascent(image, gradient, score, 2 * norm_ball.eps)
        fooling_image = image.clone()
        has_fooled = torch.zeros_like(rows, dtype=torch.bool)
        checkpoints = schedule_checkpoints(self.steps)

        for step_index in range(self.steps + 1):
            batch_rows = rows[state.active_rows]
            is_fooled = run.goal.select_images(batch_rows).is_reached(logits)
            fooled_rows = state.active_rows[is_fooled]
            fooling_image[fooled_rows] = image[is_fooled]
            has_fooled[fooled_rows] = True
            if step_index == self.steps:
                break

            if self.early:
                is_done = run.is_fooled_after_rounding(image, batch_rows, logits)
                if is_done.any():
                    state = state.select_images(~is_done)
                    if not len(state.active_rows):
                        return fooling_image

            previous_image = state.image
            previous_score = state.score
            active_ball = norm_ball.select_images(state.active_rows)
            image = state.propose_image(active_ball, is_first=step_index == 0)
            gradient, score, logits = run.compute_gradient(image, rows[state.active_rows])
            state.accept_image(image, gradient, score)
            if step_index + 1 in checkpoints:
                state.review_step_sizes(checkpoints[step_index + 1])
            if run.report_step(previous_score, previous_image):
                break

        best_image = fooling_image.index_copy(0, state.active_rows, state.best_image)
        return torch.where(has_fooled.view(-1, 1, 1, 1), fooling_image, best_image)


def schedule_checkpoints(steps: int) -> dict[int, int]:
    """The steps at which the step size is reviewed, each with the number of steps since the last.

    The first period is 22 % of the steps. Each later one is shorter by 3 %, down to 6 %.
    """
    # Departure: the paper rounds the checkpoints up. Its authors' program rounds the periods down,
    # as here. With few steps this makes more reviews and fewer images withstand.
    period = max(22 * steps // 100, 1)
    period_decrease = max(3 * steps // 100, 1)
    min_period = max(6 * steps // 100, 1)

    checkpoints: dict[int, int] = {}
    checkpoint = period
    while checkpoint <= steps:
        checkpoints[checkpoint] = period
        period = max(period - period_decrease, min_period)
        checkpoint += period
    return checkpoints
