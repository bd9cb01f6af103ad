"""APGD: projected steps that find their own length (Croce & Hein 2020, algorithm 1)."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from sightline.methods.adversarial.attacks.goal import AttackRun
from sightline.methods.adversarial.attacks.norm_ball import NormBall, reshape_per_image

APGD_MOMENTUM, MIN_RISE_SHARE = 0.75, 0.75  # α and ρ


@dataclass
class AscentState:
    """Where each image's ascent stands, one row per image: the picture, the one before, the best and their scores, the step
    length, how often the score rose since the last checkpoint, and step length and best score at that checkpoint."""

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
        """The images that stay."""
        return AscentState(*(getattr(self, field.name)[keep] for field in fields(self)))

    def propose_image(self, norm_ball: NormBall, is_first: bool) -> Tensor:
        """The next picture: a projected step, then three quarters of it and a quarter of the last move."""
        target = norm_ball.project_image(
            self.image
            + reshape_per_image(self.step_size)
            * norm_ball.find_steepest_step(self.gradient, self.image)
        )
        if is_first:
            return target
        return norm_ball.project_image(
            self.image
            + APGD_MOMENTUM * (target - self.image)
            + (1 - APGD_MOMENTUM) * (self.image - self.previous_image)
        )

    def accept_image(self, image: Tensor, gradient: Tensor, score: Tensor) -> None:
        """Takes the step and keeps the best."""
        self.rise_count = self.rise_count + (score > self.score)
        self.previous_image, self.image, self.gradient, self.score = (
            self.image,
            image,
            gradient,
            score,
        )
        better = score > self.best_score
        self.best_image = torch.where(better.view(-1, 1, 1, 1), image, self.best_image)
        self.best_gradient = torch.where(better.view(-1, 1, 1, 1), gradient, self.best_gradient)
        self.best_score = torch.where(better, score, self.best_score)

    def review_step_sizes(self, period: int) -> None:
        """Halves the steps of images that don't get on, and takes them back to their best picture."""
        stuck = (self.rise_count < MIN_RISE_SHARE * period) | (
            (self.checkpoint_step_size == self.step_size)
            & (self.checkpoint_best_score >= self.best_score)
        )
        self.checkpoint_step_size, self.checkpoint_best_score, self.rise_count = (
            self.step_size,
            self.best_score,
            torch.zeros_like(self.rise_count),
        )
        self.step_size = torch.where(stuck, self.step_size / 2, self.step_size)
        back = stuck.view(-1, 1, 1, 1)
        self.image = torch.where(back, self.best_image, self.image)
        self.gradient = torch.where(back, self.best_gradient, self.gradient)
        self.score = torch.where(stuck, self.best_score, self.score)


@dataclass(frozen=True)
class ApgdSteps:
    """APGD as a run of `steps` steps; with `early` fooled images leave the batch."""

    steps: int
    early: bool = True

    def __call__(
        self, run: AttackRun, norm_ball: NormBall, generator: torch.Generator, rows: Tensor
    ) -> Tensor:
        """One run for the images at `rows` of the batch: where an image fools the network the last such picture, else the best."""
        image = norm_ball.sample_image(generator)
        gradient, score, logits = run.compute_gradient(image, rows)
        found, done = image.clone(), torch.zeros_like(rows, dtype=torch.bool)
        step, zero = torch.full_like(score, 2 * norm_ball.eps), torch.zeros_like(score)
        climb = AscentState(
            torch.arange(len(rows), device=rows.device),
            image,
            image,
            gradient,
            score,
            image,
            gradient,
            score,
            step,
            zero,
            step,
            score,
        )
        marks, latest = schedule_checkpoints(self.steps), image
        for index in range(self.steps + 1):
            fooled = run.goal.select_images(rows[climb.active_rows]).is_reached(logits)
            found[climb.active_rows[fooled]], done[climb.active_rows[fooled]] = latest[fooled], True
            if index == self.steps:
                break
            if (
                self.early
                and (
                    gone := run.is_fooled_after_rounding(latest, rows[climb.active_rows], logits)
                ).any()
            ):
                climb = climb.select_images(~gone)
                if not len(climb.active_rows):
                    return found
            before, told = climb.image, climb.score
            latest = climb.propose_image(norm_ball.select_images(climb.active_rows), index == 0)
            gradient, score, logits = run.compute_gradient(latest, rows[climb.active_rows])
            climb.accept_image(latest, gradient, score)
            if index + 1 in marks:
                climb.review_step_sizes(marks[index + 1])
            if run.report_step(told, before):
                break
        best = found.index_copy(0, climb.active_rows, climb.best_image)
        return torch.where(done.view(-1, 1, 1, 1), found, best)


def schedule_checkpoints(steps: int) -> dict[int, int]:
    """The steps at which the step length is reviewed, with how many passed since the last: after 22 %, then ever shorter periods."""
    # The paper rounds the places up. Its authors' program rounds the periods down: with few steps there are more reviews, and fewer
    # images withstand.
    period, shorter, least = (max(percent * steps // 100, 1) for percent in (22, 3, 6))
    marks, mark = dict[int, int](), period
    while mark <= steps:
        marks[mark] = period
        period = max(period - shorter, least)
        mark += period
    return marks
