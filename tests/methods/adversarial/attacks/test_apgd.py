"""APGD against algorithm 1 of Croce & Hein 2020, image by image, and its checkpoints."""

import itertools
import math
from collections.abc import Generator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import sightline as sl
from sightline.methods.adversarial.attacks.apgd import (
    ApgdSteps,
    AscentState,
    schedule_checkpoints,
    start_ascent,
)
from sightline.methods.adversarial.attacks.goal import AttackGoal, AttackRun
from sightline.methods.adversarial.attacks.norm_ball import Norm, NormBall
from sightline.methods.adversarial.attacks.registry import Attack

Evaluation = tuple[float, Tensor, bool]  # score, gradient, whether it fools


def literal_apgd(
    clean: Tensor, start: Tensor, eps: float, steps: int
) -> Generator[Tensor, Evaluation, tuple[Tensor, int]]:
    """Algorithm 1 for one image, in linf. It yields the points that it needs evaluated.

    Gives the last image that fooled, else the best one; and how often the step size was halved.
    """

    def project(point: Tensor) -> Tensor:
        point = torch.minimum(torch.maximum(point, clean - eps), clean + eps)
        return point.clamp(0, 1)

    checkpoints = [0, *schedule_checkpoints(steps)]
    eta = eta_at_checkpoint = 2 * eps
    x = previous = best = start
    score, gradient, fools = yield x
    best_score = best_at_checkpoint = score
    best_gradient = gradient
    fooling = x if fools else None
    rises: list[bool] = []
    halvings = 0
    for k in range(steps):
        z = project(x + eta * gradient.sign())
        proposal = z if k == 0 else project(x + 0.75 * (z - x) + 0.25 * (x - previous))
        previous, previous_score = x, score
        x = proposal
        score, gradient, fools = yield x
        rises.append(score > previous_score)
        if fools:
            fooling = x
        if score > best_score:
            best, best_score, best_gradient = x, score, gradient
        if k + 1 in checkpoints:
            last = checkpoints[checkpoints.index(k + 1) - 1]
            condition_1 = sum(rises[last:]) < 0.75 * (k + 1 - last)
            condition_2 = eta == eta_at_checkpoint and best_score == best_at_checkpoint
            eta_at_checkpoint, best_at_checkpoint = eta, best_score
            if condition_1 or condition_2:
                eta /= 2
                halvings += 1
                x, score, gradient = best, best_score, best_gradient
    return (best if fooling is None else fooling), halvings


def test_apgd_is_the_papers_algorithm(
    conv: sl.Model, conv_images: Tensor, conv_goal: AttackGoal
) -> None:
    """The network sees the points of all images in one batch, as ours, so that all digits agree."""
    rows = torch.arange(8)
    image = conv_images[rows]
    goal = conv_goal.select_images(rows)
    ball = NormBall(image, 0.005, "linf")
    start = ball.sample_image(torch.Generator().manual_seed(1))
    searches = [literal_apgd(image[row], start[row], 0.005, 25) for row in rows]
    points = [next(search) for search in searches]
    results: list[tuple[Tensor, int]] = []
    while not results:
        leaf = torch.stack(points).requires_grad_()
        logits = conv.logits(leaf)
        scores = F.cross_entropy(logits, goal.source_labels, reduction="none")
        (gradients,) = torch.autograd.grad(scores.sum(), leaf)
        fools = goal.is_reached(logits)
        for row, search in enumerate(searches):
            evaluation = (float(scores[row].detach()), gradients[row], bool(fools[row]))
            try:
                points[row] = search.send(evaluation)
            except StopIteration as finished:
                results.append(finished.value)

    run = AttackRun(conv, goal, "cross_entropy", 25)
    steps = ApgdSteps(25, early=False)
    changed = steps(run, ball, torch.Generator().manual_seed(1), rows)
    assert torch.allclose(changed, torch.stack([point for point, _ in results]), atol=1e-6)
    assert len({halvings for _, halvings in results}) > 1, "each image has its own step size"
    assert 0 < int(goal.is_reached(conv.logits(changed)).sum()) < 8


# ── the review of step sizes ──


def make_state(count: int) -> AscentState:
    """The start of `count` images of different brightness, with scores 0, 1, 2, …"""
    image = torch.linspace(0.2, 0.8, count).view(-1, 1, 1, 1).expand(count, 3, 2, 3).clone()
    return start_ascent(image, torch.ones_like(image), torch.arange(float(count)), 0.4)


def test_step_sizes_are_halved_by_either_condition() -> None:
    """Period 4: fewer than 3 rises, or neither the step size nor the best score changed."""
    state = make_state(5)
    state.rise_count = torch.tensor([2.0, 3.0, 4.0, 4.0, 4.0])
    state.best_score = state.checkpoint_best_score + torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0])
    state.best_image = state.image + 0.1
    state.best_gradient = 2 * state.gradient
    state.checkpoint_step_size = state.step_size * torch.tensor([1.0, 1.0, 1.0, 1.0, 2.0])
    before = make_state(5)
    state.review_step_sizes(4)
    # Too few rises; just enough; the best score stayed; it rose; it stayed after a halving.
    is_stalled = torch.tensor([True, False, True, False, False])
    assert torch.equal(state.step_size, torch.where(is_stalled, 0.2, 0.4))
    is_stalled = is_stalled.view(-1, 1, 1, 1)
    assert torch.equal(state.image, torch.where(is_stalled, before.image + 0.1, before.image))
    assert torch.equal(state.gradient, torch.where(is_stalled, 2.0, 1.0).expand_as(state.image))
    assert torch.equal(state.score, torch.tensor([1.0, 1.0, 2.0, 3.0, 4.0]))
    assert torch.equal(state.rise_count, torch.zeros(5))
    assert torch.equal(state.checkpoint_best_score, state.best_score)
    assert torch.equal(state.checkpoint_step_size, torch.full((5,), 0.4))


def test_accepting_an_image_counts_rises_and_keeps_the_best() -> None:
    state = make_state(3)
    first = make_state(3).image
    # Scores 0, 1, 2 become 1, 1, 1: only the first rises; then 0.5, 3, 1.5: the others rise.
    state.accept_image(first + 0.1, state.gradient, torch.tensor([1.0, 1.0, 1.0]))
    state.accept_image(first + 0.2, 3 * state.gradient, torch.tensor([0.5, 3.0, 1.5]))
    assert state.rise_count.tolist() == [1, 1, 1]
    assert state.best_score.tolist() == [1, 3, 2]
    assert torch.equal(state.previous_image, first + 0.1)
    assert torch.equal(state.image, first + 0.2)
    assert torch.equal(state.best_image[0], first[0] + 0.1)
    assert torch.equal(state.best_image[1], first[1] + 0.2)
    assert torch.equal(state.best_image[2], first[2])
    assert state.best_gradient[:, 0, 0, 0].tolist() == [1, 3, 1]


# ── checkpoints ──


def test_checkpoints_are_the_papers() -> None:
    """Section 3: p₀ = 0, p₁ = 0.22, p_{j+1} = p_j + max(p_j − p_{j−1} − 0.03, 0.06).

    Exactly so where these are whole steps, as for 100 steps.
    """
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    expected = [math.ceil(round(100 * share, 9)) for share in shares[1:] if share <= 1]
    assert list(schedule_checkpoints(100)) == expected


@pytest.mark.parametrize("steps", [1, 2, 10, 20, 50, 130])
def test_checkpoints_are_those_of_the_authors_program(steps: int) -> None:
    """It counts down whole steps: 22 % of them, then 3 % fewer each time, at least 6 %, and none
    of these below one."""
    period = remaining = max(int(0.22 * steps), 1)
    expected: list[int] = []
    for step in range(1, steps + 1):
        remaining -= 1
        if remaining == 0:
            expected.append(step)
            period = max(period - max(int(0.03 * steps), 1), int(0.06 * steps), 1)
            remaining = period
    checkpoints = schedule_checkpoints(steps)
    assert list(checkpoints) == expected
    assert list(itertools.accumulate(checkpoints.values())) == expected, (
        "each knows how many steps it looks back on"
    )


# ── against others ──


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.006), ("l2", 0.08), ("l1", 0.8)])
def test_apgd_is_no_worse_than_pgd(
    conv: sl.Model, conv_images: Tensor, conv_goal: AttackGoal, norm: Norm, eps: float
) -> None:
    losses: list[Tensor] = []
    for attack in (
        Attack("pgd", norm, eps, steps=20, early=False),
        Attack("apgd", norm, eps, steps=20, early=False),
    ):
        changed, _ = attack(conv, conv_images, conv_goal)
        losses.append(F.cross_entropy(conv.logits(changed), conv_goal.source_labels))
    assert losses[1] > 0.98 * losses[0]


def test_apgd_fools_no_less_than_that_of_torchattacks(
    conv: sl.Model, conv_images: Tensor, conv_goal: AttackGoal
) -> None:
    counts: list[int] = []
    for peer in (None, "torchattacks:APGD"):
        attack = Attack("apgd", "linf", 0.006, steps=20, peer=peer)
        changed, _ = attack(conv, conv_images, conv_goal)
        counts.append(int(conv_goal.is_reached(conv.logits(changed)).sum()))
    assert counts[0] >= counts[1] - 1
    assert 0 < counts[0] < 30


def test_fooled_images_leave_the_batch(
    conv: sl.Model, conv_images: Tensor, conv_goal: AttackGoal
) -> None:
    changed, run = Attack("apgd", eps=0.05, steps=20)(conv, conv_images, conv_goal)
    _, late_run = Attack("apgd", eps=0.05, steps=20, early=False)(conv, conv_images, conv_goal)
    assert late_run.gradient_counts.tolist() == [21] * 30
    assert run.gradient_counts.float().mean() < 12
    has_left = run.gradient_counts < 21
    rounded = (changed * 255).round() / 255
    assert conv_goal.is_reached(conv.logits(rounded))[has_left].all()
