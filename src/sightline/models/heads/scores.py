"""Class scores of what a network returns, and their gradients."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from sightline.errors import SightlineError, make_unknown_name_error


def select_logits(output: Any, selector: int | str | None, network_name: str) -> Tensor:
    """Logits N×classes from what a network returns.

    That is a tensor, or one of a tuple or dict that `selector` picks: the index in a tuple (by
    default 0), the key in a dict (by default `logits`, `out` or the first one). The scores of a
    network that scores every position are averaged over positions.

    Raises SightlineError where there are no logits.
    """
    if isinstance(output, Mapping):
        output = _select_from_dict(cast(Mapping[Any, Any], output), selector)
    elif isinstance(output, (tuple, list)):
        output = _select_from_tuple(cast(Sequence[Any], output), selector, network_name)
    if not isinstance(output, Tensor) or output.ndim < 2:
        raise SightlineError(
            f"{network_name} returns {type(output).__name__}, not N×classes; "
            "pick its logits with output="
        )
    return output.flatten(2).mean(2) if output.ndim > 2 else output


def _select_from_dict(output: Mapping[Any, Any], selector: int | str | None) -> Any:
    keys = list(output)
    if selector is None:
        selector = next((key for key in ("logits", "out") if key in keys), keys[0])
    if selector not in keys:
        raise make_unknown_name_error("output", selector, map(str, keys))
    return output[selector]


def _select_from_tuple(output: Sequence[Any], selector: int | str | None, network_name: str) -> Any:
    index = selector or 0
    if not isinstance(index, int) or not -len(output) <= index < len(output):
        raise SightlineError(
            f"output is {index!r}; {network_name} returns {len(output)} values: "
            "give a number from 0"
        )
    return output[index]


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
    (gradient,) = cast(
        tuple[Tensor | None],
        torch.autograd.grad(scores.sum(), inputs, retain_graph=retain_graph, allow_unused=True),
    )
    if gradient is None:
        raise SightlineError(f"the score does not depend on {inputs_name}; choose another layer")
    return gradient
