"""One change for many images: a universal perturbation (Moosavi-Dezfooli 2017), and a patch that works wherever it is pasted (Brown 2017)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.methods.adversarial.attacks.goal import AttackRun
from sightline.methods.adversarial.attacks.norm_ball import (
    NormBall,
    project_offset,
    sample_unit_offset,
)

SHARED_CHANGE_BATCH = 16

MAX_PULLING_LOSS = 9.0  # a cross-entropy above this pulls no more, so that no single image leads (Shafahi 2020, section 4)

MAX_PATCH_ROTATION = math.radians(22.5)


def optimize_universal_change(
    run: AttackRun, image: Tensor, norm_ball: NormBall, steps: int, generator: torch.Generator
) -> Tensor:
    """The change 1×3×H×W in the ball around zero that fools most of N images: steps along the mean gradient of random batches."""
    change = sample_unit_offset(image[:1], norm_ball.norm, generator) * norm_ball.eps
    for index in range(steps):
        rows = torch.randperm(len(image), generator=generator)[:SHARED_CHANGE_BATCH].to(
            image.device
        )
        seen = (image[rows] + change).clamp(0, 1)
        gradient, losses, _ = run.compute_gradient(seen, rows)
        pull = (gradient * (losses < MAX_PULLING_LOSS).view(-1, 1, 1, 1)).mean(0, keepdim=True)
        step = norm_ball.eps / 5 * anneal_step_size(index, steps)
        change = project_offset(
            change + step * norm_ball.find_steepest_step(pull, torch.full_like(pull, 0.5)),
            norm_ball.eps,
            norm_ball.norm,
        )
        if run.report_step(losses, seen):
            break
    return change


def anneal_step_size(index: int, steps: int) -> float:
    """From 1 in the first step towards 0 after the last."""
    return (1 + math.cos(math.pi * index / steps)) / 2


# ── patches ──


@dataclass(frozen=True)
class PatchPositions:
    """Where a round patch lies on each of N images: its diameter in pixels, its turn, and its centre from the image's, N each."""

    diameter: Tensor
    rotation: Tensor
    offset_right: Tensor
    offset_down: Tensor


def sample_patch_positions(
    image: Tensor, share: float, generator: torch.Generator
) -> PatchPositions:
    """Random ones: diameters within a fifth of `share` of the short side, turned by up to 22.5° either way, wholly inside."""
    height, width = image.shape[-2:]
    draw = torch.rand(4, len(image), generator=generator).to(image.device) * 2 - 1
    diameter = (share * (1 + 0.2 * draw[0])).clamp(max=1) * min(height, width)
    return PatchPositions(
        diameter,
        MAX_PATCH_ROTATION * draw[1],
        draw[2] * (width - diameter) / 2,
        draw[3] * (height - diameter) / 2,
    )


def paste_round_patch(image: Tensor, patch: Tensor, positions: PatchPositions) -> Tensor:
    """The images with the patch 1×3×s×s on each of them; what lies outside its circle stays."""
    height, width = image.shape[-2:]
    cos, sin = (
        positions.rotation.cos() * 2 / positions.diameter,
        positions.rotation.sin() * 2 / positions.diameter,
    )
    rows = [
        torch.stack(
            [
                cos * width / 2,
                sin * height / 2,
                -(cos * positions.offset_right + sin * positions.offset_down),
            ],
            1,
        ),
        torch.stack(
            [
                -sin * width / 2,
                cos * height / 2,
                sin * positions.offset_right - cos * positions.offset_down,
            ],
            1,
        ),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), list(image.shape), align_corners=False)
    seen = F.grid_sample(
        patch.expand(len(image), -1, -1, -1),
        grid,
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )
    return torch.where((grid.square().sum(-1) <= 1)[:, None], seen, image)


def optimize_adversarial_patch(
    run: AttackRun, image: Tensor, share: float, steps: int, generator: torch.Generator
) -> Tensor:
    """The patch 1×3×s×s that makes the network answer the wanted class wherever it lies on N images: sign steps on the mean over
    random images and places."""
    side = max(4, round(share * min(image.shape[-2:])))
    patch = torch.full((1, 3, side, side), 0.5, device=image.device)
    for index in range(steps):
        rows = torch.randint(len(image), (SHARED_CHANGE_BATCH,), generator=generator).to(
            image.device
        )
        shown, at = image[rows], sample_patch_positions(image[rows], share, generator)
        with torch.enable_grad():
            leaf = patch.clone().requires_grad_()
            seen = paste_round_patch(shown, leaf, at)
            gradient, losses, _ = run.compute_gradient(seen, rows)
            (pull,) = torch.autograd.grad(seen, leaf, gradient)
        patch = (patch + 0.06 * anneal_step_size(index, steps) * pull.sign()).clamp(0, 1)
        if run.report_step(losses, seen):
            break
    return patch
