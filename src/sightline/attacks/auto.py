"""APGD: projected steps that find their own length (Croce & Hein 2020, algorithm 1)."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .aim import Run
from .ball import Ball, column

MOMENTUM, RISING = 0.75, 0.75  # α and ρ


@dataclass
class Climb:
    """Where each image's ascent stands, one row per image: the picture, the one before, the best and their scores, the step
    length, how often the score rose since the last checkpoint, and step length and best score at that checkpoint."""

    here: Tensor
    image: Tensor
    previous: Tensor
    gradient: Tensor
    score: Tensor
    best: Tensor
    best_gradient: Tensor
    best_score: Tensor
    step: Tensor
    rises: Tensor
    step_then: Tensor
    best_then: Tensor

    def rows(self, stay: Tensor) -> "Climb":
        """The images that stay."""
        return Climb(*(getattr(self, field.name)[stay] for field in fields(self)))

    def move(self, ball: Ball, first: bool) -> Tensor:
        """The next picture: a projected step, then three quarters of it and a quarter of the last move."""
        target = ball.project(self.image + column(self.step) * ball.steepest(self.gradient, self.image))
        if first:
            return target
        return ball.project(self.image + MOMENTUM * (target - self.image) + (1 - MOMENTUM) * (self.image - self.previous))

    def arrive(self, image: Tensor, gradient: Tensor, score: Tensor) -> None:
        """Takes the step and keeps the best."""
        self.rises = self.rises + (score > self.score)
        self.previous, self.image, self.gradient, self.score = self.image, image, gradient, score
        better = score > self.best_score
        self.best = torch.where(better.view(-1, 1, 1, 1), image, self.best)
        self.best_gradient = torch.where(better.view(-1, 1, 1, 1), gradient, self.best_gradient)
        self.best_score = torch.where(better, score, self.best_score)

    def review(self, period: int) -> None:
        """Halves the steps of images that don't get on, and takes them back to their best picture."""
        stuck = (self.rises < RISING * period) | ((self.step_then == self.step) & (self.best_then >= self.best_score))
        self.step_then, self.best_then, self.rises = self.step, self.best_score, torch.zeros_like(self.rises)
        self.step = torch.where(stuck, self.step / 2, self.step)
        back = stuck.view(-1, 1, 1, 1)
        self.image = torch.where(back, self.best, self.image)
        self.gradient = torch.where(back, self.best_gradient, self.gradient)
        self.score = torch.where(stuck, self.best_score, self.score)


@dataclass(frozen=True)
class Auto:
    """APGD as a run of `steps` steps; with `early` fooled images leave the batch."""

    steps: int
    early: bool = True

    def __call__(self, run: Run, ball: Ball, generator: torch.Generator, rows: Tensor) -> Tensor:
        """One run for the images at `rows` of the batch: where an image fools the network the last such picture, else the best."""
        image = ball.random(generator)
        gradient, score, logits = run.uphill(image, rows)
        found, done = image.clone(), torch.zeros_like(rows, dtype=torch.bool)
        step, zero = torch.full_like(score, 2 * ball.eps), torch.zeros_like(score)
        climb = Climb(
            torch.arange(len(rows), device=rows.device), image, image, gradient, score, image, gradient, score, step, zero, step, score
        )
        marks, latest = checkpoints(self.steps), image
        for index in range(self.steps + 1):
            fooled = run.aim.rows(rows[climb.here]).reached(logits)
            found[climb.here[fooled]], done[climb.here[fooled]] = latest[fooled], True
            if index == self.steps:
                break
            if self.early and (gone := run.settled(latest, rows[climb.here], logits)).any():
                climb = climb.rows(~gone)
                if not len(climb.here):
                    return found
            before, told = climb.image, climb.score
            latest = climb.move(ball.rows(climb.here), index == 0)
            gradient, score, logits = run.uphill(latest, rows[climb.here])
            climb.arrive(latest, gradient, score)
            if index + 1 in marks:
                climb.review(marks[index + 1])
            if run.tell(told, before):
                break
        best = found.index_copy(0, climb.here, climb.best)
        return torch.where(done.view(-1, 1, 1, 1), found, best)


def checkpoints(steps: int) -> dict[int, int]:
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
