"""Projected gradient steps: FGSM (Goodfellow 2015), I-FGSM (Kurakin 2017), MI-FGSM (Dong 2018),
PGD (Madry 2018), and the lecture's ascent, which is bounded by [0, 1] only."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sightline.methods.adversarial.attacks.goal import AttackRun
from sightline.methods.adversarial.attacks.norm_ball import NormBall, reshape_per_image

# One run from one starting point, for the images at `rows` of the batch: N×3×H×W.
SingleAttackRun = Callable[[AttackRun, NormBall, torch.Generator, Tensor], Tensor]


@dataclass(frozen=True)
class ProjectedSteps:
    """`steps` projected gradient steps of norm `step_size`.

    `momentum` is μ of MI-FGSM. `random_start` begins at a random point of the ball instead of its
    center. With `early`, an image leaves the batch once it reaches its goal in 8 bits too.
    """

    steps: int
    step_size: float
    momentum: float = 0.0
    random_start: bool = True
    early: bool = True

    def __call__(
        self, run: AttackRun, norm_ball: NormBall, generator: torch.Generator, rows: Tensor
    ) -> Tensor:
        """One run for the images at `rows` of the batch, each in its ball."""
        image = norm_ball.sample_image(generator) if self.random_start else norm_ball.center.clone()
        result = image.clone()
        active = torch.arange(len(image), device=image.device)
        active_ball = norm_ball
        velocity = torch.zeros_like(image)

        for _ in range(self.steps):
            gradient, losses, logits = run.compute_gradient(image, rows[active])

            if self.early:
                is_done = run.is_fooled_after_rounding(image, rows[active], logits)
                if is_done.any():
                    result[active[is_done]] = image[is_done]
                    active = active[~is_done]
                    image = image[~is_done]
                    velocity = velocity[~is_done]
                    gradient = gradient[~is_done]
                    losses = losses[~is_done]
                    if not len(active):
                        break
                    active_ball = norm_ball.select_images(active)

            if self.momentum:
                mean_magnitude = gradient.flatten(1).abs().mean(1).clamp_min(1e-20)
                normalized = gradient / reshape_per_image(mean_magnitude)
                velocity = self.momentum * velocity + normalized
                gradient = velocity
            previous_image = image
            step = self.step_size * active_ball.find_steepest_step(gradient, image)
            image = active_ball.project_image(image + step)
            if run.report_step(losses, previous_image):
                break

        result[active] = image
        return result


def run_with_restarts(
    run: AttackRun,
    norm_ball: NormBall,
    run_once: SingleAttackRun,
    restarts: int,
    generator: torch.Generator,
) -> Tensor:
    """Repeats a run up to `restarts` times; images that reached their goal are not tried again."""
    image = norm_ball.center.clone()
    remaining = torch.arange(len(image), device=image.device)
    for run_index in range(restarts):
        remaining_balls = norm_ball.select_images(remaining)
        image[remaining] = run_once(run, remaining_balls, generator, remaining)
        if run.is_stopped or run_index + 1 == restarts:
            break
        remaining = remaining[~run.is_fooled(image[remaining], remaining)]
        if not len(remaining):
            break
    return image
