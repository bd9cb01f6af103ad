"""Projected steps in a ball: FGSM (Goodfellow 2015), I-FGSM (Kurakin 2017), MI-FGSM (Dong 2018), PGD (Madry 2018), and the
lecture's ascent, whose ball is all pictures."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .aim import Run
from .ball import Ball, column

Once = Callable[[Run, Ball, torch.Generator, Tensor], Tensor]


@dataclass(frozen=True)
class Steps:
    """How projected steps go. `momentum` is Dong's μ; `random` starts at a random point of the ball instead of its centre;
    with `early`, an image leaves the batch as soon as it fools the network, after rounding to 8 bits too."""

    steps: int
    step_size: float
    momentum: float = 0.0
    random: bool = True
    early: bool = True

    def __call__(self, run: Run, ball: Ball, generator: torch.Generator, rows: Tensor) -> Tensor:
        """One run for the images at `rows` of the batch, whose balls are given."""
        image = ball.random(generator) if self.random else ball.center.clone()
        found, here, velocity = image.clone(), torch.arange(len(image), device=image.device), torch.zeros_like(image)
        for _ in range(self.steps):
            gradient, losses, logits = run.uphill(image, rows[here])
            if self.early and (gone := run.settled(image, rows[here], logits)).any():
                found[here[gone]] = image[gone]
                here, image, velocity, gradient, losses = (value[~gone] for value in (here, image, velocity, gradient, losses))
                if not len(here):
                    break
            before, near = image, ball if len(here) == len(found) else ball.rows(here)
            if self.momentum:
                velocity = gradient = self.momentum * velocity + gradient / column(gradient.flatten(1).abs().mean(1).clamp_min(1e-20))
            image = near.project(image + self.step_size * near.steepest(gradient, image))
            if run.tell(losses, before):
                break
        found[here] = image
        return found


def restarted(run: Run, ball: Ball, once: Once, restarts: int, generator: torch.Generator) -> Tensor:
    """The best of several runs: what fools the network is not tried again."""
    image = ball.center.clone()
    left = torch.arange(len(image), device=image.device)
    for number in range(restarts):
        image[left] = once(run, ball.rows(left), generator, left)
        if run.stopped or number + 1 == restarts:
            break
        left = left[~run.fools(image[left], left)]
        if not len(left):
            break
    return image
