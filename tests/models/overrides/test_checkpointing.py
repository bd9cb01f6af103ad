"""Checkpointed functions run once inside the context, and as always outside and elsewhere."""

import threading
from collections.abc import Callable

import pytest
import torch
from helpers import make_input
from torch import Tensor, nn
from torch.utils import checkpoint as torch_checkpoint

from sightline.models.overrides.checkpointing import disable_checkpointing


def run_counted(run: Callable[[Callable[..., Tensor], Tensor], Tensor]) -> tuple[int, Tensor]:
    """How often a checkpointed function runs, forward and backward, and the input's gradient."""
    shapes: list[torch.Size] = []

    def square_input(x: Tensor, scale: float = 3) -> Tensor:
        shapes.append(x.shape)
        return scale * x.square()

    x = make_input(2, 5).requires_grad_()
    run(square_input, x).sum().backward()
    assert x.grad is not None
    return len(shapes), x.grad


def run_checkpoint(function: Callable[..., Tensor], x: Tensor) -> Tensor:
    return torch_checkpoint.checkpoint(function, x, use_reentrant=False)


KINDS = {
    "reentrant": lambda f, x: torch_checkpoint.checkpoint(f, x, use_reentrant=True),
    "not reentrant": run_checkpoint,
    "keyword": lambda f, x: torch_checkpoint.checkpoint(f, x, scale=3, use_reentrant=False),
    "no random state": lambda f, x: torch_checkpoint.checkpoint(
        f, x, use_reentrant=True, preserve_rng_state=False
    ),
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_checkpointed_function_runs_once_inside_and_twice_outside(kind: str) -> None:
    expected = 6 * make_input(2, 5)
    before = run_counted(KINDS[kind])
    with disable_checkpointing():
        inside = run_counted(KINDS[kind])
    after = run_counted(KINDS[kind])
    assert [count for count, _ in (before, inside, after)] == [2, 1, 2]
    for _, gradient in (before, inside, after):
        torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_sequence_of_checkpoints(use_reentrant: bool) -> None:
    network = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    x = make_input(2, 5).requires_grad_()
    with disable_checkpointing():
        output = torch_checkpoint.checkpoint_sequential(network, 2, x, use_reentrant=use_reentrant)
    # Reentrant checkpoints refuse torch.autograd.grad.
    (gradient,) = torch.autograd.grad(output.sum(), x)
    (expected,) = torch.autograd.grad(network(x).sum(), x)
    torch.testing.assert_close(gradient, expected)


def test_other_threads_go_on_checkpointing() -> None:
    counts: list[int] = []
    with disable_checkpointing():
        thread = threading.Thread(target=lambda: counts.append(run_counted(run_checkpoint)[0]))
        thread.start()
        thread.join()
        assert run_counted(run_checkpoint)[0] == 1
    assert counts == [2]


def test_contexts_nest() -> None:
    with disable_checkpointing():
        with disable_checkpointing():
            assert run_counted(run_checkpoint)[0] == 1
        assert run_counted(run_checkpoint)[0] == 1
    assert run_counted(run_checkpoint)[0] == 2


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_an_error_ends_the_context(use_reentrant: bool) -> None:
    def divide_by_zero(x: Tensor) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), disable_checkpointing():
        torch_checkpoint.checkpoint(divide_by_zero, make_input(2), use_reentrant=use_reentrant)
    assert run_counted(run_checkpoint)[0] == 2


def test_classes_derived_from_torchs_keep_their_own_backward_pass() -> None:
    class Doubled(torch_checkpoint.CheckpointFunction):
        @staticmethod
        def backward(ctx: object, *gradients: Tensor) -> tuple[None, None, Tensor]:
            return None, None, 2 * gradients[0]

    with disable_checkpointing():
        pass
    x = make_input(3).requires_grad_()
    Doubled.apply(torch.sin, True, x).sum().backward()
    torch.testing.assert_close(x.grad, torch.full((3,), 2.0))
