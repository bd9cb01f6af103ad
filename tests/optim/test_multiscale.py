"""Coarse to fine: the sizes, the state that is carried over, and scores that are not finite."""

import math

import pytest
import torch
from helpers import smooth
from torch import Tensor
from torch.nn import functional as F

import sightline as sl
from sightline.images.transforms import resize_bicubic
from sightline.optim.lbfgs import LBFGS
from sightline.optim.multiscale import (
    AveragedPixels,
    StageOptimizer,
    make_lowpass_preconditioner,
    optimize_coarse_to_fine,
    plan_stages,
)
from sightline.optim.objectives.objective import Objective
from sightline.optim.optimizers import Adam, BaseOptimizer

TARGET = 0.2 + 0.6 * smooth(1, 96, 7)[..., :64, :]


def resize_target(size: tuple[int, int]) -> Tensor:
    return F.interpolate(TARGET, size=size, mode="bilinear", antialias=True)


def distance_objective(size: tuple[int, int]) -> Objective:
    """Minus the squared distance to the target."""
    target = resize_target(size)
    return Objective(
        "distance", (), lambda _: lambda image, _: -(image - target).square().flatten(1).sum(1)
    )


def make_gray(height: int, width: int) -> Tensor:
    return torch.full((1, 3, height, width), 0.5)


def test_sizes_grow_by_the_root_of_two_to_the_final_size() -> None:
    plan = plan_stages((512, 768), 50, first_steps_factor=2)
    assert [stage.size for stage in plan] == [
        (128, 192),
        (181, 272),
        (256, 384),
        (362, 543),
        (512, 768),
    ]
    assert [stage.steps for stage in plan] == [100, 50, 50, 50, 50]


def test_a_small_image_has_one_stage_of_plain_length() -> None:
    (stage,) = plan_stages((100, 140), 5, first_steps_factor=2)
    assert (stage.size, stage.steps) == ((100, 140), 5)


@pytest.mark.parametrize(
    ("algorithm", "lr", "tolerance"), [("lbfgs", 1.0, 1e-3), ("adam", 0.05, 0.1)]
)
def test_it_reaches_the_target_through_all_sizes(
    tiny: sl.Model, algorithm: str, lr: float, tolerance: float
) -> None:
    plan = plan_stages((64, 96), 25, min_side=32)
    start = make_gray(32, 48)
    result = optimize_coarse_to_fine(
        tiny,
        distance_objective,
        start,
        plan,
        StageOptimizer(algorithm, lr),  # type: ignore[arg-type]
        average=algorithm == "adam",
    )
    assert result.image.shape == (1, 3, 64, 96)
    assert len(result.scores) == 75
    shares = [32 * 48 / (64 * 96), 45 * 68 / (64 * 96), 1]
    assert result.weighted_evaluations == pytest.approx(25 * sum(shares))
    assert float((result.image - TARGET).abs().max()) < tolerance
    first_score = float(distance_objective((32, 48)).bind(tiny)(start, {}))
    assert result.scores[0] == pytest.approx(first_score, rel=1e-4), "scores are not scaled"


@pytest.mark.parametrize(("algorithm", "optimizer_class"), [("adam", Adam), ("lbfgs", LBFGS)])
def test_every_optimizer_keeps_its_state_from_stage_to_stage(
    tiny: sl.Model, algorithm: str, optimizer_class: type
) -> None:
    stage_optimizer = StageOptimizer(algorithm, 0.01)  # type: ignore[arg-type]
    plan = plan_stages((64, 96), 4, min_side=32)
    optimize_coarse_to_fine(tiny, distance_objective, make_gray(32, 48), plan, stage_optimizer)
    assert stage_optimizer.previous is not None
    optimizer = stage_optimizer.previous.optimizer
    assert isinstance(optimizer, optimizer_class)
    if isinstance(optimizer, Adam):
        assert optimizer.step_count == 12, "three sizes of four steps"
        assert optimizer.first_moments[0].shape == (1, 3, 64, 96)
        assert optimizer.second_moments[0].shape == (1, 3, 64, 96)
        assert bool((optimizer.second_moments[0] >= 0).all())
    else:
        # The first step of a stage adds no pair: there is no step before it at that size.
        assert optimizer.memories[0].pair_count == 9


def test_a_stage_inherits_the_scale_of_its_objective() -> None:
    """The curvature of an objective divided by 4 is half that of one divided by 2."""

    ratios: list[float] = []

    class Recorder(LBFGS):
        def inherit_state(self, previous: BaseOptimizer, objective_ratio: float) -> None:
            ratios.append(objective_ratio)

    stage_optimizer = StageOptimizer("lbfgs", 1.0)
    stage_optimizer.make_lbfgs = Recorder  # type: ignore[method-assign]
    stage_optimizer.make_optimizer([torch.zeros(1, 3, 4, 6)], scale=2.0)
    stage_optimizer.finish_stage(keep_state=True)
    stage_optimizer.make_optimizer([torch.zeros(1, 3, 8, 12)], scale=4.0)
    stage_optimizer.finish_stage(keep_state=False)
    stage_optimizer.make_optimizer([torch.zeros(1, 3, 16, 24)], scale=8.0)
    assert ratios == [0.5]


def test_lbfgs_with_its_state_gets_nearer_than_without(tiny: sl.Model) -> None:
    """In a fixed number of steps at each size, of curvatures from 1 to 100 from top to bottom."""

    def make_objective(size: tuple[int, int]) -> Objective:
        """A mean over the pixels: the same number at every size."""
        weights = torch.logspace(0, 2, size[0]).view(1, 1, -1, 1)
        target = resize_target(size)

        def score(image: Tensor, _: object) -> Tensor:
            return -(weights * (image - target).square()).flatten(1).mean(1)

        return Objective("steep", (), lambda _: score)

    plan = plan_stages((64, 96), 6, min_side=16)
    last_scores: list[float] = []
    # The same enlargement, but one that may shift the image for all that is known.
    for enlarge in (None, resize_bicubic):
        result = optimize_coarse_to_fine(
            tiny,
            make_objective,
            make_gray(16, 24),
            plan,
            StageOptimizer("lbfgs", 1.0),
            enlarge=enlarge,
        )
        last_scores.append(result.scores[-1])
    with_state, without_state = last_scores
    assert with_state > 0.5 * without_state


def test_the_average_is_the_weighted_mean_of_the_images() -> None:
    pixels = AveragedPixels(torch.zeros(1, 3, 2, 3), decay=0.9)
    assert torch.equal(pixels.average, torch.zeros(1, 3, 2, 3))
    for value in (0.1, 0.5, 1.5):
        pixels.pixels.data.fill_(value)
        pixels.project_()
    weights = [0.1 * 0.9**age for age in (2, 1, 0)]
    clamped = [0.1, 0.5, 1.0]
    products = [weight * value for weight, value in zip(weights, clamped, strict=True)]
    expected = sum(products) / sum(weights)
    torch.testing.assert_close(pixels.average, torch.full((1, 3, 2, 3), expected))


def test_a_score_that_is_not_finite_halves_the_step_and_is_noted(tiny: sl.Model) -> None:
    """A score that is NaN where a whole step leads, but not half of one."""

    def make_objective(_: tuple[int, int]) -> Objective:
        def score(image: Tensor, _: object) -> Tensor:
            distance = (image - 0.45).square().flatten(1).sum(1)
            is_broken = image.flatten(1).amin(1) < 0.46
            return torch.where(is_broken, math.nan, -distance)

        return Objective("narrow", (), lambda _: score)

    stage_optimizer = StageOptimizer("adam", 0.06)
    plan = plan_stages((32, 48), 4)
    result = optimize_coarse_to_fine(tiny, make_objective, make_gray(32, 48), plan, stage_optimizer)
    assert stage_optimizer.lr == 0.015
    assert result.notes == [
        "the score of step 2 was not a finite number; the step size was halved to 0.03",
        "the score of step 4 was not a finite number; the step size was halved to 0.015",
    ]
    assert len(result.scores) == 4
    assert result.image.isfinite().all()
    assert float(result.image.min()) >= 0.449


def test_it_gives_up_after_six_halvings(tiny: sl.Model) -> None:
    """A score that is NaN everywhere but at the start."""
    start = make_gray(32, 48)

    def make_objective(_: tuple[int, int]) -> Objective:
        def score(image: Tensor, _: object) -> Tensor:
            values = image.flatten(1).sum(1)
            return torch.where((image == start).all(), values, math.nan)

        return Objective("start only", (), lambda _: score)

    stage_optimizer = StageOptimizer("adam", 0.128)
    with pytest.raises(sl.SightlineError, match="not a finite number even with a step size of"):
        optimize_coarse_to_fine(
            tiny, make_objective, start, plan_stages((32, 48), 20), stage_optimizer
        )
    assert stage_optimizer.lr == 0.001, "halved six times, and refused at the seventh"


def test_it_refuses_a_score_that_is_never_finite(tiny: sl.Model) -> None:
    nowhere = Objective("nan", (), lambda _: lambda image, _: image.flatten(1).sum(1) * math.nan)
    with pytest.raises(sl.SightlineError, match="not a finite number at the start"):
        optimize_coarse_to_fine(
            tiny,
            lambda _: nowhere,
            make_gray(32, 48),
            plan_stages((32, 48), 3),
            StageOptimizer("adam", 0.1),
        )


def test_a_callback_stops_the_run_and_the_image_has_the_final_size(tiny: sl.Model) -> None:
    steps: list[tuple[int, int]] = []

    def stop_at_7(step) -> bool:
        steps.append((step.index, step.total))
        return step.index == 7

    result = optimize_coarse_to_fine(
        tiny,
        distance_objective,
        make_gray(32, 48),
        plan_stages((64, 96), 5, min_side=32),
        StageOptimizer("adam", 0.05),
        callback=stop_at_7,
    )
    assert result.stopped
    assert steps == [(index, 15) for index in range(1, 8)]
    assert result.image.shape == (1, 3, 64, 96)


# ── the preconditioner of L-BFGS ──


@pytest.mark.parametrize("axis", [2, 3])
@pytest.mark.parametrize("waves", [0.5, 1, 4, 10])
def test_cosines_are_weighted_by_their_frequency(axis: int, waves: float) -> None:
    """A wave along the height of 48 pixels, or as fine a one along the width of 32."""
    length = (48, 32)[axis - 2]
    precondition = make_lowpass_preconditioner(torch.zeros(1, 3, 48, 32), 0.7)
    waves_per_axis = round(2 * waves * length / 48) / 2
    waves_per_side = waves_per_axis * 48 / length
    position = (torch.arange(length) + 0.5) / length
    line = torch.cos(2 * torch.pi * waves_per_axis * position)
    wave = line.view(-1, 1) if axis == 2 else line
    wave = wave.expand(1, 3, 48, 32)
    expected = wave * (max(waves_per_side, 1) / 4) ** -0.7
    torch.testing.assert_close(precondition(wave), expected, rtol=1e-4, atol=1e-4)


def test_the_preconditioner_does_not_tie_opposite_edges() -> None:
    precondition = make_lowpass_preconditioner(torch.zeros(1, 3, 48, 32), 0.7)
    edge = torch.zeros(1, 3, 48, 32)
    edge[..., 0] = 1
    magnitude = precondition(edge).abs()
    assert float(magnitude[..., -1].max()) < 0.1 * float(magnitude[..., 0].max())


def test_the_preconditioner_is_symmetric_and_positive() -> None:
    """Also where the image has more frequencies than are distinguished."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 1, 3, 200, 140, generator=generator)
    precondition = make_lowpass_preconditioner(x, 0.7)
    x_product = float((x * precondition(y)).sum())
    y_product = float((y * precondition(x)).sum())
    assert x_product == pytest.approx(y_product, rel=1e-3)
    assert float((x * precondition(x)).sum()) > 0
