"""Carlini & Wagner's attack against its definition, with torch's Adam, and on a linear network."""

import math

import pytest
import torch
from torch import Tensor

import sightline as sl
from sightline.methods.adversarial.attacks import carlini_wagner
from sightline.methods.adversarial.attacks.carlini_wagner import MarginWeights, run_carlini_wagner
from sightline.methods.adversarial.attacks.goal import AttackGoal, AttackRun
from sightline.methods.adversarial.attacks.norm_ball import compute_image_norms
from sightline.methods.adversarial.attacks.registry import Attack


@pytest.mark.parametrize(
    "outcomes",
    [
        [False] * 9,
        [True] * 9,
        [False, False, False, True, False, True, True, False, True],
        [False, True, False, False, True, True, False, True, False],
    ],
)
def test_the_weight_is_searched_as_in_the_authors_program(outcomes: list[bool]) -> None:
    """From 0.001 times ten until one is enough, then by halving; a second image does otherwise."""
    weights = MarginWeights(torch.zeros(2))
    lower, upper, constant = 0.0, 1e10, 0.001
    for is_enough in outcomes:
        assert float(weights.current[0]) == pytest.approx(constant, rel=1e-6)
        if is_enough:
            upper = min(upper, constant)
        else:
            lower = max(lower, constant)
        if upper < 1e9:
            constant = (lower + upper) / 2
        elif not is_enough:
            constant *= 10
        weights.narrow_range(torch.tensor([is_enough, not is_enough]))
    assert float(weights.current[0]) == pytest.approx(constant, rel=1e-6)
    assert weights.current[0] != weights.current[1]


def literal_attack(
    model: sl.Model, image: Tensor, label: int, *, constants: list[float], steps: int, lr: float
) -> Tensor:
    """Section V for one image, for these constants: the nearest point that fools on the way."""
    best, best_distance = image, math.inf
    for constant in constants:
        w = torch.atanh((2 * image - 1) * 0.999999).requires_grad_()
        optimizer = torch.optim.Adam([w], lr=lr)
        for _ in range(steps):
            point = 0.5 * (torch.tanh(w) + 1)
            logits = model.logits(point[None])[0]
            other = torch.cat([logits[:label], logits[label + 1 :]]).max()
            distance = (point - image).square().sum()
            if logits[label] < other and float(distance.detach()) < best_distance:
                best, best_distance = point.detach(), float(distance.detach())
            cost = distance + constant * torch.clamp(logits[label] - other, min=0)
            optimizer.zero_grad()
            cost.backward()
            optimizer.step()
    return best


def test_it_is_the_papers_objective_under_adam(
    conv: sl.Model,
    conv_images: Tensor,
    conv_goal: AttackGoal,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three weights, fixed in advance by making none of them count as enough."""
    monkeypatch.setattr(carlini_wagner, "WEIGHT_SEARCHES", 3)
    monkeypatch.setattr(carlini_wagner, "FIRST_MARGIN_WEIGHT", 0.05)
    monkeypatch.setattr(MarginWeights, "narrow_range", lambda self, enough: self.current.mul_(10))
    rows = torch.arange(4)
    goal = conv_goal.select_images(rows)
    run = AttackRun(conv, goal, "margin", 3 * 25)
    found = run_carlini_wagner(run, conv_images[rows], 25, 0.01)
    assert run.gradient_counts.tolist() == [75] * 4
    assert goal.is_reached(conv.logits(found)).all()
    for row in rows.tolist():
        label = int(goal.source_labels[row])
        expected = literal_attack(
            conv, conv_images[row], label, constants=[0.05, 0.5, 5.0], steps=25, lr=0.01
        )
        distances = compute_image_norms(
            torch.stack([expected, found[row]]) - conv_images[row], "l2"
        )
        assert float(distances[1]) == pytest.approx(float(distances[0]), rel=1e-3)
        assert torch.allclose(found[row], expected, atol=1e-3)


def test_each_weight_starts_anew_from_the_clean_image(
    conv: sl.Model, conv_images: Tensor, conv_goal: AttackGoal
) -> None:
    rows = torch.arange(3)
    image = conv_images[rows]
    starts: list[Tensor] = []
    steps = 4

    def record(step: object) -> None:
        if (step.index - 1) % steps == 0:  # type: ignore[attr-defined]
            starts.append(step.image)  # type: ignore[attr-defined]

    Attack("cw", "l2", math.inf, steps=steps)(conv, image, conv_goal.select_images(rows), record)
    assert len(starts) == carlini_wagner.WEIGHT_SEARCHES == 9
    for start in starts:
        assert torch.allclose(start, image, atol=1e-5)


def test_it_finds_the_nearest_plane_of_a_linear_network(
    linear: sl.Model, linear_images: Tensor, linear_goal: AttackGoal
) -> None:
    """Its l2 distance in closed form: the score gap over the norm of the weights' difference."""
    attack = Attack("cw", "l2", math.inf, steps=60, step_size=0.001)
    found, _ = attack(linear, linear_images, linear_goal)
    assert linear_goal.is_reached(linear.logits(found)).all()
    weight = linear.module("head").weight.detach() / 0.25
    logits = linear.logits(linear_images)
    for row, label in enumerate(linear_goal.source_labels.tolist()):
        distances: list[float] = []
        for other in range(4):
            if other != label:
                gap = logits[row, label] - logits[row, other]
                distances.append(float(gap / (weight[other] - weight[label]).norm()))
        ratio = float((found[row] - linear_images[row]).norm()) / min(distances)
        assert 1 - 1e-3 < ratio < 1.02
