"""One change for many images: a universal perturbation (Moosavi-Dezfooli 2017), and a patch that
works wherever it is pasted (Brown 2017)."""

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

UNIVERSAL_BATCH_SIZE = 16

# Images whose cross-entropy is above this get no weight in the mean gradient, so that no single
# image dominates it (Shafahi 2020, section 4).
MAX_COUNTED_LOSS = 9.0

MAX_PATCH_ROTATION = math.radians(22.5)
PATCH_STEP_SIZE = 0.06


def optimize_universal_change(
    run: AttackRun, image: Tensor, norm_ball: NormBall, steps: int, generator: torch.Generator
) -> Tensor:
    """The change 1×C×H×W within the ball's radius that makes most of N images reach their goal.

    Each step follows the mean gradient of a random batch; step sizes fall from a fifth of the
    radius to zero.
    """
    # Departure: Moosavi-Dezfooli 2017 adds up one DeepFool change per image, until 80 % are fooled.
    eps = norm_ball.eps
    norm = norm_ball.norm
    change = sample_unit_offset(image[:1], norm, generator) * eps
    for step_index in range(steps):
        order = torch.randperm(len(image), generator=generator)
        rows = order[:UNIVERSAL_BATCH_SIZE].to(image.device)
        changed_image = (image[rows] + change).clamp(0, 1)
        gradients, losses, _ = run.compute_gradient(changed_image, rows)
        is_counted = (losses < MAX_COUNTED_LOSS).view(-1, 1, 1, 1)
        gradient = (gradients * is_counted).mean(0, keepdim=True)

        # The change is added to many images, so no pixel is at its limit: hence the gray image.
        gray = torch.full_like(gradient, 0.5)
        step_size = eps / 5 * anneal_step_size(step_index, steps)
        step = step_size * norm_ball.find_steepest_step(gradient, gray)
        change = project_offset(change + step, eps, norm)
        if run.report_step(losses, changed_image):
            break
    return change


def anneal_step_size(index: int, steps: int) -> float:
    """Cosine annealing from 1 in the first step towards 0 after the last."""
    wave = math.cos(math.pi * index / steps)
    return (1 + wave) / 2


# ── patches ──


@dataclass(frozen=True)
class PatchPositions:
    """How a round patch lies on each of N images; all fields are N.

    Its diameter in pixels, its rotation in radians, and how far its center lies to the right of
    and below the center of the image, in pixels.
    """

    diameter: Tensor
    rotation: Tensor
    offset_right: Tensor
    offset_down: Tensor


def sample_patch_positions(
    image: Tensor, share: float, generator: torch.Generator
) -> PatchPositions:
    """Random positions, each wholly inside its image.

    Diameters lie within a fifth of `share` of the image's short side, rotations within 22.5°
    either way. Departure: Brown 2017 draws positions over the whole image.
    """
    height, width = image.shape[-2:]
    uniform = torch.rand(4, len(image), generator=generator, dtype=torch.float32)
    uniform = uniform.to(image.device) * 2 - 1
    diameter = (share * (1 + 0.2 * uniform[0])).clamp(max=1) * min(height, width)
    return PatchPositions(
        diameter=diameter,
        rotation=MAX_PATCH_ROTATION * uniform[1],
        offset_right=uniform[2] * (width - diameter) / 2,
        offset_down=uniform[3] * (height - diameter) / 2,
    )


def paste_round_patch(image: Tensor, patch: Tensor, positions: PatchPositions) -> Tensor:
    """Pastes the patch 1×3×s×s on each of N images; the image shows outside the patch's circle."""
    height, width = image.shape[-2:]
    right = positions.offset_right
    down = positions.offset_down
    # From image coordinates in [−1, 1] to patch coordinates, whose circle has radius 1.
    cos = positions.rotation.cos() * 2 / positions.diameter
    sin = positions.rotation.sin() * 2 / positions.diameter
    to_patch_x = torch.stack([cos * width / 2, sin * height / 2, -(cos * right + sin * down)], 1)
    to_patch_y = torch.stack([-sin * width / 2, cos * height / 2, sin * right - cos * down], 1)
    transform = torch.stack([to_patch_x, to_patch_y], 1)

    grid = F.affine_grid(transform, list(image.shape), align_corners=False)
    moved_patch = F.grid_sample(
        patch.expand(len(image), -1, -1, -1),
        grid,
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )
    is_inside = (grid.square().sum(-1) <= 1)[:, None]
    return torch.where(is_inside, moved_patch, image)


def optimize_adversarial_patch(
    run: AttackRun, image: Tensor, share: float, steps: int, generator: torch.Generator
) -> Tensor:
    """The patch 1×C×s×s that makes images reach the goal wherever it lies on them.

    Each step follows the sign of the gradient over a batch of random images and positions.
    """
    side = max(4, round(share * min(image.shape[-2:])))
    patch = image.new_full((1, image.shape[1], side, side), 0.5)
    for step_index in range(steps):
        rows = torch.randint(len(image), (UNIVERSAL_BATCH_SIZE,), generator=generator)
        rows = rows.to(image.device)
        batch = image[rows]
        positions = sample_patch_positions(batch, share, generator)
        with torch.enable_grad():
            leaf = patch.clone().requires_grad_()
            patched_image = paste_round_patch(batch, leaf, positions)
            image_gradient, losses, _ = run.compute_gradient(patched_image, rows)
            # A gradient that `grad` is given makes it import torch's compiler.
            (gradient,) = torch.autograd.grad((patched_image * image_gradient).sum(), leaf)
        step = PATCH_STEP_SIZE * anneal_step_size(step_index, steps) * gradient.sign()
        patch = (patch + step).clamp(0, 1)
        if run.report_step(losses, patched_image):
            break
    return patch
