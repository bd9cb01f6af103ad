"""Balls of three norms: laws of a projection, and nearest points re-derived by other means."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

from sightline.methods.adversarial.attacks.norm_ball import (
    NormBall,
    compute_image_norms,
    project_offset,
    project_onto_ball,
)

TINY = settings(max_examples=40, deadline=None, derandomize=True)
SEEDS = st.integers(0, 2**31 - 1)
EPS = st.one_of(
    st.sampled_from([0.0, 1e-6, 1 / 255, 4 / 255, 0.5, 1.0, 2.0, 100.0]), st.floats(0, 3)
)
NORMS = st.sampled_from(["linf", "l2", "l1"])


def image_of(seed: int, count: int = 2) -> Tensor:
    """Pictures with many pixels exactly black and white, where the two limits meet."""
    wild = torch.rand(count, 3, 4, 5, generator=torch.Generator().manual_seed(seed)) * 1.6 - 0.3
    return wild.clamp(0, 1)


def noise_of(seed: int, size: float, count: int = 2) -> Tensor:
    return torch.randn(count, 3, 4, 5, generator=torch.Generator().manual_seed(seed + 1)) * size


def lengths(offset: Tensor, norm: str) -> Tensor:
    flat = offset.detach().double().flatten(1)
    return (
        flat.abs().amax(1)
        if norm == "linf"
        else flat.square().sum(1).sqrt()
        if norm == "l2"
        else flat.abs().sum(1)
    )


@given(SEEDS, EPS, NORMS, st.sampled_from([1e-3, 0.1, 1.0, 30.0]))
@TINY
def test_a_projection_stays_near_and_in_range(
    seed: int, eps: float, norm: str, size: float
) -> None:
    center = image_of(seed)
    found = project_onto_ball(center + noise_of(seed, size), center, eps, norm)
    assert (lengths(found - center, norm) <= eps * (1 + 1e-6) + 2e-6).all()
    assert found.min() >= 0
    assert found.max() <= 1
    assert torch.allclose(
        compute_image_norms(found - center, norm).double(), lengths(found - center, norm), atol=1e-5
    )


@given(SEEDS, EPS, NORMS, st.sampled_from([0.1, 1.0, 30.0]))
@TINY
def test_a_second_projection_changes_nothing(seed: int, eps: float, norm: str, size: float) -> None:
    center = image_of(seed)
    once = project_onto_ball(center + noise_of(seed, size), center, eps, norm)
    assert (project_onto_ball(once, center, eps, norm) - once).abs().max() <= (
        0 if norm == "linf" else 2e-6
    )


@given(SEEDS, st.floats(0.001, 2), NORMS, st.floats(0, 0.999))
@TINY
def test_points_inside_are_left_alone(seed: int, eps: float, norm: str, part: float) -> None:
    center, offset = image_of(seed), noise_of(seed, 1.0)
    offset = offset * (part * eps / lengths(offset, norm)).float().view(-1, 1, 1, 1)
    inside = (center + offset).clamp(0, 1)
    assert torch.equal(project_onto_ball(inside, center, eps, norm), inside)


@given(SEEDS, NORMS)
@TINY
def test_every_image_has_its_own_ball_and_radius(seed: int, norm: str) -> None:
    center, noise = (
        image_of(seed, 3),
        noise_of(seed, 1.0, 3) * torch.tensor([1e-3, 1.0, 50.0]).view(-1, 1, 1, 1),
    )
    eps = torch.tensor([0.5, 0.01, 0.3])
    together = project_onto_ball(center + noise, center, eps, norm)
    alone = [
        project_onto_ball((center + noise)[i : i + 1], center[i : i + 1], float(eps[i]), norm)
        for i in range(3)
    ]
    assert torch.allclose(together, torch.cat(alone), atol=1e-6)


@given(SEEDS, st.floats(0.01, 3), st.sampled_from([0.1, 1.0, 10.0]), NORMS)
@TINY
def test_no_point_of_the_ball_is_nearer(seed: int, eps: float, size: float, norm: str) -> None:
    offset = noise_of(seed, size)
    nearest = project_offset(offset, eps, norm)
    distance = lengths(offset - nearest, "l2")
    others = noise_of(seed + 3, 1.0, 2 * 100).view(2, 100, 3, 4, 5)
    radius = torch.rand(2, 100, generator=torch.Generator().manual_seed(seed)) * eps
    candidates = others * (radius / lengths(others.flatten(0, 1), norm).float().view(2, 100)).view(
        2, 100, 1, 1, 1
    )
    candidates[:, :50] = (
        nearest[:, None] + 0.01 * candidates[:, :50]
    ) / 1.02  # around the answer too
    for i in range(2):
        inside = lengths(candidates[i], norm) <= eps
        rival = lengths(candidates[i] - offset[i], "l2")[inside]
        assert (rival >= distance[i] - 1e-5).all()


@given(SEEDS, st.floats(0.01, 8), st.sampled_from([0.05, 0.3, 2.0]), st.booleans())
@TINY
def test_the_nearest_point_of_an_l1_ball_by_bisection(
    seed: int, eps: float, size: float, boxed: bool
) -> None:
    """The threshold by halving instead of sorting (Duchi 2008, eq. 3), for the ball alone and for the ball within [0, 1]."""
    center, offset = image_of(seed).double(), noise_of(seed, size).double()
    room = (
        torch.where(offset > 0, 1 - center, center) if boxed else torch.full_like(offset, torch.inf)
    )
    expected: list[Tensor] = []
    for one, most in zip(offset, room, strict=True):

        def shrunk(level: float, one: Tensor = one, most: Tensor = most) -> Tensor:
            return one.sign() * torch.minimum((one.abs() - level).clamp_min(0), most)

        low, high = 0.0, float(one.abs().max())
        for _ in range(80):
            middle = (low + high) / 2
            low, high = (middle, high) if float(shrunk(middle).abs().sum()) > eps else (low, middle)
        expected.append(shrunk(0.0) if float(shrunk(0.0).abs().sum()) <= eps else shrunk(high))
    in_range = (
        project_onto_ball((center + offset).float(), center.float(), eps, "l1") - center.float()
    )
    found = in_range if boxed else project_offset(offset.float(), eps, "l1")
    assert torch.allclose(found.double(), torch.stack(expected), atol=3e-6)


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("eps", [0.3, 1.0, 5.0])
def test_the_nearest_point_of_a_ball_by_an_optimizer(eps: float, norm: str) -> None:
    offset = noise_of(4, 0.6, 1)[:, :, :2, :2]
    goal = offset.double().numpy().ravel()
    # For l1 the point is in the orthant of the goal, where the norm is linear.
    side = np.sign(goal)
    limits = [
        {"type": "ineq", "fun": lambda x: eps - (side * x).sum()},
        {"type": "ineq", "fun": lambda x: side * x},
    ]
    if norm == "l2":
        limits = [{"type": "ineq", "fun": lambda x: eps**2 - (x**2).sum(), "jac": lambda x: -2 * x}]
    found = minimize(
        lambda x: ((x - goal) ** 2).sum(),
        goal * 0.1,
        jac=lambda x: 2 * (x - goal),
        constraints=limits,
        method="SLSQP",
        options={"ftol": 1e-9},
    )
    assert found.success
    assert np.allclose(project_offset(offset, eps, norm).numpy().ravel(), found.x, atol=3e-4)


def test_an_offset_inside_keeps_its_length_under_l2() -> None:
    """A published library clamps the product instead of the ratio: there, a point at 0.2 moves to 2.0."""
    offset = torch.zeros(1, 3, 2, 2)
    offset[0, 0, 0, 0] = 0.2
    for norm in ("l2", "l1"):
        assert torch.equal(project_offset(offset, 2.0, norm), offset)
        assert project_offset(offset, 0.1, norm).norm().item() == pytest.approx(0.1)
        assert torch.equal(project_offset(offset, 0.0, norm), torch.zeros_like(offset))
        assert torch.equal(
            project_offset(torch.zeros_like(offset), 0.1, norm), torch.zeros_like(offset)
        )


# ── random points and steps ──


@given(SEEDS, st.floats(0.01, 2), NORMS)
@TINY
def test_random_points_lie_in_the_ball_and_differ(seed: int, eps: float, norm: str) -> None:
    ball = NormBall(image_of(seed, 4), eps, norm)
    points = [ball.sample_image(torch.Generator().manual_seed(k)) for k in (seed, seed, seed + 1)]
    assert (lengths(points[0] - ball.center, norm) <= eps * (1 + 1e-6) + 2e-6).all()
    assert torch.equal(points[0], points[1])
    assert not torch.equal(points[0], points[2])


@given(SEEDS, NORMS)
@TINY
def test_a_steepest_step_has_length_one_and_gains_most(seed: int, norm: str) -> None:
    center, gradient = torch.full((2, 3, 4, 5), 0.5), noise_of(seed, 1.0)
    step = NormBall(center, 1.0, norm).find_steepest_step(gradient, center)
    assert torch.allclose(lengths(step, norm), torch.ones(2, dtype=torch.float64), atol=1e-6)
    gain = (step * gradient).flatten(1).sum(1)
    dual = {"linf": "l1", "l2": "l2", "l1": "linf"}[norm]
    assert torch.allclose(gain.double(), lengths(gradient, dual), rtol=1e-5), (
        "no step of length 1 gains more than the dual norm"
    )
    assert torch.equal(
        NormBall(center, 1.0, norm).find_steepest_step(torch.zeros_like(center), center),
        torch.zeros_like(center),
    )


def test_an_l1_step_moves_only_values_with_room() -> None:
    image, gradient = (
        torch.rand(1, 3, 20, 20, generator=torch.Generator().manual_seed(0)),
        torch.ones(1, 3, 20, 20),
    )
    gradient[0, 0] = 100.0
    image[0, 0] = 1.0
    step = NormBall(image, 1.0, "l1").find_steepest_step(gradient, image)
    assert (step[0, 0] == 0).all(), "white values can't grow"
    assert int((step != 0).sum()) == 12, "one in a hundred values moves"


def test_without_a_radius_only_the_range_holds() -> None:
    image = noise_of(0, 1.0)
    for norm in ("linf", "l2", "l1"):
        assert torch.equal(
            NormBall(image_of(0), float("inf"), norm).project_image(image), image.clamp(0, 1)
        )
