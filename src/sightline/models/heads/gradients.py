"""Gradients of scores."""

from typing import cast

import torch
from torch import Tensor

from sightline.errors import SightlineError, guard_backward


def differentiate_scores(
    scores: Tensor, inputs: Tensor, inputs_name: str, *, retain_graph: bool = False
) -> Tensor:
    """The gradient of the sum of the scores with respect to the inputs, of the inputs' shape.

    Raises SightlineError where the scores don't depend on the inputs, or not in a differentiable
    way.
    """
    if not (scores.requires_grad and inputs.requires_grad):
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
