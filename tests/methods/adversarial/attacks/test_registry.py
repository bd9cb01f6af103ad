"""Attacks by name: their default radii, steps and step sizes, and what each of them refuses."""

import math

import pytest
import torch
from torch import Tensor

import sightline as sl
from sightline.methods.adversarial.attacks.apgd import ApgdSteps
from sightline.methods.adversarial.attacks.goal import AttackGoal
from sightline.methods.adversarial.attacks.norm_ball import Norm
from sightline.methods.adversarial.attacks.pgd import ProjectedSteps
from sightline.methods.adversarial.attacks.registry import (
    Attack,
    AttackName,
    compute_default_radius,
    set_attack_radius,
)

IMAGE = torch.full((2, 3, 6, 8), 0.5)
VALUE_COUNT = 3 * 6 * 8


@pytest.mark.parametrize(
    ("norm", "radius"),
    [("linf", 4 / 255), ("l2", 2 / 255 * math.sqrt(VALUE_COUNT)), ("l1", VALUE_COUNT / 255)],
)
def test_default_radii(norm: Norm, radius: float) -> None:
    assert compute_default_radius(norm, IMAGE) == pytest.approx(radius)
    assert set_attack_radius(Attack("pgd", norm), None, IMAGE).eps == pytest.approx(radius)
    assert set_attack_radius(Attack("pgd", norm), 0.5, IMAGE).eps == 0.5


@pytest.mark.parametrize(
    ("name", "step_size", "momentum", "random_start"),
    [
        ("pgd", 2.5 * 0.3 / 10, 0.0, True),
        ("fgsm", 0.3, 0.0, False),
        ("ifgsm", 0.3 / 10, 0.0, False),
        ("mifgsm", 0.3 / 10, 1.0, False),
        ("ascent", 4 / 255 / 10, 0.0, False),
    ],
)
def test_projected_steps_of_each_attack(
    name: AttackName, step_size: float, momentum: float, random_start: bool
) -> None:
    steps = Attack(name, "linf", 0.3).make_single_run(10, IMAGE)
    assert isinstance(steps, ProjectedSteps)
    assert steps.step_size == pytest.approx(step_size)
    assert (steps.steps, steps.momentum, steps.random_start) == (10, momentum, random_start)
    assert steps.early
    own = Attack(name, "linf", 0.3, step_size=0.01, early=False).make_single_run(10, IMAGE)
    assert isinstance(own, ProjectedSteps)
    assert own.step_size == 0.01
    assert not own.early
    assert Attack("apgd", early=False).make_single_run(7, IMAGE) == ApgdSteps(7, early=False)


@pytest.mark.parametrize(
    ("name", "steps"),
    [("pgd", 40), ("fgsm", 1), ("ifgsm", 10), ("mifgsm", 10), ("ascent", 200), ("deepfool", 50)],
)
def test_default_numbers_of_steps(
    conv: sl.Model, conv_images: Tensor, conv_goal: AttackGoal, name: AttackName, steps: int
) -> None:
    rows = torch.arange(2)
    eps = math.inf if name in ("ascent", "deepfool") else 1e-6  # at which nothing is fooled
    attack = Attack(name, "l2", eps, restarts=2)
    totals: list[int] = []
    attack(conv, conv_images[rows], conv_goal.select_images(rows), lambda s: totals.append(s.total))
    assert set(totals) == {2 * steps}


@pytest.mark.parametrize("name", ["deepfool", "fmn", "cw", "ascent"])
def test_a_chosen_class_is_reached(
    conv: sl.Model, conv_images: Tensor, conv_targets: AttackGoal, name: AttackName
) -> None:
    rows = torch.arange(6)
    goal = conv_targets.select_images(rows)
    attack = Attack(name, "l2", math.inf, steps=60 if name == "cw" else None)
    changed, _ = attack(conv, conv_images[rows], goal)
    assert goal.is_reached(conv.logits(changed)).all()
    assert changed.min() >= 0
    assert changed.max() <= 1


@pytest.mark.parametrize("name", ["deepfool", "fmn", "cw", "ascent"])
def test_attacks_without_a_radius(name: AttackName) -> None:
    attack = Attack(name, "l2", 0.0)
    assert set_attack_radius(attack, None, IMAGE).eps == math.inf
    with pytest.raises(sl.SightlineError, match=f"eps is 0.1; {name} has no radius"):
        set_attack_radius(attack, 0.1, IMAGE)
    assert attack.is_minimal == (name != "ascent")


@pytest.mark.parametrize("name", ["fgsm", "apgd", "deepfool", "fmn"])
def test_attacks_with_their_own_step_size(name: AttackName) -> None:
    attack = Attack(name, "linf", step_size=0.1)
    with pytest.raises(sl.SightlineError, match=f"step_size is 0.1; {name} sets its own"):
        set_attack_radius(attack, None, IMAGE)


def test_other_norms_of_carlini_wagner_are_refused() -> None:
    with pytest.raises(sl.SightlineError, match="norm is 'l1'; cw has only l2"):
        set_attack_radius(Attack("cw", "l1"), None, IMAGE)
    assert set_attack_radius(Attack("cw", "l2", step_size=0.1), None, IMAGE).step_size == 0.1


def test_an_attack_of_another_library_has_the_usual_radius() -> None:
    """Whatever the name is, which it replaces."""
    peer = Attack("fmn", "linf", peer="foolbox:LinfPGD")
    assert not peer.is_minimal
    assert set_attack_radius(peer, None, IMAGE).eps == pytest.approx(4 / 255)
    assert set_attack_radius(peer, 0.2, IMAGE).eps == 0.2


def test_the_callback_hears_of_every_step(
    conv: sl.Model, conv_images: Tensor, conv_goal: AttackGoal
) -> None:
    rows = torch.arange(2)
    steps: list[tuple[int, int]] = []
    Attack("fmn", "l2", math.inf, steps=7)(
        conv,
        conv_images[rows],
        conv_goal.select_images(rows),
        lambda step: steps.append((step.index, step.total)),
    )
    assert steps == [(index, 7) for index in range(1, 8)]
