"""Gradients of any score."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sightline.errors import SightlineError, guard_backward
from sightline.models.heads.gradients import differentiate_scores


def test_the_gradient_of_the_sum_of_the_scores() -> None:
    x = torch.rand(2, 3, requires_grad=True, generator=torch.Generator().manual_seed(1))
    scores = x.pow(3).sum(1)
    gradient = differentiate_scores(scores, x, "x", retain_graph=True)
    torch.testing.assert_close(gradient, 3 * x.detach().square())
    assert torch.equal(differentiate_scores(scores, x, "x"), gradient)
    with pytest.raises(SightlineError, match="second time"):
        differentiate_scores(scores, x, "x")


def test_scores_without_a_gradient() -> None:
    x = torch.rand(2, 3, requires_grad=True)
    unrelated = torch.rand(2, 3, requires_grad=True)
    with pytest.raises(SightlineError, match=r"output has no gradient with respect to the image: "):
        differentiate_scores(x.detach().sum(1), x, "the image")
    with pytest.raises(SightlineError, match="the score does not depend on 'conv1'; choose anoth"):
        differentiate_scores(x.square().sum(1), unrelated, "'conv1'")
    with pytest.raises(SightlineError, match=r"no gradient with respect to conv2: some step of it"):
        differentiate_scores(x.square().sum(1), unrelated.detach(), "conv2")


class Uneven(torch.autograd.Function):
    """A step whose backward pass raises."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, error: Exception) -> Tensor:
        ctx.error = error
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        raise ctx.error


def test_a_backward_pass_that_fails_is_one_line() -> None:
    x = torch.rand(2, 3, requires_grad=True)
    scores = Uneven.apply(x, NotImplementedError("no kernel\nfor this"))
    message = r"backward pass fails \(NotImplementedError: no kernel\); methods that only run"
    with pytest.raises(SightlineError, match=message):
        differentiate_scores(scores.sum(1), x, "the image")


def test_a_step_that_overwrites_what_its_gradient_needs_is_named() -> None:
    x = torch.rand(2, 3, requires_grad=True)
    scores = x.exp()
    scores.add_(1)
    with pytest.raises(SightlineError, match=r"write y = y \* 2 in place of y \*= 2"):
        differentiate_scores(scores.sum(1), x, "the image")


def test_a_lack_of_memory_is_no_fault_of_the_network() -> None:
    with pytest.raises(RuntimeError, match="out of memory"), guard_backward():
        raise RuntimeError("CUDA out of memory")
