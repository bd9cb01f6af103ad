"""Smallest changes: exact on a linear network, FMN step by step, and back to the boundary."""

import math

import pytest
import torch
from torch import Tensor

import sightline as sl
from sightline.methods.adversarial.attacks.external import run_peer_attack
from sightline.methods.adversarial.attacks.goal import AttackGoal, AttackRun
from sightline.methods.adversarial.attacks.minimum_norm import (
    anneal_by_cosine,
    bisect_to_boundary,
    find_shortest_step,
    round_adversarial_image,
    run_fmn,
)
from sightline.methods.adversarial.attacks.norm_ball import Norm, NormBall, compute_image_norms
from sightline.methods.adversarial.attacks.registry import Attack, AttackName

DUAL_ORDERS = {"linf": 1, "l2": 2, "l1": math.inf}


def measure_plane_distances(model: sl.Model, image: Tensor, norm: str) -> Tensor:
    """The distance to the nearest plane between the predicted class and another, in closed form."""
    weight = model.module("head").weight.detach() / 0.25
    distances: list[float] = []
    for scores in model.logits(image):
        label = int(scores.argmax())
        candidates: list[float] = []
        for other in range(len(scores)):
            if other != label:
                normal = weight[other] - weight[label]
                gap = scores[label] - scores[other]
                candidates.append(float(gap / normal.norm(p=DUAL_ORDERS[norm])))
        distances.append(min(candidates))
    return torch.tensor(distances)


# ── DeepFool ──


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_deepfool_is_exact_on_a_linear_network(
    linear: sl.Model, linear_images: Tensor, linear_goal: AttackGoal, norm: Norm
) -> None:
    exact = measure_plane_distances(linear, linear_images, norm)
    found, run = Attack("deepfool", norm, math.inf)(linear, linear_images, linear_goal)
    # An l1 step may need more room than one pixel value has.
    is_inside = ((found > 0) & (found < 1)).flatten(1).all(1)
    assert is_inside.sum() >= (1 if norm == "l1" else 8)
    assert linear_goal.is_reached(linear.logits(found))[is_inside].all()
    distances = compute_image_norms(found - linear_images, norm)
    assert torch.allclose(distances[is_inside], exact[is_inside], rtol=2e-3, atol=2e-5)
    assert run.gradient_counts.max() <= 2 * 3, "one step, and one look that it is enough"


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_shortest_step_arrives_at_the_plane(norm: Norm) -> None:
    normal = torch.randn(3, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    distance = torch.tensor([0.1, 1.0, 5.0])
    step = find_shortest_step(normal, distance, norm)
    # `distance` is in the norm: the plane lies where the product with the normal is this.
    offset = distance * normal.flatten(1).norm(dim=1, p=DUAL_ORDERS[norm])
    assert torch.allclose((step * normal).flatten(1).sum(1), offset, rtol=2e-4, atol=1e-3)
    assert torch.allclose(compute_image_norms(step, norm), distance, atol=2e-5)


# ── FMN ──


def literal_fmn(model: sl.Model, clean: Tensor, label: int, steps: int) -> Tensor:
    """Algorithm 1 for one image, in l2, far from black and white.

    The first radius grows by 1 + γ, too, which is our departure.
    """
    delta = torch.zeros_like(clean)
    best, best_norm = torch.zeros_like(clean), math.inf
    radius = math.inf
    for k in range(steps):
        anneal = 0.5 * (1 + math.cos(math.pi * k / steps))
        alpha = 0.01 + (1.0 - 0.01) * anneal
        gamma = 0.001 + (0.05 - 0.001) * anneal
        leaf = (clean + delta).requires_grad_()
        logits = model.logits(leaf[None])[0]
        other = torch.cat([logits[:label], logits[label + 1 :]]).max()
        loss = other - logits[label]
        (gradient,) = torch.autograd.grad(loss, leaf)
        norm = float(delta.norm())
        if loss > 0:
            if norm < best_norm:
                best, best_norm = delta, norm
            radius = min(radius, best_norm) * (1 - gamma)
        elif math.isinf(best_norm):
            radius = (norm + abs(float(loss.detach())) / float(gradient.norm())) * (1 + gamma)
        else:
            radius = radius * (1 + gamma)
        delta = delta + alpha * gradient / gradient.norm()
        if float(delta.norm()) > radius:
            delta = delta * radius / delta.norm()
        delta = (clean + delta).clamp(0, 1) - clean
    logits = model.logits((clean + delta)[None])[0]
    if int(logits.argmax()) != label and float(delta.norm()) < best_norm:
        best = delta
    return clean + best


def test_fmn_is_the_papers_algorithm(
    conv: sl.Model, conv_images: Tensor, conv_goal: AttackGoal
) -> None:
    rows = torch.arange(6)
    goal = conv_goal.select_images(rows)
    run = AttackRun(conv, goal, "margin", 20)
    found = run_fmn(run, conv_images[rows], "l2", 20)
    assert goal.is_reached(conv.logits(found)).all()
    for row in rows.tolist():
        expected = literal_fmn(conv, conv_images[row], int(goal.source_labels[row]), 20)
        assert torch.allclose(found[row], expected, atol=1e-4)


@pytest.mark.parametrize(("norm", "ratio"), [("linf", 1.1), ("l2", 1.02), ("l1", 2.5)])
def test_fmn_finds_the_nearest_plane(
    linear: sl.Model, linear_images: Tensor, linear_goal: AttackGoal, norm: Norm, ratio: float
) -> None:
    found, _ = Attack("fmn", norm, math.inf, steps=200)(linear, linear_images, linear_goal)
    assert linear_goal.is_reached(linear.logits(found)).all()
    distances = compute_image_norms(found - linear_images, norm)
    ratios = distances / measure_plane_distances(linear, linear_images, norm)
    assert ratios.min() > 1 - 1e-3
    assert ratios.median() < ratio


def test_annealing_goes_from_the_first_to_the_last_value() -> None:
    assert anneal_by_cosine(1.0, 0.01, 0.0) == pytest.approx(1.0)
    assert anneal_by_cosine(1.0, 0.01, 1.0) == pytest.approx(0.01)
    assert anneal_by_cosine(1.0, 0.0, 0.5) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("name", "norm", "peer"),
    [
        ("fmn", "l2", "foolbox:L2FMNAttack"),
        ("fmn", "linf", "foolbox:LInfFMNAttack"),
        ("deepfool", "l2", "foolbox:L2DeepFoolAttack"),
    ],
)
def test_smallest_changes_are_no_longer_than_foolboxs(
    conv: sl.Model,
    conv_images: Tensor,
    conv_goal: AttackGoal,
    *,
    name: AttackName,
    norm: Norm,
    peer: str,
) -> None:
    ours, _ = Attack(name, norm, math.inf)(conv, conv_images, conv_goal)
    ball = NormBall(conv_images, math.inf, norm)
    theirs = run_peer_attack(peer, conv, ball, conv_goal, steps=None, seed=0)
    assert conv_goal.is_reached(conv.logits(ours)).all()
    has_failed = ~conv_goal.is_reached(conv.logits(theirs))
    their_norms = compute_image_norms(theirs - conv_images, norm).masked_fill(has_failed, math.inf)
    our_norms = compute_image_norms(ours - conv_images, norm)
    assert our_norms.median() <= their_norms.median() * 1.01


# ── back to the boundary ──


def test_bisection_ends_just_beyond_the_boundary(
    linear: sl.Model, linear_images: Tensor, linear_goal: AttackGoal
) -> None:
    """On a linear network the margin is linear along the line, so that its zero is known."""
    start = (linear_images + 0.5 * (linear_images.flip(0) - linear_images)).clamp(0, 1)
    run = AttackRun(linear, linear_goal, "margin", 1)
    rows = torch.arange(8)
    is_fooled = run.is_fooled(start, rows)
    assert 0 < is_fooled.sum() < 8
    found = bisect_to_boundary(run, linear_images, start)
    assert torch.equal(found[~is_fooled], start[~is_fooled]), "what does not fool stays"
    assert run.is_fooled(found, rows)[is_fooled].all()
    line = start - linear_images
    fractions = (found - linear_images).flatten(1).norm(dim=1) / line.flatten(1).norm(dim=1)
    for row in is_fooled.nonzero()[:, 0].tolist():
        label = int(linear_goal.source_labels[row])
        clean_logits = linear.logits(linear_images[row : row + 1])[0]
        end_logits = linear.logits(start[row : row + 1])[0]
        crossings = []
        for other in range(4):
            gap = clean_logits[label] - clean_logits[other]
            end_gap = end_logits[label] - end_logits[other]
            if other != label and end_gap < 0:
                crossings.append(float(gap / (gap - end_gap)))
        # Between one and two of the last halves beyond the crossing.
        excess = float(fractions[row]) - min(crossings)
        assert 0.9 * 0.5**14 < excess < 2.1 * 0.5**14


def test_smallest_changes_end_at_the_boundary(
    conv: sl.Model, conv_images: Tensor, conv_goal: AttackGoal
) -> None:
    rows = torch.arange(6)
    image, goal = conv_images[rows], conv_goal.select_images(rows)
    clean = conv.logits(image).topk(2, dim=1).values
    for name in ("deepfool", "fmn"):
        found, _ = Attack(name, "l2", math.inf)(conv, image, goal)
        top = conv.logits(found).topk(2, dim=1).values
        assert ((top[:, 0] - top[:, 1]) < 0.02 * (clean[:, 0] - clean[:, 1])).all()
        assert not goal.is_reached(conv.logits(image + 0.99 * (found - image))).any()


# ── in 8 bits ──


def test_an_image_in_8_bits_still_fools(
    conv: sl.Model, conv_images: Tensor, conv_goal: AttackGoal
) -> None:
    rows = torch.arange(12)
    image = (conv_images[rows] * 255).round() / 255
    goal = AttackGoal(conv.logits(image).argmax(1))
    found, run = Attack("fmn", "l2", math.inf)(conv, image, goal)
    rounded = round_adversarial_image(run, image, found, 50.0)
    assert torch.allclose((rounded * 255).round(), rounded * 255, atol=1e-3)
    plain = (found * 255).round() / 255
    success = goal.is_reached(conv.logits(rounded)).float().mean()
    assert success > goal.is_reached(conv.logits(plain)).float().mean()


def test_a_change_is_enlarged_no_more_than_it_must_be(
    conv: sl.Model, conv_images: Tensor, conv_goal: AttackGoal
) -> None:
    """By the first power of 1.15 that survives the rounding, if it lies within the limit."""
    image = (conv_images * 255).round() / 255
    goal = AttackGoal(conv.logits(image).argmax(1))
    found, run = Attack("fmn", "l2", math.inf)(conv, image, goal)
    candidates: list[Tensor] = []
    for power in range(12):
        enlarged = (image + 1.15**power * (found - image)).clamp(0, 1)
        candidates.append((enlarged * 255).round() / 255)
    powers: list[int | None] = []
    for row in range(30):
        row_goal = goal.select_images(torch.tensor([row]))
        survives = [
            bool(row_goal.is_reached(conv.logits(candidate[row : row + 1])))
            for candidate in candidates
        ]
        powers.append(survives.index(True) if any(survives) else None)
    assert len(set(powers)) >= 4, "some survive at once, some later"

    # Just enough for the largest of these powers, then just too little.
    largest = max(power for power in powers if power is not None)
    for limit, is_enough in ((1.15**largest * 1.0001, True), (1.15**largest * 0.9999, False)):
        rounded = round_adversarial_image(run, image, found, limit)
        for row, power in enumerate(powers):
            is_within = power is not None and (power < largest or is_enough)
            expected = candidates[power if is_within else 0][row]
            assert torch.allclose(rounded[row], expected, atol=1e-6)
