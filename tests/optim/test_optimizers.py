"""Adam and NAdam to the bit as in torch, and fixed steps in closed form."""

import pytest
import torch
from torch import Tensor

from sightline.optim.lbfgs import LBFGS
from sightline.optim.optimizers import (
    Adam,
    BaseOptimizer,
    FixedGainDescent,
    SteepestDescent,
    normalize_gradient,
)


def random_tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("nesterov", [False, True])
def test_adam_is_torchs_to_the_bit(nesterov: bool) -> None:
    starts = [random_tensor(3, 4), random_tensor(2, 5, seed=1)]
    parameters = [start.clone().requires_grad_() for start in starts]
    torch_parameters = [start.clone().requires_grad_() for start in starts]
    optimizer = Adam(parameters, 0.05, nesterov=nesterov)
    torch_class = torch.optim.NAdam if nesterov else torch.optim.Adam
    torch_optimizer = torch_class(torch_parameters, lr=0.05, foreach=False)
    for step in range(40):
        for parameter, torch_parameter in zip(parameters, torch_parameters, strict=True):
            gradient = random_tensor(*parameter.shape, seed=step + 2) * 10
            parameter.grad = gradient
            torch_parameter.grad = gradient.clone()
        optimizer.step()
        torch_optimizer.step()
    for parameter, torch_parameter in zip(parameters, torch_parameters, strict=True):
        assert torch.equal(parameter, torch_parameter)
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in parameters)


def test_a_leaf_without_gradient_does_not_move() -> None:
    parameters = [random_tensor(2, 3).requires_grad_(), random_tensor(2, 3).requires_grad_()]
    parameters[1].grad = torch.ones(2, 3)
    Adam(parameters, 0.05).step()
    assert torch.equal(parameters[0].detach(), random_tensor(2, 3))
    assert not torch.equal(parameters[1].detach(), random_tensor(2, 3))


# ── going on at another size ──


@pytest.mark.parametrize("nesterov", [False, True])
def test_adam_of_the_same_size_continues_as_if_it_had_not_stopped(nesterov: bool) -> None:
    start = random_tensor(2, 3, 4, 6)
    uninterrupted = start.clone().requires_grad_()
    interrupted = start.clone().requires_grad_()
    optimizer = Adam([uninterrupted], 0.05, nesterov=nesterov)
    first_half = Adam([interrupted], 0.05, nesterov=nesterov)
    second_half = Adam([interrupted], 0.05, nesterov=nesterov)
    for step in range(10):
        gradient = random_tensor(2, 3, 4, 6, seed=step + 1)
        uninterrupted.grad = gradient
        interrupted.grad = gradient
        if step == 5:
            second_half.inherit_state(first_half, objective_ratio=1.0)
        optimizer.step()
        (first_half if step < 5 else second_half).step()
    assert torch.equal(interrupted, uninterrupted)


def test_adam_at_another_size_resizes_every_leafs_moments() -> None:
    """A linear ramp down and one to the right stay ramps, away from the borders."""
    down = torch.arange(8.0).view(1, 1, 8, 1).expand(1, 1, 8, 12)
    right = torch.arange(12.0).view(1, 1, 1, 12).expand(1, 1, 8, 12)
    small = Adam([torch.zeros(1, 1, 8, 12), torch.zeros(1, 1, 8, 12)], 0.1)
    small.first_moments = [down, right]
    small.second_moments = [right, down]
    small.step_count = 7
    large = Adam([torch.zeros(1, 1, 16, 36), torch.zeros(1, 1, 24, 12)], 0.1)
    large.inherit_state(small, objective_ratio=3.0)
    assert large.step_count == 7
    # Pixel centres: row i of 16 lies at (i + 0.5) / 2 − 0.5 of 8.
    fine_down = (torch.arange(16) + 0.5) / 2 - 0.5
    fine_right = (torch.arange(36) + 0.5) / 3 - 0.5
    torch.testing.assert_close(large.first_moments[0][0, 0, 1:-1, 5], fine_down[1:-1])
    torch.testing.assert_close(large.second_moments[0][0, 0, 5, 1:-1], fine_right[1:-1])
    assert large.first_moments[1].shape == large.second_moments[1].shape == (1, 1, 24, 12)
    torch.testing.assert_close(large.first_moments[1][0, 0, 3], right[0, 0, 0])


@pytest.mark.parametrize("optimizer_class", [Adam, LBFGS])
def test_only_the_state_of_the_same_class_is_taken_over(optimizer_class: type) -> None:
    parameter = random_tensor(1, 3, 4, 6)
    optimizer = optimizer_class([parameter], 0.1)
    with pytest.raises(TypeError, match="can't take over the state of SteepestDescent"):
        optimizer.inherit_state(SteepestDescent([parameter], 0.1, "l2"), 1.0)


def test_an_optimizer_without_state_takes_over_nothing() -> None:
    parameter = random_tensor(1, 3, 4, 6)
    optimizer: BaseOptimizer = SteepestDescent([parameter], 0.1, "l2")
    optimizer.inherit_state(SteepestDescent([parameter], 0.2, "linf"), 1.0)
    assert vars(optimizer) == {"parameters": [parameter], "lr": 0.1, "norm": "l2"}


# ── steps of a fixed length or gain ──


@pytest.mark.parametrize("shape", [(3, 3, 4, 5), (2, 3, 2, 4, 5)])
def test_gradients_are_normalized_for_each_image(shape: tuple[int, ...]) -> None:
    scales = torch.logspace(-12, 3, shape[0]).view(-1, *[1] * (len(shape) - 1))
    gradient = random_tensor(*shape) * scales
    ones = torch.ones(shape[0])
    l2_normalized = normalize_gradient(gradient, "l2").flatten(1)
    mean_normalized = normalize_gradient(gradient, "mean").flatten(1)
    assert torch.equal(normalize_gradient(gradient, "linf"), gradient.sign())
    assert torch.allclose(l2_normalized.norm(dim=1), ones, atol=1e-5)
    assert torch.allclose(mean_normalized.abs().mean(1), ones, atol=1e-5)
    for normalized in (l2_normalized, mean_normalized):
        cosine = torch.cosine_similarity(
            normalized.double(), gradient.flatten(1).double(), eps=1e-30
        )
        assert torch.allclose(cosine, torch.ones_like(cosine), atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2", "mean"])
def test_without_gradient_nothing_moves(norm: str) -> None:
    zeros = torch.zeros(2, 3, 4, 6)
    assert torch.equal(normalize_gradient(zeros, norm), zeros)
    start = random_tensor(3, 3, 4, 6)
    parameter = start.clone().requires_grad_()
    parameter.grad = torch.zeros_like(start)
    parameter.grad[1] = 1
    SteepestDescent([parameter], 0.1, norm).step()
    assert torch.equal(parameter[[0, 2]], start[[0, 2]])
    assert not torch.equal(parameter[1], start[1])


def test_a_step_of_fixed_gain_raises_a_linear_score_by_it() -> None:
    weight = torch.tensor([[[[3.0, 4.0]]], [[[0.03, 0.04]]]])
    x = torch.zeros_like(weight).requires_grad_()
    x.grad = -weight
    FixedGainDescent([x], max_rate=10.0, gain=2.0).step()
    gains = (weight * x.detach()).flatten(1).sum(1)
    assert gains.tolist() == pytest.approx([2.0, 10.0 * 0.0025]), (
        "the second is limited by the largest rate"
    )
