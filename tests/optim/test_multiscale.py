"""Coarse to fine: the sizes, the state that is carried over, and what happens when a loss is no number."""

import math

import pytest
import torch
from helpers import smooth
from torch import Tensor

import sightline as sl
from sightline.images.transforms import resize_bicubic
from sightline.optim.multiscale import (
    AveragedPixels,
    StageOptimizer,
    make_lowpass_preconditioner,
    optimize_coarse_to_fine,
    plan_stages,
)
from sightline.optim.objectives.objective import Objective
from sightline.optim.optimizers import Adam

TARGET = 0.2 + 0.6 * smooth(1, 64, 7)


def towards(size: tuple[int, int], weight: float = 1.0) -> Objective:
    """As near to a target as possible."""
    target = torch.nn.functional.interpolate(TARGET, size=size, mode="bilinear", antialias=True)
    return Objective(
        "near",
        (),
        lambda model: lambda image, _: -weight * (image - target).square().flatten(1).sum(1),
    )


def gray(side: int) -> Tensor:
    return torch.full((1, 3, side, side), 0.5)


def test_sizes_grow_by_the_root_of_two_to_the_whole() -> None:
    plan = plan_stages((512, 768), 50, first_steps_factor=2)
    assert [stage.size for stage in plan] == [
        (128, 192),
        (181, 272),
        (256, 384),
        (362, 543),
        (512, 768),
    ]
    assert [stage.steps for stage in plan] == [100, 50, 50, 50, 50]
    assert [stage.size for stage in plan_stages((100, 100), 5)] == [(100, 100)]


@pytest.mark.parametrize("way", ["lbfgs", "adam"])
def test_finds_the_target_through_all_sizes(way: str, tiny: sl.Model) -> None:
    plan = plan_stages((64, 64), 25, min_side=32)
    done = optimize_coarse_to_fine(
        tiny,
        towards,
        gray(32),
        plan,
        StageOptimizer(way, 1.0 if way == "lbfgs" else 0.05),
        average=way == "adam",
    )  # type: ignore[arg-type]
    assert done.image.shape == (1, 3, 64, 64)
    assert len(done.scores) == 75
    assert done.weighted_evaluations == pytest.approx(25 * (1 + 45**2 / 64**2 + 1 / 4))
    assert float((done.image - TARGET).abs().max()) < (1e-3 if way == "lbfgs" else 0.1)
    assert done.scores[0] == pytest.approx(
        float(towards((32, 32)).bind(tiny)(gray(32), {})), rel=1e-4
    ), "scores are not scaled"


def test_adam_goes_on_with_its_moments(tiny: sl.Model) -> None:
    brush = StageOptimizer("adam", 0.01)
    optimize_coarse_to_fine(tiny, towards, gray(32), plan_stages((64, 64), 4, min_side=32), brush)
    assert brush.previous is not None
    adam = brush.previous[0]
    assert isinstance(adam, Adam)
    assert adam.step_count == 12, "three sizes of four steps"
    assert adam.first_moments[0].shape == adam.second_moments[0].shape == (1, 3, 64, 64)
    assert bool((adam.second_moments[0] >= 0).all())


def test_lbfgs_goes_on_with_its_pairs_unless_the_picture_is_shifted(tiny: sl.Model) -> None:
    """By a fixed number of steps at each size it gets nearer than one that starts anew at each."""

    def steep(size: tuple[int, int]) -> Objective:
        """Of curvatures from 1 to 100 from the top to the bottom; a number that does not depend on the size."""
        weights = torch.logspace(0, 2, size[0]).view(1, 1, -1, 1)
        target = torch.nn.functional.interpolate(TARGET, size=size, mode="bilinear", antialias=True)
        return Objective(
            "steep",
            (),
            lambda model: (
                lambda image, _: -(weights * (image - target).square()).flatten(1).mean(1)
            ),
        )

    plan = plan_stages((64, 64), 6, min_side=16)
    going_on, anew = (
        optimize_coarse_to_fine(
            tiny, steep, gray(16), plan, StageOptimizer("lbfgs", 1.0), enlarge=enlarge
        )
        for enlarge in (None, resize_bicubic)
    )
    assert going_on.scores[-1] > 0.5 * anew.scores[-1]


def test_the_average_is_the_literal_one() -> None:
    pixels, seen = AveragedPixels(torch.zeros(1, 3, 2, 2), decay=0.9), []
    for value in (0.1, 0.5, 1.5):
        pixels.pixels.data.fill_(value)
        pixels.project_()
        seen.append(min(value, 1.0))
    weights = [0.1 * 0.9**age for age in (2, 1, 0)]
    expected = sum(w * v for w, v in zip(weights, seen, strict=True)) / sum(weights)
    torch.testing.assert_close(pixels.average, torch.full((1, 3, 2, 2), expected))


def test_a_loss_that_is_no_number_halves_the_step_and_says_so(tiny: sl.Model) -> None:
    """A loss that breaks where a whole step leads, but not half of one."""

    def narrow(size: tuple[int, int]) -> Objective:
        def score(image: Tensor, _: object) -> Tensor:
            near = -(image - 0.45).square().flatten(1).sum(1)
            return torch.where(
                image.flatten(1).amin(1) < 0.46, torch.full_like(near, math.nan), near
            )

        return Objective("narrow", (), lambda model: score)

    brush = StageOptimizer("adam", 0.06)
    done = optimize_coarse_to_fine(tiny, narrow, gray(32), plan_stages((32, 32), 4), brush)
    assert brush.lr == 0.015
    assert done.notes == [
        "step 2 gave no number; went back and halved the step to 0.03",
        "step 4 gave no number; went back and halved the step to 0.015",
    ]
    assert done.image.isfinite().all()
    assert float(done.image.min()) >= 0.449


def test_gives_up_on_a_loss_that_never_is_a_number(tiny: sl.Model) -> None:
    with pytest.raises(sl.SightlineError, match="not a finite number on the start"):
        optimize_coarse_to_fine(
            tiny,
            lambda size: Objective(
                "no", (), lambda model: lambda image, _: image.flatten(1).sum(1) * math.nan
            ),
            gray(32),
            plan_stages((32, 32), 3),
            StageOptimizer("adam", 0.1),
        )


def test_stops_when_told_to_and_is_of_full_size(tiny: sl.Model) -> None:
    seen: list[tuple[int, int]] = []
    done = optimize_coarse_to_fine(
        tiny, towards, gray(32), plan_stages((64, 64), 5, min_side=32), StageOptimizer("adam", 0.05),
        callback=lambda step: seen.append((step.index, step.total)) or step.index == 7,
    )  # fmt: skip
    assert done.stopped
    assert seen == [(index, 15) for index in range(1, 8)]
    assert done.image.shape == (1, 3, 64, 64)


def test_coarse_first_weighs_cosines_by_their_frequency() -> None:
    """A wave over the height is multiplied by 1/frequency^power; nothing crosses from one edge to the opposite one."""
    weigh = make_lowpass_preconditioner(torch.zeros(1, 3, 48, 32), 0.7)
    for waves in (0.5, 1, 4, 10):
        wave = (
            torch.cos(2 * torch.pi * waves * (torch.arange(48) + 0.5) / 48)
            .view(1, 1, 48, 1)
            .expand(1, 3, 48, 32)
        )
        torch.testing.assert_close(
            weigh(wave), wave * (max(waves, 1) / 4) ** -0.7, rtol=1e-4, atol=1e-4
        )
    edge = torch.zeros(1, 3, 48, 32)
    edge[..., 0] = 1
    assert float(weigh(edge)[..., -1].abs().max()) < 0.1 * float(weigh(edge)[..., 0].abs().max())
    one, two = torch.randn(2, 1, 3, 200, 140, generator=torch.Generator().manual_seed(0))
    weigh = make_lowpass_preconditioner(one, 0.7)
    assert float((one * weigh(two)).sum()) == pytest.approx(
        float((two * weigh(one)).sum()), rel=1e-3
    )
    assert float((one * weigh(one)).sum()) > 0
