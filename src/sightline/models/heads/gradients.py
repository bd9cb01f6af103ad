"""Gradients of scores."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor

from sightline.errors import SightlineError, get_first_error_line, is_out_of_memory


@contextmanager
def guard_backward() -> Generator[None]:
    """Context in which the backward pass of a network may fail, as its own code may in any way.

    Raises SightlineError in place of what it raises, lack of memory excepted.
    """
    try:
        yield
    except SightlineError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise make_backward_error(error) from error


def make_backward_error(error: Exception) -> SightlineError:
    """The error for a network whose backward pass fails, with what to try first."""
    reason = f"{type(error).__name__}: {get_first_error_line(error)[:200]}".removesuffix(": ")
    hint = ""
    if "inplace operation" in str(error):
        hint = "; it overwrites what its gradient needs: write y = y * 2 in place of y *= 2"
    return SightlineError(
        f"the network's backward pass fails ({reason}){hint}; methods that only run the network "
        "work, such as occlusion and rise"
    )


def differentiate_scores(
    scores: Tensor, inputs: Tensor, inputs_name: str, *, retain_graph: bool = False
) -> Tensor:
    """The gradient of the sum of the scores with respect to the inputs, of the inputs' shape.

    Raises SightlineError where the scores don't depend on the inputs, or not in a differentiable
    way.
    """
    if not scores.requires_grad:
        raise SightlineError(
            f"the network's output has no gradient with respect to {inputs_name}: "
            "some step of it is cut off from differentiation"
        )
    with guard_backward():
        (gradient,) = cast(
            tuple[Tensor | None],
            torch.autograd.grad(scores.sum(), inputs, retain_graph=retain_graph, allow_unused=True),
        )
    if gradient is None:
        raise SightlineError(f"the score does not depend on {inputs_name}; choose another layer")
    return gradient
