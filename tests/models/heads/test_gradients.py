"""Gradients of any score."""

import pytest
import torch

from sightline.errors import SightlineError
from sightline.models.heads.gradients import differentiate_scores


def test_the_gradient_of_the_sum_of_the_scores() -> None:
    x = torch.rand(2, 3, requires_grad=True, generator=torch.Generator().manual_seed(1))
    scores = x.pow(3).sum(1)
    gradient = differentiate_scores(scores, x, "x", retain_graph=True)
    torch.testing.assert_close(gradient, 3 * x.detach().square())
    assert torch.equal(differentiate_scores(scores, x, "x"), gradient)
    with pytest.raises(RuntimeError, match="second time"):
        differentiate_scores(scores, x, "x")


def test_scores_without_a_gradient() -> None:
    x = torch.rand(2, 3, requires_grad=True)
    unrelated = torch.rand(2, 3, requires_grad=True)
    with pytest.raises(SightlineError, match=r"output has no gradient with respect to the image: "):
        differentiate_scores(x.detach().sum(1), x, "the image")
    with pytest.raises(SightlineError, match="the score does not depend on 'conv1'; choose anoth"):
        differentiate_scores(x.square().sum(1), unrelated, "'conv1'")
