"""What is said of an attack: captions of each outcome, and curves by hand."""

from dataclasses import replace

import pytest
import torch
from helpers import LABELS, smooth

import sightline as sl
from sightline.methods.adversarial.attacks.goal import AttackGoal, AttackRun
from sightline.methods.adversarial.attacks.registry import Attack
from sightline.methods.adversarial.figure import (
    AccuracyCurve,
    AttackOutcome,
    compute_accuracy_curve,
    describe_accuracy_curve,
)

CLASSES = torch.eye(5) * 10  # logits of each class


@pytest.fixture
def outcome(tiny: sl.Model) -> AttackOutcome:
    """Three images of class 0 that became 1, 2 and 0; in 8 bits only the first fools."""
    image = smooth(3)[:, :, :26].clamp(0.1, 0.9)
    signs = torch.tensor([1.0, -1.0]).repeat(13).view(1, 1, 26, 1)
    sizes = torch.tensor([2.0, 4.0, 8.0]).view(3, 1, 1, 1) / 255
    changed = image + sizes * signs
    goal = AttackGoal(torch.zeros(3, dtype=torch.long))
    run = AttackRun(tiny, goal, "cross_entropy", 1)
    clean_logits = CLASSES[[0, 0, 0]]
    return AttackOutcome(
        attack=Attack("fmn", "linf", torch.inf),
        run=run,
        image=image,
        clean_logits=clean_logits,
        changed_image=changed,
        changed_logits=CLASSES[[1, 2, 0]],
        rounded_image=(changed * 255).round() / 255,
        rounded_logits=CLASSES[[1, 0, 0]],
    )


def test_values_are_by_image(outcome: AttackOutcome) -> None:
    values = outcome.collect_values()
    assert values["success"].tolist() == [True, True, False]
    assert values["success_8bit"].tolist() == [True, False, False]
    value_count = 3 * 26 * 32
    for row, size in enumerate((2 / 255, 4 / 255, 8 / 255)):
        assert float(values["linf"][row]) == pytest.approx(size, rel=1e-4)
        assert float(values["l2"][row]) == pytest.approx(size * value_count**0.5, rel=1e-4)
        assert float(values["l1"][row]) == pytest.approx(size * value_count, rel=1e-4)


def test_the_comparison_shows_the_enlarged_change(outcome: AttackOutcome) -> None:
    """The first image's largest change becomes half of the range; larger ones are clamped."""
    row = outcome.render_comparison()
    assert outcome.compute_display_factor() == pytest.approx(0.5 / (2 / 255), rel=1e-4)
    width = 32
    gap = (row.shape[-1] - 3 * width) // 2
    middle = row[0, :, :26, width + gap : 2 * width + gap]
    expected = torch.tensor([1.0, 0.0]).repeat(13).view(1, 26, 1).expand(3, 26, 32)
    torch.testing.assert_close(middle, expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(row[0, :, :26, :width], outcome.image[0])
    torch.testing.assert_close(row[0, :, :26, -width:], outcome.changed_image[0])


def test_the_comparison_has_six_rows_at_most(outcome: AttackOutcome) -> None:
    one_row = replace(outcome, image=outcome.image[:1], changed_image=outcome.changed_image[:1])
    many_rows = replace(
        outcome,
        image=outcome.image.repeat(3, 1, 1, 1),
        changed_image=outcome.changed_image.repeat(3, 1, 1, 1),
    )
    gap = 6
    assert one_row.render_comparison().shape[-2] == 26
    assert many_rows.render_comparison().shape[-2] == 6 * (26 + gap) - gap


@pytest.mark.parametrize(
    ("changed_class", "rounded_class", "target", "words"),
    [
        (1, 1, None, "still fools the network once rounded to 8 bits"),
        (1, 0, None, "no longer fools the network once rounded to 8 bits"),
        (0, 0, None, "The prediction did not change"),
        (1, 1, 2, f"The network is fooled, but the target {LABELS[2]} was not reached"),
        (0, 0, 2, "The prediction did not change"),
        (2, 2, 2, "still fools the network"),
    ],
)
def test_every_outcome_has_its_sentence(
    outcome: AttackOutcome,
    *,
    changed_class: int,
    rounded_class: int,
    target: int | None,
    words: str,
) -> None:
    if target is not None:
        target_labels = torch.full((3,), target)
        outcome.run.goal = AttackGoal(outcome.goal.source_labels, target_labels)
    outcome = replace(
        outcome,
        changed_logits=CLASSES[[changed_class, 0, 0]],
        rounded_logits=CLASSES[[rounded_class, 0, 0]],
    )
    assert words in outcome.describe_success()
    assert words in outcome.describe_outcome()
    assert f"{LABELS[0]} (100%) on the left" in outcome.describe_outcome()
    assert "largest 2/255" in outcome.describe_outcome()


def test_a_halt_names_the_first_image_and_its_step(outcome: AttackOutcome) -> None:
    assert outcome.describe_halt() == ""
    outcome.run.first_nan_steps = torch.tensor([0, 7, 3])
    assert "The gradient of image 2 was not a number at step 7" in outcome.describe_halt()


def test_the_saved_file_tells_by_how_much_it_was_enlarged(outcome: AttackOutcome) -> None:
    """What rounding alone adds is no enlargement."""
    assert "times as long" not in outcome.describe_saved_file()
    change = outcome.changed_image - outcome.image
    enlarged = replace(outcome, rounded_image=outcome.image + 1.5 * change)
    assert "Its change is 1.5 times as long as the smallest" in enlarged.describe_saved_file()
    assert f"predicts {LABELS[1]} (100%)" in outcome.describe_saved_file()


# ── curves ──


def test_the_curve_of_smallest_changes_by_hand(outcome: AttackOutcome) -> None:
    """Distances 2/255 and 4/255, and one image that was not fooled at any radius."""
    curve = compute_accuracy_curve(outcome, 3)
    assert float(curve.radii[0]) == 0
    assert float(curve.radii[-1]) == pytest.approx(1.2 * 4 / 255, rel=1e-4)
    for radius, share in zip(curve.radii.tolist(), curve.accuracy.tolist(), strict=True):
        expected = 1 if radius < 2 / 255 else 2 / 3 if radius < 4 / 255 else 1 / 3
        assert share == pytest.approx(expected)
    assert len(curve.probability) == 0


def test_an_image_that_fools_already_withstands_nothing(outcome: AttackOutcome) -> None:
    outcome = replace(outcome, clean_logits=CLASSES[[3, 0, 0]])
    curve = compute_accuracy_curve(outcome, 3)
    assert float(curve.accuracy[0]) == pytest.approx(2 / 3)


def test_the_curve_of_a_bounded_attack_repeats_it(tiny: sl.Model) -> None:
    """At radii from a quarter to four times its own; a given step size grows with the radius."""
    image = smooth(4)[:, :, :26]
    clean_logits = tiny.logits(image)
    goal = AttackGoal(clean_logits.argmax(1))
    attack = Attack("ifgsm", "linf", 0.02, steps=3, step_size=0.01)
    changed, run = attack(tiny, image, goal)
    logits = tiny.logits(changed)
    outcome = AttackOutcome(attack, run, image, clean_logits, changed, logits, changed, logits)
    curve = compute_accuracy_curve(outcome, 3)
    assert curve.radii.tolist() == pytest.approx([0, 0.005, 0.02, 0.08])
    for index, factor in enumerate((None, 0.25, 1.0, 4.0)):
        point = image
        if factor is not None:
            scaled = Attack("ifgsm", "linf", 0.02 * factor, steps=3, step_size=0.01 * factor)
            point, _ = scaled(tiny, image, goal)
        probability = tiny.logits(point).softmax(1)
        withstands = probability.argmax(1) == goal.source_labels
        assert float(curve.accuracy[index]) == pytest.approx(float(withstands.float().mean()))
        clean = probability[torch.arange(4), goal.source_labels].mean()
        assert float(curve.probability[index]) == pytest.approx(float(clean), abs=1e-5)


@pytest.mark.parametrize(
    ("norm", "accuracy", "ending"),
    [
        ("linf", [1.0, 0.5, 0.0, 0.0], "at 4/255 none is left"),
        ("linf", [1.0, 0.75, 0.5, 0.25], "25% are left at 8/255, the largest radius tried"),
        ("l2", [1.0, 0.5, 0.0, 0.0], "at 0.016 none is left"),
    ],
)
def test_the_caption_tells_where_the_curve_ends(
    outcome: AttackOutcome, norm: str, accuracy: list[float], ending: str
) -> None:
    outcome = replace(outcome, attack=replace(outcome.attack, norm=norm))
    radii = torch.tensor([0.0, 2.0, 4.0, 8.0]) / 255
    curve = AccuracyCurve(radii, torch.tensor(accuracy), torch.empty(0))
    plot, caption = describe_accuracy_curve(outcome, curve)
    assert ending in caption
    ((positions, shares),) = plot.lines.values()
    scale = 255 if norm == "linf" else 1
    assert positions == pytest.approx((radii * scale).tolist())
    assert shares == accuracy
