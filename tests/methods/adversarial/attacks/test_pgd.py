"""Projected steps against their published formulas, and restarts."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import sightline as sl
from sightline.methods.adversarial.attacks.goal import AttackGoal, AttackRun
from sightline.methods.adversarial.attacks.norm_ball import NormBall
from sightline.methods.adversarial.attacks.pgd import ProjectedSteps, run_with_restarts
from sightline.methods.adversarial.attacks.registry import Attack


def differentiate_cross_entropy(model: sl.Model, image: Tensor, goal: AttackGoal) -> Tensor:
    """The gradient that leads away from the class, or towards the target."""
    leaf = image.clone().requires_grad_()
    if goal.target_labels is None:
        loss = F.cross_entropy(model.logits(leaf), goal.source_labels, reduction="sum")
    else:
        loss = -F.cross_entropy(model.logits(leaf), goal.target_labels, reduction="sum")
    return torch.autograd.grad(loss, leaf)[0]


@pytest.mark.parametrize("targeted", [False, True])
def test_mifgsm_is_dongs_formula(
    conv: sl.Model,
    conv_images: Tensor,
    conv_goal: AttackGoal,
    conv_targets: AttackGoal,
    targeted: bool,
) -> None:
    rows = torch.arange(3)
    image = conv_images[rows]
    goal = (conv_targets if targeted else conv_goal).select_images(rows)
    x = image.clone()
    velocity = torch.zeros_like(image)
    for _ in range(5):
        gradient = differentiate_cross_entropy(conv, x, goal)
        velocity = 1.0 * velocity + gradient / gradient.abs().sum((1, 2, 3), keepdim=True)
        x = x + 0.02 / 5 * velocity.sign()
        x = torch.minimum(torch.maximum(x, image - 0.02), image + 0.02).clamp(0, 1)
    changed, _ = Attack("mifgsm", "linf", 0.02, steps=5, early=False)(conv, image, goal)
    assert torch.allclose(changed, x, atol=1e-6)


def test_pgd_is_madrys_formula(conv: sl.Model, conv_images: Tensor, conv_goal: AttackGoal) -> None:
    """From a uniform random point of the ball, along the sign of the gradient, and back into it."""
    rows = torch.arange(4)
    image = conv_images[rows]
    goal = conv_goal.select_images(rows)
    uniform = torch.rand(image.shape, generator=torch.Generator().manual_seed(3))
    x = (image + 0.01 * (2 * uniform - 1)).clamp(0, 1)
    for _ in range(6):
        x = x + 2.5 * 0.01 / 6 * differentiate_cross_entropy(conv, x, goal).sign()
        x = torch.minimum(torch.maximum(x, image - 0.01), image + 0.01).clamp(0, 1)
    changed, _ = Attack("pgd", "linf", 0.01, steps=6, early=False, seed=3)(conv, image, goal)
    assert torch.allclose(changed, x, atol=1e-6)


def test_fooled_images_leave_the_batch(
    conv: sl.Model, conv_images: Tensor, conv_goal: AttackGoal
) -> None:
    early, run = Attack("pgd", eps=0.05, steps=20)(conv, conv_images, conv_goal)
    late, late_run = Attack("pgd", eps=0.05, steps=20, early=False)(conv, conv_images, conv_goal)
    assert late_run.gradient_counts.tolist() == [20] * 30
    assert run.gradient_counts.float().mean() < 12
    success = conv_goal.is_reached(conv.logits(early)).float().mean()
    late_success = conv_goal.is_reached(conv.logits(late)).float().mean()
    assert success >= late_success - 0.04
    has_left = run.gradient_counts < 20
    rounded = (early * 255).round() / 255
    assert conv_goal.is_reached(conv.logits(rounded))[has_left].all(), (
        "they leave once a PNG of them fools too"
    )


@pytest.mark.parametrize("name", ["ifgsm", "mifgsm"])
def test_alone_or_in_a_batch_an_image_takes_the_same_steps(
    conv: sl.Model, conv_images: Tensor, conv_goal: AttackGoal, name: str
) -> None:
    attack = Attack(name, eps=0.05, steps=20)  # type: ignore[arg-type]
    together, run = attack(conv, conv_images, conv_goal)
    assert len(run.gradient_counts.unique()) > 2, "images leave at different steps"
    for row in range(6):
        rows = torch.tensor([row])
        alone, alone_run = attack(conv, conv_images[rows], conv_goal.select_images(rows))
        assert torch.allclose(alone[0], together[row], atol=1e-5)
        assert alone_run.gradient_counts[0] == run.gradient_counts[row]


def test_the_best_image_of_a_stopped_run_is_kept(
    conv: sl.Model, conv_images: Tensor, conv_goal: AttackGoal
) -> None:
    attack = Attack("ifgsm", eps=0.02, steps=8, step_size=0.004, early=False)
    short = Attack("ifgsm", eps=0.02, steps=3, step_size=0.004, early=False)
    stopped, run = attack(conv, conv_images, conv_goal, lambda step: step.index == 3)
    expected, _ = short(conv, conv_images, conv_goal)
    assert run.is_stopped
    assert torch.equal(stopped, expected)


# ── restarts ──


def test_restarts_only_help_and_spare_the_fooled(
    conv: sl.Model, conv_images: Tensor, conv_goal: AttackGoal
) -> None:
    shares: list[float] = []
    counts: list[Tensor] = []
    for restarts in (1, 4):
        attack = Attack("pgd", eps=0.006, steps=4, restarts=restarts)
        changed, run = attack(conv, conv_images, conv_goal)
        shares.append(float(conv_goal.is_reached(conv.logits(changed)).float().mean()))
        counts.append(run.gradient_counts)
    assert 0 < shares[0] <= shares[1] < 1
    assert (counts[1] > 4).any()
    assert (counts[1] <= 4).any()


def test_each_restart_gets_the_images_that_are_left(
    conv: sl.Model, conv_images: Tensor, conv_goal: AttackGoal
) -> None:
    """A run that returns prepared images: in each one more third of the batch is fooled."""
    fooled, _ = Attack("pgd", eps=0.2, steps=20, early=False)(conv, conv_images, conv_goal)
    assert conv_goal.is_reached(conv.logits(fooled)).all()
    thirds = torch.arange(30) % 3
    calls: list[Tensor] = []

    def run_once(
        run: AttackRun, norm_ball: NormBall, generator: torch.Generator, rows: Tensor
    ) -> Tensor:
        assert torch.equal(norm_ball.center, conv_images[rows])
        is_fooled = (thirds[rows] == len(calls)).view(-1, 1, 1, 1)
        calls.append(rows)
        return torch.where(is_fooled, fooled[rows], conv_images[rows])

    run = AttackRun(conv, conv_goal, "margin", 1)
    ball = NormBall(conv_images, 0.2, "linf")
    result = run_with_restarts(run, ball, run_once, 5, torch.Generator())
    assert [len(rows) for rows in calls] == [30, 20, 10]
    assert torch.equal(result, fooled)


def test_momentum_and_random_start_are_off_where_they_should_be(
    conv: sl.Model, conv_images: Tensor, conv_goal: AttackGoal
) -> None:
    """Without both, a single step from the center is FGSM's."""
    steps = ProjectedSteps(1, 0.02, random_start=False, early=False)
    run = AttackRun(conv, conv_goal, "cross_entropy", 1)
    ball = NormBall(conv_images, 0.02, "linf")
    changed = steps(run, ball, torch.Generator(), torch.arange(30))
    gradient = differentiate_cross_entropy(conv, conv_images, conv_goal)
    assert torch.allclose(changed, conv_images + 0.02 * gradient.sign(), atol=1e-6)


@pytest.mark.parametrize("peer", ["foolbox:LinfPGD", "torchattacks:PGDL2"])
def test_pgd_fools_no_less_than_that_of_other_libraries(
    conv: sl.Model, conv_images: Tensor, conv_goal: AttackGoal, peer: str
) -> None:
    """One image more is luck of the start."""
    norm, eps = ("l2", 0.08) if "L2" in peer else ("linf", 0.006)
    counts: list[int] = []
    for name in (None, peer):
        attack = Attack("pgd", norm, eps, steps=20, peer=name)  # type: ignore[arg-type]
        changed, _ = attack(conv, conv_images, conv_goal)
        counts.append(int(conv_goal.is_reached(conv.logits(changed)).sum()))
    assert counts[0] >= counts[1] - 1
    assert 0 < counts[0] < 30
