"""Projected steps in a ball: FGSM (Goodfellow 2015), I-FGSM (Kurakin 2017), MI-FGSM (Dong 2018), PGD (Madry 2018), and the
lecture's ascent, whose ball is all pictures."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sightline.methods.adversarial.attacks.goal import AttackRun
from sightline.methods.adversarial.attacks.norm_ball import NormBall, reshape_per_image

SingleAttackRun = Callable[[AttackRun, NormBall, torch.Generator, Tensor], Tensor]


@dataclass(frozen=True)
class ProjectedSteps:
    """How projected steps go. `momentum` is Dong's μ; `random` starts at a random point of the ball instead of its centre;
    with `early`, an image leaves the batch as soon as it fools the network, after rounding to 8 bits too."""

    steps: int
    step_size: float
    momentum: float = 0.0
    random_start: bool = True
    early: bool = True

    def __call__(
        self, run: AttackRun, norm_ball: NormBall, generator: torch.Generator, rows: Tensor
    ) -> Tensor:
        """One run for the images at `rows` of the batch, whose balls are given."""
        image = norm_ball.sample_image(generator) if self.random_start else norm_ball.center.clone()
        found, here, velocity = (
            image.clone(),
            torch.arange(len(image), device=image.device),
            torch.zeros_like(image),
        )
        for _ in range(self.steps):
            gradient, losses, logits = run.compute_gradient(image, rows[here])
            if (
                self.early
                and (gone := run.is_fooled_after_rounding(image, rows[here], logits)).any()
            ):
                found[here[gone]] = image[gone]
                here, image, velocity, gradient, losses = (
                    value[~gone] for value in (here, image, velocity, gradient, losses)
                )
                if not len(here):
                    break
            before, near = (
                image,
                norm_ball if len(here) == len(found) else norm_ball.select_images(here),
            )
            if self.momentum:
                velocity = gradient = self.momentum * velocity + gradient / reshape_per_image(
                    gradient.flatten(1).abs().mean(1).clamp_min(1e-20)
                )
            image = near.project_image(
                image + self.step_size * near.find_steepest_step(gradient, image)
            )
            if run.report_step(losses, before):
                break
        found[here] = image
        return found


def run_with_restarts(
    run: AttackRun,
    norm_ball: NormBall,
    run_once: SingleAttackRun,
    restarts: int,
    generator: torch.Generator,
) -> Tensor:
    """The best of several runs: what fools the network is not tried again."""
    image = norm_ball.center.clone()
    left = torch.arange(len(image), device=image.device)
    for number in range(restarts):
        image[left] = run_once(run, norm_ball.select_images(left), generator, left)
        if run.is_stopped or number + 1 == restarts:
            break
        left = left[~run.is_fooled(image[left], left)]
        if not len(left):
            break
    return image
