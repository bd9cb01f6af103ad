"""The l2 attack of Carlini & Wagner 2017: distance and margin, weighed by binary search."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sightline.errors import guard_backward
from sightline.methods.adversarial.attacks.goal import AttackRun, compute_margin_loss
from sightline.methods.adversarial.attacks.norm_ball import compute_image_norms
from sightline.optim.optimizers import Adam

# Constants of section VI and of the authors' program.
WEIGHT_SEARCHES = 9
FIRST_MARGIN_WEIGHT = 1e-3
LARGEST_MARGIN_WEIGHT = 1e10
MARGIN_WEIGHT_GROWTH = 10


class MarginWeights:
    """The margin's weight c for each image, N, found by binary search.

    `low` is the largest weight that was too small, `high` the smallest that was enough.
    """

    def __init__(self, like: Tensor) -> None:
        self.low = torch.zeros_like(like)
        self.high = torch.full_like(like, LARGEST_MARGIN_WEIGHT)
        self.current = torch.full_like(like, FIRST_MARGIN_WEIGHT)

    def narrow_range(self, enough: Tensor) -> None:
        """Moves to the middle of the range; as long as no weight was enough, multiplies by ten."""
        self.low = torch.where(enough, self.low, self.current)
        self.high = torch.where(enough, self.current, self.high)
        self.current = torch.where(
            self.high < LARGEST_MARGIN_WEIGHT,
            (self.low + self.high) / 2,
            self.current * MARGIN_WEIGHT_GROWTH,
        )


@dataclass(frozen=True)
class WeightedStep:
    """What one step saw: the images before it, their distances, margins and success, N each."""

    image: Tensor
    distance: Tensor
    margin: Tensor
    is_fooled: Tensor


def run_carlini_wagner(run: AttackRun, center: Tensor, steps: int, lr: float) -> Tensor:
    """The nearest images found that reach the goal; `center` itself where none was found.

    `steps` of Adam with learning rate `lr` are taken for each weight.
    """
    # Section V.B: optimize w with image = (tanh w + 1)/2, so that no image needs clipping.
    start = (2 * center - 1).mul(0.999999).atanh()
    best_image = center.clone()
    best_distance = center.new_full((len(center),), torch.inf)
    weights = MarginWeights(best_distance)

    for _ in range(WEIGHT_SEARCHES):
        leaf = start.clone().requires_grad_()
        optimizer = Adam([leaf], lr)
        is_enough = torch.zeros_like(best_distance, dtype=torch.bool)
        for _ in range(steps):
            step = take_weighted_step(run, center, leaf, weights.current, optimizer)
            is_better = step.is_fooled & (step.distance < best_distance)
            best_image = torch.where(is_better.view(-1, 1, 1, 1), step.image, best_image)
            best_distance = torch.where(is_better, step.distance, best_distance)
            is_enough |= step.is_fooled
            if run.report_step(step.margin, step.image):
                return best_image
        weights.narrow_range(is_enough)
    return best_image


def take_weighted_step(
    run: AttackRun, center: Tensor, leaf: Tensor, weight: Tensor, optimizer: Adam
) -> WeightedStep:
    """One step of Adam on ‖image − center‖² + weight · max(−margin, 0)."""
    with torch.enable_grad():
        image = (leaf.tanh() + 1) / 2
        logits = run.compute_logits(image)
        margin = compute_margin_loss(logits, run.goal)
        squared_distance = (image - center).square().flatten(1).sum(1)
        cost = squared_distance + weight * (-margin).clamp_min(0)
        optimizer.zero_grad()
        with guard_backward():
            cost.sum().backward()
    if leaf.grad is not None:
        leaf.grad.nan_to_num_(0, 0, 0)
    run.gradient_counts += 1
    optimizer.step()

    image = image.detach()
    return WeightedStep(
        image,
        compute_image_norms(image - center, "l2"),
        margin.detach(),
        run.goal.is_reached(logits.detach()),
    )
