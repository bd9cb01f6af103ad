"""Norm balls: laws of a projection, and nearest points derived by other means."""

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
    keep_feasible_gradient,
    project_offset,
    project_onto_ball,
    sample_unit_offset,
)

FEW = settings(max_examples=40, deadline=None, derandomize=True)
SEEDS = st.integers(0, 2**31 - 1)
SPECIAL_EPS = [0.0, 1e-6, 1 / 255, 4 / 255, 0.5, 1.0, 2.0, 100.0]
EPS = st.one_of(st.sampled_from(SPECIAL_EPS), st.floats(0, 3))
NORMS = st.sampled_from(["linf", "l2", "l1"])


def make_image(seed: int, count: int = 2) -> Tensor:
    """Images with many values exactly black or white, where ball and range meet."""
    uniform = torch.rand(count, 3, 4, 5, generator=torch.Generator().manual_seed(seed))
    return (uniform * 1.6 - 0.3).clamp(0, 1)


def make_noise(seed: int, size: float, count: int = 2) -> Tensor:
    return torch.randn(count, 3, 4, 5, generator=torch.Generator().manual_seed(seed + 1)) * size


def measure_norms(offset: Tensor, norm: str) -> Tensor:
    """The definitions, in double precision."""
    flat = offset.detach().double().flatten(1)
    if norm == "linf":
        return flat.abs().amax(1)
    if norm == "l2":
        return flat.square().sum(1).sqrt()
    return flat.abs().sum(1)


@given(SEEDS, EPS, NORMS, st.sampled_from([1e-3, 0.1, 1.0, 30.0]))
@FEW
def test_a_projection_lies_in_the_ball_and_in_range(
    seed: int, eps: float, norm: str, size: float
) -> None:
    center = make_image(seed)
    projected = project_onto_ball(center + make_noise(seed, size), center, eps, norm)
    norms = measure_norms(projected - center, norm)
    assert (norms <= eps * (1 + 1e-6) + 2e-6).all()
    assert projected.min() >= 0
    assert projected.max() <= 1
    assert torch.allclose(compute_image_norms(projected - center, norm).double(), norms, atol=1e-5)


@given(SEEDS, EPS, NORMS, st.sampled_from([0.1, 1.0, 30.0]))
@FEW
def test_a_second_projection_changes_nothing(seed: int, eps: float, norm: str, size: float) -> None:
    center = make_image(seed)
    once = project_onto_ball(center + make_noise(seed, size), center, eps, norm)
    twice = project_onto_ball(once, center, eps, norm)
    assert (twice - once).abs().max() <= (0 if norm == "linf" else 2e-6)


@given(SEEDS, st.floats(0.001, 2), NORMS, st.floats(0, 0.999))
@FEW
def test_points_inside_are_left_alone(seed: int, eps: float, norm: str, fraction: float) -> None:
    center, offset = make_image(seed), make_noise(seed, 1.0)
    scale = (fraction * eps / measure_norms(offset, norm)).float()
    inside = (center + offset * scale.view(-1, 1, 1, 1)).clamp(0, 1)
    assert torch.equal(project_onto_ball(inside, center, eps, norm), inside)


@given(SEEDS, NORMS)
@FEW
def test_every_image_has_its_own_ball_and_radius(seed: int, norm: str) -> None:
    center = make_image(seed, 3)
    sizes = torch.tensor([1e-3, 1.0, 50.0]).view(-1, 1, 1, 1)
    image = center + make_noise(seed, 1.0, 3) * sizes
    eps = torch.tensor([0.5, 0.01, 0.3])
    together = project_onto_ball(image, center, eps, norm)
    alone = [
        project_onto_ball(image[i : i + 1], center[i : i + 1], float(eps[i]), norm)
        for i in range(3)
    ]
    assert torch.allclose(together, torch.cat(alone), atol=1e-6)


@given(SEEDS, st.floats(0.01, 3), st.sampled_from([0.1, 1.0, 10.0]), NORMS)
@FEW
def test_no_point_of_the_ball_is_nearer(seed: int, eps: float, size: float, norm: str) -> None:
    offset = make_noise(seed, size)
    nearest = project_offset(offset, eps, norm)
    distance = measure_norms(offset - nearest, "l2")
    directions = make_noise(seed + 3, 1.0, 2 * 100)
    radius = torch.rand(2 * 100, generator=torch.Generator().manual_seed(seed)) * eps
    scale = radius / measure_norms(directions, norm).float()
    candidates = (directions * scale.view(-1, 1, 1, 1)).view(2, 100, 3, 4, 5)
    # Half of them around the projection.
    candidates[:, :50] = (nearest[:, None] + 0.01 * candidates[:, :50]) / 1.02
    for i in range(2):
        is_inside = measure_norms(candidates[i], norm) <= eps
        distances = measure_norms(candidates[i] - offset[i], "l2")
        assert (distances[is_inside] >= distance[i] - 1e-5).all()


def shrink(offset: Tensor, limit: Tensor, threshold: float) -> Tensor:
    """Magnitudes smaller by the threshold, down to zero, and at most at the limit."""
    return offset.sign() * torch.minimum((offset.abs() - threshold).clamp_min(0), limit)


@given(SEEDS, st.floats(0.01, 8), st.sampled_from([0.05, 0.3, 2.0]), st.booleans())
@FEW
def test_the_nearest_point_of_an_l1_ball_by_bisection(
    seed: int, eps: float, size: float, in_range: bool
) -> None:
    """The threshold by bisection instead of sorting (Duchi 2008, eq. 3).

    For the ball alone, and for the ball within [0, 1].
    """
    center, offset = make_image(seed).double(), make_noise(seed, size).double()
    limit = torch.full_like(offset, torch.inf)
    if in_range:
        limit = torch.where(offset > 0, 1 - center, center)
    expected: list[Tensor] = []
    for row in range(2):
        low, high = 0.0, float(offset[row].abs().max())
        for _ in range(80):
            middle = (low + high) / 2
            if float(shrink(offset[row], limit[row], middle).abs().sum()) > eps:
                low = middle
            else:
                high = middle
        unshrunk = shrink(offset[row], limit[row], 0.0)
        is_inside = float(unshrunk.abs().sum()) <= eps
        expected.append(unshrunk if is_inside else shrink(offset[row], limit[row], high))

    if in_range:
        image = (center + offset).float()
        projected = project_onto_ball(image, center.float(), eps, "l1") - center.float()
    else:
        projected = project_offset(offset.float(), eps, "l1")
    assert torch.allclose(projected.double(), torch.stack(expected), atol=3e-6)


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("eps", [0.3, 1.0, 5.0])
def test_the_nearest_point_of_a_ball_by_an_optimizer(eps: float, norm: str) -> None:
    offset = make_noise(4, 0.6, 1)[:, :, :2, :2]
    goal = offset.double().numpy().ravel()
    # For l1 the point is in the orthant of the goal, where the norm is linear.
    side = np.sign(goal)
    constraints = [
        {"type": "ineq", "fun": lambda x: eps - (side * x).sum()},
        {"type": "ineq", "fun": lambda x: side * x},
    ]
    if norm == "l2":
        constraints = [
            {"type": "ineq", "fun": lambda x: eps**2 - (x**2).sum(), "jac": lambda x: -2 * x}
        ]
    solution = minimize(
        lambda x: ((x - goal) ** 2).sum(),
        goal * 0.1,
        jac=lambda x: 2 * (x - goal),
        constraints=constraints,
        method="SLSQP",
        options={"ftol": 1e-9},
    )
    assert solution.success
    projected = project_offset(offset, eps, norm).numpy().ravel()
    assert np.allclose(projected, solution.x, atol=3e-4)


def test_an_offset_inside_keeps_its_length_under_l2() -> None:
    """A published library clamps the product instead of the ratio: it moves 0.2 to 2.0."""
    offset = torch.zeros(1, 3, 2, 2)
    offset[0, 0, 0, 0] = 0.2
    zero = torch.zeros_like(offset)
    for norm in ("l2", "l1"):
        assert torch.equal(project_offset(offset, 2.0, norm), offset)
        assert project_offset(offset, 0.1, norm).norm().item() == pytest.approx(0.1)
        assert torch.equal(project_offset(offset, 0.0, norm), zero)
        assert torch.equal(project_offset(zero, 0.1, norm), zero)


# ── random points and steps ──


@given(SEEDS, st.floats(0.01, 2), NORMS)
@FEW
def test_random_points_lie_in_the_ball_and_differ(seed: int, eps: float, norm: str) -> None:
    ball = NormBall(make_image(seed, 4), eps, norm)
    points = [ball.sample_image(torch.Generator().manual_seed(k)) for k in (seed, seed, seed + 1)]
    assert (measure_norms(points[0] - ball.center, norm) <= eps * (1 + 1e-6) + 2e-6).all()
    assert torch.equal(points[0], points[1])
    assert not torch.equal(points[0], points[2])


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_random_offsets_have_uniform_lengths_and_directions(norm: str) -> None:
    """On the l1 sphere magnitudes are those of a Dirichlet distribution: P(|x₁| < t) known."""
    images = torch.zeros(4000, 3, 1, 2)
    offset = sample_unit_offset(images, norm, torch.Generator().manual_seed(0))
    length = measure_norms(offset, norm)
    quartiles = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    assert torch.allclose(length.quantile(quartiles), quartiles, atol=0.03)
    direction = offset.double().flatten(1) / length[:, None]
    assert torch.allclose(direction.mean(0), torch.zeros(6, dtype=torch.float64), atol=0.03)
    if norm == "l1":
        # |x| is uniform on the simplex of 6: P(|x₁| < t) = 1 − (1 − t)⁵.
        for t in (0.1, 0.2, 0.4):
            share = (direction[:, 0].abs() < t).double().mean()
            assert float(share) == pytest.approx(1 - (1 - t) ** 5, abs=0.03)
    else:
        # The mean square of each of 6 coordinates of a uniform direction is 1/6.
        assert torch.allclose(
            direction.square().mean(0), torch.full((6,), 1 / 6, dtype=torch.float64), atol=0.02
        )


@given(SEEDS, NORMS)
@FEW
def test_a_steepest_step_has_norm_one_and_gains_most(seed: int, norm: str) -> None:
    center, gradient = torch.full((2, 3, 4, 5), 0.5), make_noise(seed, 1.0)
    ball = NormBall(center, 1.0, norm)
    step = ball.find_steepest_step(gradient, center)
    assert torch.allclose(measure_norms(step, norm), torch.ones(2, dtype=torch.float64), atol=1e-6)
    gain = (step * gradient).flatten(1).sum(1)
    dual = {"linf": "l1", "l2": "l2", "l1": "linf"}[norm]
    assert torch.allclose(gain.double(), measure_norms(gradient, dual), rtol=1e-5), (
        "no step of norm 1 gains more than the dual norm"
    )
    zero = torch.zeros_like(center)
    assert torch.equal(ball.find_steepest_step(zero, center), zero)


def test_an_l1_step_moves_only_values_with_room() -> None:
    image = torch.rand(1, 3, 16, 25, generator=torch.Generator().manual_seed(0))
    image[0, 0] = 1.0
    gradient = torch.ones(1, 3, 16, 25)
    gradient[0, 0] = 100.0
    step = NormBall(image, 1.0, "l1").find_steepest_step(gradient, image)
    assert (step[0, 0] == 0).all(), "white values can't grow"
    assert int((step != 0).sum()) == 12, "one in a hundred values moves"


def test_a_feasible_gradient_does_not_lead_out_of_range() -> None:
    image = torch.tensor([0.0, 0.0, 0.5, 0.5, 1.0, 1.0]).view(1, 1, 2, 3)
    gradient = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0]).view(1, 1, 2, 3)
    expected = torch.tensor([1.0, 0.0, 1.0, -1.0, 0.0, -1.0]).view(1, 1, 2, 3)
    assert torch.equal(keep_feasible_gradient(gradient, image), expected)


def test_without_a_radius_only_the_range_holds() -> None:
    image = make_noise(0, 1.0)
    for norm in ("linf", "l2", "l1"):
        ball = NormBall(make_image(0), float("inf"), norm)
        assert torch.equal(ball.project_image(image), image.clamp(0, 1))
