"""The attack of Carlini & Wagner 2017 in its L2 form: distance and margin weighed against each other, the weight by binary search."""

import torch
from torch import Tensor

from sightline.methods.adversarial.attacks.goal import AttackRun, compute_margin_loss
from sightline.methods.adversarial.attacks.norm_ball import compute_image_norms
from sightline.optim.optimizers import Adam

WEIGHT_SEARCHES, FIRST_MARGIN_WEIGHT, LARGEST_MARGIN_WEIGHT = (
    9,
    1e-3,
    1e10,
)  # section VI and the published code


class MarginWeights:
    """The weight of the margin for each image: halfway between one that was too small and one that was enough."""

    def __init__(self, like: Tensor) -> None:
        self.low, self.high = torch.zeros_like(like), torch.full_like(like, LARGEST_MARGIN_WEIGHT)
        self.current = torch.full_like(like, FIRST_MARGIN_WEIGHT)

    def narrow_range(self, enough: Tensor) -> None:
        """Halves the range; as long as nothing was enough, tenfold."""
        self.low, self.high = (
            torch.where(enough, self.low, self.current),
            torch.where(enough, self.current, self.high),
        )
        self.current = torch.where(
            self.high < LARGEST_MARGIN_WEIGHT, (self.low + self.high) / 2, self.current * 10
        )


def run_carlini_wagner(run: AttackRun, center: Tensor, steps: int, lr: float) -> Tensor:
    """The nearest image found that fools; the image itself where none was."""
    start = (
        (2 * center - 1).mul(0.999999).atanh()
    )  # every value of a tanh is a picture: no clipping (section V.B)
    best, least = center.clone(), torch.full((len(center),), torch.inf, device=center.device)
    weights = MarginWeights(least)
    for _ in range(WEIGHT_SEARCHES):
        leaf = start.clone().requires_grad_()
        optimizer = Adam([leaf], lr)
        enough = torch.zeros_like(least, dtype=torch.bool)
        for _ in range(steps):
            image, size, margins, fooled = take_weighted_step(
                run, center, leaf, weights.current, optimizer
            )
            better = fooled & (size < least)
            best, least = (
                torch.where(better.view(-1, 1, 1, 1), image, best),
                torch.where(better, size, least),
            )
            enough |= fooled
            if run.report_step(margins, image):
                return best
        weights.narrow_range(enough)
    return best


def take_weighted_step(
    run: AttackRun, center: Tensor, leaf: Tensor, weight: Tensor, optimizer: Adam
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One step of Adam on ‖change‖² + weight · max(−margin, 0); gives the image before it, its distance, margin, and whether it fools."""
    with torch.enable_grad():
        image = (leaf.tanh() + 1) / 2
        logits = run.compute_logits(image)
        margins = compute_margin_loss(logits, run.goal)
        cost = (image - center).square().flatten(1).sum(1) + weight * (-margins).clamp_min(0)
        optimizer.zero_grad()
        cost.sum().backward()
    if leaf.grad is not None:
        leaf.grad.nan_to_num_(0, 0, 0)
    run.gradient_counts += 1
    optimizer.step()
    image = image.detach()
    return (
        image,
        compute_image_norms(image - center, "l2"),
        margins.detach(),
        run.goal.is_reached(logits.detach()),
    )
