"""L-BFGS against torch's, step by step."""

import pytest
import torch
from torch import Tensor

from sightline.optim.lbfgs import LBFGS


def problem(place: Tensor) -> Tensor:
    """A valley that is no quadratic: N numbers of N×D."""
    return (
        (place[:, 1:] - place[:, :-1].square()).square() * 3 + (1 - place[:, :-1]).square()
    ).sum(1)


def start(count: int) -> Tensor:
    return (
        torch.randn(count, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        * 0.5
    )


def descended(optimizer: LBFGS | torch.optim.Optimizer, place: Tensor) -> Tensor:
    """One step, whether the optimizer wants a closure or not."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = problem(place).sum()
        loss.backward()
        return loss

    if isinstance(optimizer, LBFGS):
        closure()
        optimizer.step()
    else:
        optimizer.step(closure)  # type: ignore[arg-type]
    return place.detach().clone()


@pytest.mark.parametrize("history", [1, 3, 10])
@pytest.mark.parametrize("lr", [1.0, 0.5])
def test_goes_where_torch_goes(history: int, lr: float) -> None:
    mine, theirs = start(1).requires_grad_(), start(1).requires_grad_()
    ours = LBFGS([mine], lr=lr, history=history)
    torchs = torch.optim.LBFGS([theirs], lr=lr, max_iter=1, history_size=history)
    for _ in range(25):
        before = theirs.detach().clone()
        one, two = descended(ours, mine), descended(torchs, theirs)
        torch.testing.assert_close(one - before, two - before, rtol=1e-5, atol=1e-9)
    assert problem(mine).item() < 0.5 * problem(start(1)).item()


def test_each_image_of_a_batch_goes_its_own_way() -> None:
    both, alone = start(3).requires_grad_(), start(3)[1:2].clone().requires_grad_()
    together, single = LBFGS([both], history=4), LBFGS([alone], history=4)
    for _ in range(15):
        torch.testing.assert_close(descended(together, both)[1:2], descended(single, alone))


def test_a_pair_without_curvature_changes_nothing() -> None:
    """A line has none: the direction stays the slope's, as torch's does, and nothing becomes NaN."""
    mine, theirs = start(1).requires_grad_(), start(1).requires_grad_()
    ours, torchs = LBFGS([mine]), torch.optim.LBFGS([theirs], max_iter=1)
    for _ in range(4):
        for place, optimizer in ((mine, ours), (theirs, torchs)):
            optimizer.zero_grad()
            closure = lambda place=place: (place.backward(torch.ones_like(place)), place.sum())[1]  # noqa: E731
            if optimizer is ours:
                closure()
                optimizer.step()
            else:
                optimizer.step(closure)  # type: ignore[arg-type]
        theirs.grad = None
        torch.testing.assert_close(mine.detach(), theirs.detach())


def test_stands_still_at_the_bottom() -> None:
    place = torch.ones(2, 12, dtype=torch.float64).requires_grad_()
    optimizer = LBFGS([place])
    for _ in range(3):
        assert torch.equal(descended(optimizer, place), torch.ones(2, 12, dtype=torch.float64))


def test_single_precision_finds_the_bottom() -> None:
    place = start(1).float().requires_grad_()
    optimizer = LBFGS([place], lr=0.8)
    for _ in range(120):
        descended(optimizer, place)
    assert problem(place).item() < 1e-6


def test_a_filter_stands_for_the_identity_at_the_start_of_the_history() -> None:
    """Against the definition: H of the pairs, one BFGS update after the other, from γK with γ = sᵀy/yᵀKy of the newest."""
    drawn = torch.randn(12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    kernel = drawn @ drawn.T / 12 + torch.eye(12)
    place, history = start(1).requires_grad_(), 4
    optimizer = LBFGS([place], history=history, preconditioner=lambda slope: slope @ kernel)
    places, slopes = list[Tensor](), list[Tensor]()
    for _ in range(15):
        places.append(place.detach()[0].clone())
        after = descended(optimizer, place)[0]
        assert place.grad is not None
        slopes.append(place.grad[0].clone())
        pairs = [
            (places[i + 1] - places[i], slopes[i + 1] - slopes[i]) for i in range(len(places) - 1)
        ]
        pairs = [(s, y) for s, y in pairs if s @ y > 1e-10][-history:]
        if pairs:
            inverse = (
                kernel * (pairs[-1][0] @ pairs[-1][1]) / (pairs[-1][1] @ kernel @ pairs[-1][1])
            )
            for s, y in pairs:
                turn = torch.eye(12) - s.outer(y) / (s @ y)
                inverse = turn @ inverse @ turn.T + s.outer(s) / (s @ y)
            torch.testing.assert_close(
                after - places[-1], -inverse @ slopes[-1], rtol=1e-5, atol=1e-9
            )
    assert problem(place).item() < 0.5 * problem(start(1)).item()


def test_what_was_learned_holds_at_another_size_and_scale() -> None:
    """Two waves of different curvature, learned at 16×16 pixels; the first step at 40×40, of a loss three times as large, ends at the bottom."""

    def waves(side: int) -> Tensor:
        line = torch.cos(
            torch.pi * torch.arange(1, 3)[:, None] * (torch.arange(side) + 0.5) / side
        ).double()
        return torch.stack([line[0].expand(side, side), line[1].expand(side, side).T])[
            :, None, None
        ]

    def loss(picture: Tensor, gain: float) -> Tensor:
        """Means over the pixels: the same number at every size."""
        parts = (picture * waves(picture.shape[-1])).mean((2, 3, 4)).square()[:, 0]
        return gain * (5 * parts[0] + 0.2 * parts[1])

    def stepped(optimizer: LBFGS, picture: Tensor, gain: float) -> None:
        optimizer.zero_grad()
        loss(picture, gain).backward()
        optimizer.step()

    small, large = (
        (0.3 * waves(side)[0] + 0.5 * waves(side)[1]).requires_grad_() for side in (16, 40)
    )
    learned, anew = LBFGS([small]), LBFGS([large])
    for _ in range(12):
        stepped(learned, small, 1.0)
    before = loss(large, 3.0).item()
    anew.inherit_history(learned, 3.0)
    stepped(anew, large, 3.0)
    assert loss(large, 3.0).item() < 1e-3 * before
