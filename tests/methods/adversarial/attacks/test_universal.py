"""Changes for many images: their steps re-derived, and where a round patch lies."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import sightline as sl
from sightline.methods.adversarial.attacks import universal
from sightline.methods.adversarial.attacks.goal import AttackGoal, AttackRun
from sightline.methods.adversarial.attacks.norm_ball import NormBall
from sightline.methods.adversarial.attacks.universal import (
    PatchPositions,
    anneal_step_size,
    optimize_adversarial_patch,
    optimize_universal_change,
    paste_round_patch,
    sample_patch_positions,
)


def make_positions(*values: float) -> PatchPositions:
    """One position: diameter, rotation, offsets to the right and down."""
    return PatchPositions(*(torch.tensor([value]) for value in values))


def test_a_universal_change_follows_the_mean_gradient_of_its_batches(
    conv: sl.Model, conv_images: Tensor, conv_goal: AttackGoal
) -> None:
    """Literally, with linf: what is already far from its class pulls no more."""
    eps, steps = 0.3, 12
    run = AttackRun(conv, conv_goal, "cross_entropy", steps)
    ball = NormBall(torch.zeros_like(conv_images[:1]), eps, "linf")
    change = optimize_universal_change(
        run, conv_images, ball, steps, torch.Generator().manual_seed(5)
    )

    generator = torch.Generator().manual_seed(5)
    expected = eps * (2 * torch.rand(1, 3, 11, 14, generator=generator) - 1)
    capped = 0
    for index in range(steps):
        rows = torch.randperm(30, generator=generator)[:16]
        leaf = (conv_images[rows] + expected).clamp(0, 1).requires_grad_()
        losses = F.cross_entropy(conv.logits(leaf), conv_goal.source_labels[rows], reduction="none")
        counted = losses[losses < 9]
        capped += len(losses) - len(counted)
        (gradients,) = torch.autograd.grad(counted.sum(), leaf)
        size = eps / 5 * (1 + math.cos(math.pi * index / steps)) / 2
        expected = (expected + size * gradients.sum(0, keepdim=True).sign()).clamp(-eps, eps)
    assert capped > 0
    assert torch.allclose(change, expected, atol=1e-6)


def test_step_sizes_fall_to_zero() -> None:
    sizes = [anneal_step_size(index, 5) for index in range(6)]
    assert sizes[0] == 1
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[5] == pytest.approx(0)


# ── patches ──


@pytest.mark.parametrize(("right", "down"), [(0.0, 0.0), (5.0, -3.0)])
def test_a_patch_is_a_disc_at_its_position(right: float, down: float) -> None:
    image, patch = torch.zeros(1, 3, 30, 40), torch.ones(1, 3, 9, 9)
    pasted = paste_round_patch(image, patch, make_positions(12.0, 0.3, right, down))[0, 0]
    rows, columns = torch.meshgrid(
        torch.arange(30) + 0.5 - 15 - down, torch.arange(40) + 0.5 - 20 - right, indexing="ij"
    )
    assert torch.equal(pasted > 0.5, rows.square() + columns.square() <= 36)


def test_a_rotated_patch_is_its_picture_turned() -> None:
    patch = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    image = torch.zeros(1, 3, 8, 8)
    straight = paste_round_patch(image, patch, make_positions(8.0, 0.0, 0.0, 0.0))
    turned = paste_round_patch(image, patch, make_positions(8.0, math.pi / 2, 0.0, 0.0))
    assert torch.allclose(straight, patch * (straight > 0), atol=1e-5)
    clockwise = straight.rot90(-1, (2, 3))
    assert torch.allclose(turned, clockwise, atol=1e-4)


def test_random_positions_are_inside() -> None:
    image = torch.zeros(200, 3, 20, 32)
    positions = sample_patch_positions(image, 0.5, torch.Generator().manual_seed(0))
    radius = positions.diameter / 2
    assert (positions.offset_right.abs() + radius <= 16 + 1e-4).all()
    assert (positions.offset_down.abs() + radius <= 10 + 1e-4).all()
    assert positions.offset_right.abs().max() > 8, "the whole width is used"
    assert positions.diameter.min() >= 0.4 * 20 - 1e-4
    assert positions.diameter.max() <= 0.6 * 20 + 1e-4
    assert positions.diameter.max() - positions.diameter.min() > 0.15 * 20
    assert math.radians(20) < positions.rotation.abs().max() <= math.radians(22.5)


def test_a_patch_follows_the_gradient_through_its_positions(
    conv: sl.Model, conv_images: Tensor, conv_targets: AttackGoal
) -> None:
    """The gradient of the summed loss with respect to the patch, by autograd alone."""
    goal = AttackGoal(conv_targets.source_labels, torch.full((30,), 2))
    run = AttackRun(conv, goal, "cross_entropy", 3)
    patch = optimize_adversarial_patch(run, conv_images, 0.6, 3, torch.Generator().manual_seed(7))
    assert patch.shape == (1, 3, 7, 7)

    generator = torch.Generator().manual_seed(7)
    expected = torch.full((1, 3, 7, 7), 0.5)
    for index in range(3):
        rows = torch.randint(30, (16,), generator=generator)
        positions = sample_patch_positions(conv_images[rows], 0.6, generator)
        leaf = expected.clone().requires_grad_()
        logits = conv.logits(paste_round_patch(conv_images[rows], leaf, positions))
        loss = F.cross_entropy(logits, torch.full((16,), 2), reduction="sum")
        (gradient,) = torch.autograd.grad(loss, leaf)
        size = universal.PATCH_STEP_SIZE * anneal_step_size(index, 3)
        expected = (expected - size * gradient.sign()).clamp(0, 1)
    assert torch.allclose(patch, expected, atol=1e-6)
