"""Adam and NAdam to the bit as torch has them, and Yosinski's steps of one gain in closed form."""

import pytest
import torch

from sightline.optim.optimizers import Adam, FixedGainDescent


@pytest.mark.parametrize("nesterov", [False, True])
def test_adam_is_torchs_to_the_bit(nesterov: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    one, two = torch.randn(3, 4, generator=generator), torch.randn(2, 5, generator=generator)
    ours = [value.clone().requires_grad_() for value in (one, two)]
    theirs = [value.clone().requires_grad_() for value in (one, two)]
    stepper = Adam(ours, 0.05, nesterov=nesterov)
    referee = (torch.optim.NAdam if nesterov else torch.optim.Adam)(theirs, lr=0.05, foreach=False)
    for _ in range(40):
        for a, b in zip(ours, theirs, strict=True):
            b.grad = torch.randn(a.shape, generator=generator) * 10
            a.grad = b.grad.clone()
        stepper.step()
        referee.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    stepper.zero_grad()
    assert all(a.grad is None for a in ours)


def test_a_step_of_one_gain_raises_a_linear_score_by_it() -> None:
    weight = torch.tensor([[[[3.0, 4.0]]], [[[0.03, 0.04]]]])
    x = torch.zeros_like(weight).requires_grad_()
    x.grad = -weight
    FixedGainDescent([x], max_rate=10.0, gain=2.0).step()
    gained = (weight * x.detach()).flatten(1).sum(1)
    assert gained.tolist() == pytest.approx([2.0, 10.0 * 0.0025]), (
        "the second is held back by the largest rate"
    )
