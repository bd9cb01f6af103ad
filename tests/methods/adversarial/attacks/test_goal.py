"""Goals, losses against their formulas, and the record of a run."""

import pytest
import torch
from torch import Tensor, nn

import sightline as sl
from sightline.methods.adversarial.attacks.goal import (
    ATTACK_LOSSES,
    AttackGoal,
    AttackRun,
    round_to_8_bits,
)
from sightline.registry.progress import Step


def random_logits() -> Tensor:
    return torch.randn(5, 6, generator=torch.Generator().manual_seed(0))


def test_a_goal_is_reached_by_any_other_class_or_by_the_target() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0], [1.0, 3.0, 2.0], [1.0, 2.0, 3.0]])
    source = torch.tensor([0, 0, 1])
    assert AttackGoal(source).is_reached(logits).tolist() == [False, True, True]
    targeted = AttackGoal(source, torch.tensor([1, 2, 2]))
    assert targeted.is_reached(logits).tolist() == [False, False, True]
    selected = targeted.select_images(torch.tensor([2, 0]))
    assert selected.source_labels.tolist() == [1, 0]
    assert selected.target_labels is not None
    assert selected.target_labels.tolist() == [2, 1]


# ── losses ──


def test_untargeted_losses_are_their_formulas() -> None:
    logits = random_logits()
    source = torch.tensor([0, 1, 2, 3, 4])
    losses = {name: loss(logits, AttackGoal(source)) for name, loss in ATTACK_LOSSES.items()}
    for row, (scores, label) in enumerate(zip(logits, source.tolist(), strict=True)):
        best_other = max(scores[index] for index in range(6) if index != label)
        first, _, third = sorted(scores, reverse=True)[:3]
        expected = {
            "cross_entropy": -scores.log_softmax(0)[label],
            "margin": best_other - scores[label],
            "dlr": -(scores[label] - best_other) / (first - third),
            "logit": -scores[label],
        }
        for name, value in expected.items():
            assert float(losses[name][row]) == pytest.approx(float(value), abs=1e-5), name


def test_targeted_losses_are_their_formulas() -> None:
    logits = random_logits()
    source = torch.tensor([0, 1, 2, 3, 4])
    target = torch.tensor([5, 0, 1, 2, 3])
    goal = AttackGoal(source, target)
    losses = {name: loss(logits, goal) for name, loss in ATTACK_LOSSES.items()}
    for row, scores in enumerate(logits):
        label, wanted = int(source[row]), int(target[row])
        best_other = max(scores[index] for index in range(6) if index != wanted)
        first, _, third, fourth = sorted(scores, reverse=True)[:4]
        expected = {
            "cross_entropy": scores.log_softmax(0)[wanted],
            "margin": scores[wanted] - best_other,
            "dlr": -(scores[label] - scores[wanted]) / (first - (third + fourth) / 2),
            "logit": scores[wanted],
        }
        for name, value in expected.items():
            assert float(losses[name][row]) == pytest.approx(float(value), abs=1e-5), name


def test_dlr_does_not_depend_on_the_scale_of_the_logits() -> None:
    logits = random_logits()
    goal = AttackGoal(torch.arange(5))
    dlr = ATTACK_LOSSES["dlr"]
    assert torch.allclose(dlr(logits, goal), dlr(1000 * logits + 3, goal), atol=1e-4)


@pytest.mark.parametrize(("targeted", "class_count"), [(False, 3), (True, 4)])
def test_dlr_needs_enough_classes(targeted: bool, class_count: int) -> None:
    labels = torch.arange(2)
    goal = AttackGoal(labels, 1 - labels if targeted else None)
    logits = random_logits()[:2, :class_count]
    assert ATTACK_LOSSES["dlr"](logits, goal).isfinite().all()
    message = f"dlr.*compares {class_count} classes and this network has {class_count - 1}"
    with pytest.raises(sl.SightlineError, match=message):
        ATTACK_LOSSES["dlr"](logits[:, :-1], goal)


# ── the run ──


def test_a_gradient_is_that_of_the_loss(
    conv: sl.Model, conv_images: Tensor, conv_goal: AttackGoal
) -> None:
    run = AttackRun(conv, conv_goal, "cross_entropy", 1)
    rows = torch.tensor([4, 1, 7])
    gradient, losses, logits = run.compute_gradient(conv_images[rows], rows)
    for index, row in enumerate(rows.tolist()):
        leaf = conv_images[row : row + 1].clone().requires_grad_()
        alone = conv.logits(leaf)
        loss = -alone.log_softmax(1)[0, conv_goal.source_labels[row]]
        (expected,) = torch.autograd.grad(loss, leaf)
        assert torch.allclose(gradient[index], expected[0], atol=1e-6)
        assert torch.allclose(losses[index], loss, atol=1e-5)
        assert torch.allclose(logits[index], alone[0], atol=1e-5)
    assert not losses.requires_grad
    assert not logits.requires_grad
    counts = torch.zeros(30, dtype=torch.long)
    counts[rows] = 1
    assert torch.equal(run.gradient_counts, counts)


class BreaksWhereBright(nn.Module):
    """Two classes; the gradient is not finite for images whose first value is above 0.5."""

    def forward(self, x: Tensor) -> Tensor:
        first = x[:, 0, 0, 0]
        root = ((0.5 - first) * (first < 0.5)).sqrt()  # its derivative at zero is infinite
        return torch.stack([x.flatten(1).mean(1) + 0 * root, 0 * first], 1)


def test_a_gradient_that_is_not_finite_is_zero_and_its_step_is_recorded() -> None:
    model = sl.load(BreaksWhereBright(), mean=(0.0,) * 3, std=(1.0,) * 3, size=4, device="cpu")
    image = torch.full((3, 3, 4, 5), 0.4)
    rows = torch.arange(3)
    run = AttackRun(model, AttackGoal(torch.zeros(3, dtype=torch.long)), "logit", 3)
    run.compute_gradient(image, rows)
    assert run.first_nan_steps.tolist() == [0, 0, 0]
    image[1, 0, 0, 0] = 0.6
    for _ in range(2):
        gradient, _, _ = run.compute_gradient(image, rows)
        assert (gradient[1] == 0).all()
        assert (gradient[[0, 2]] != 0).all()
    assert run.first_nan_steps.tolist() == [0, 2, 0], "the first such step, of this image only"


class ComparesMean(nn.Module):
    """Predicts class 1 where the mean pixel value is above 0.5."""

    def forward(self, x: Tensor) -> Tensor:
        brightness = x.flatten(1).mean(1) - 0.5
        return torch.stack([-brightness, brightness], 1)


def test_rounding_may_undo_a_success() -> None:
    model = sl.load(ComparesMean(), mean=(0.0,) * 3, std=(1.0,) * 3, size=4, device="cpu")
    run = AttackRun(model, AttackGoal(torch.zeros(3, dtype=torch.long)), "margin", 1)
    # 127.4/255 rounds down; 127.6/255 and 128.2/255 are above one half and round to 128/255.
    image = torch.tensor([127.4, 127.6, 128.2]).view(3, 1, 1, 1).expand(3, 3, 4, 5) / 255
    assert run.is_fooled(image, torch.arange(3)).tolist() == [False, True, True]
    image = image.clone()
    image[1, :, :2] = 127.3 / 255  # these round to 127, the others to 128
    image[1, :, 2:] = 127.9 / 255
    rows = torch.arange(3)
    assert run.is_fooled(image, rows).tolist() == [False, True, True]
    logits = run.compute_logits(image)
    assert run.is_fooled_after_rounding(image, rows, logits).tolist() == [False, False, True]


def test_rounding_is_to_the_nearest_of_256_values() -> None:
    values = torch.tensor([0.0, 0.4, 0.6, 100.4, 254.6, 255.0]).view(1, 1, 2, 3) / 255
    expected = torch.tensor([0.0, 0.0, 1.0, 100.0, 255.0, 255.0]).view(1, 1, 2, 3) / 255
    assert torch.equal(round_to_8_bits(values), expected)


def test_steps_are_reported_until_the_callback_stops_them(
    conv: sl.Model, conv_images: Tensor, conv_goal: AttackGoal
) -> None:
    steps: list[Step] = []

    def stop_at_2(step: Step) -> bool:
        steps.append(step)
        return step.index == 2

    run = AttackRun(conv, conv_goal, "margin", 7, stop_at_2)
    scores = torch.arange(30.0)
    assert not run.report_step(scores, conv_images)
    assert not run.is_stopped
    assert run.report_step(scores, conv_images)
    assert run.is_stopped
    assert [(step.index, step.total) for step in steps] == [(1, 7), (2, 7)]
    assert torch.equal(steps[0].scores, scores)
    assert torch.equal(steps[0].image, conv_images)
    assert not AttackRun(conv, conv_goal, "margin", 7).report_step(scores, conv_images)
