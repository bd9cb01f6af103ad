"""What a network's outputs mean: class scores from whatever it returns, places in the image from whatever a layer gives."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from sightline.errors import SightlineError, make_unknown_name_error


def select_logits(output: Any, selector: int | str | None, network_name: str) -> Tensor:
    """Logits N×classes from what the network `name` returns: a tensor, or by `choice` the index in a tuple, the key in a dict.

    Raises SightlineError where there are none.
    """
    if isinstance(output, Mapping):
        keys: list[Any] = list(output)
        key = (
            selector
            if selector is not None
            else next((k for k in ("logits", "out") if k in keys), keys[0])
        )
        if key not in keys:
            raise make_unknown_name_error("output", key, map(str, keys))
        output = output[key]
    elif isinstance(output, (tuple, list)):
        index = selector or 0
        if not isinstance(index, int) or not -len(output) <= index < len(output):
            raise SightlineError(
                f"output is {index!r}; {network_name} returns {len(output)} values: give a number from 0"
            )
        output = output[index]
    if not isinstance(output, Tensor) or output.ndim < 2:
        raise SightlineError(
            f"{network_name} returns {type(output).__name__}, not N×classes; pick its logits with output="
        )
    # A network that scores every position (segmentation) scores the image by the mean over positions.
    return output.flatten(2).mean(2) if output.ndim > 2 else output


def reshape_to_feature_maps(feature: Tensor, height: int, width: int) -> Tensor:
    """Features as N×C×h×w maps of an image of height × width pixels: convolutional ones as they are, N×h×w×C turned,
    N×T×C tokens of a transformer laid on their grid with class tokens dropped.

    Raises SightlineError where the features have no places.
    """
    aspect = height / width
    if feature.ndim == 4:
        last = (
            abs(feature.shape[1] / feature.shape[2] / aspect - 1) < 0.1
            and abs(feature.shape[2] / feature.shape[3] / aspect - 1) > 0.1
        )
        return feature.permute(0, 3, 1, 2) if last else feature
    if feature.ndim == 3:
        for extra in range(17):
            count = feature.shape[1] - extra
            rows = round((max(count, 0) * aspect) ** 0.5)
            if rows > 0 and count % rows == 0 and abs(rows * rows / count / aspect - 1) < 0.1:
                return feature[:, extra:].transpose(1, 2).unflatten(2, (rows, count // rows))
    raise SightlineError(
        f"this layer has no places in the image: its output is {tuple(feature.shape)}; choose a convolutional layer"
    )


def reshape_to_unit_grid(feature: Tensor, image: Tensor) -> Tensor:
    """N×units×rows×columns of any layer; a vector has one position."""
    return (
        feature[:, :, None, None]
        if feature.ndim == 2
        else reshape_to_feature_maps(feature, *image.shape[-2:])
    )


def differentiate_scores(
    scores: Tensor, inputs: Tensor, inputs_name: str, *, retain_graph: bool = False
) -> Tensor:
    """∂(sum of scores)/∂of; `keep` leaves the graph for another one. Raises SightlineError where the scores don't depend on it, or not by steps that have a gradient."""
    if not scores.requires_grad:
        raise SightlineError(
            f"this network's answer has no gradient with respect to {inputs_name}: some step of it is cut off from differentiation"
        )
    (found,) = cast(
        tuple[Tensor | None],
        torch.autograd.grad(scores.sum(), inputs, retain_graph=retain_graph, allow_unused=True),
    )
    if found is None:
        raise SightlineError(f"the score does not depend on {inputs_name}; choose another layer")
    return found
