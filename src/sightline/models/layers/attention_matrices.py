"""Which layers give the weights of an attention: a square of tokens × tokens that is no map.

A square image has square maps too, so that the shape does not tell. The weights do: each row is
what a token takes from the others, and sums to 1.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from sightline.errors import SightlineError
from sightline.models.layers.capture import Layer

ROW_SUM_TOLERANCE = 1e-3
HALF_ROW_SUM_TOLERANCE = 3e-2


def drop_attention_matrices(outputs: Mapping[str, Tensor], layers: Sequence[Layer]) -> list[Layer]:
    """The layers without those that give an attention's weights, or its scores before the softmax.

    `outputs` are those of the layers by name, as far as they are known. Scores have the shape of
    the weights of the same module.
    """
    matrices = {
        (find_parent(name), tensor.shape)
        for name, tensor in outputs.items()
        if not name.endswith(":in") and is_attention_matrix(tensor)
    }

    def is_matrix(layer: Layer) -> bool:
        output = outputs.get(layer.name)
        return output is not None and (find_parent(layer.name), output.shape) in matrices

    return [layer for layer in layers if not is_matrix(layer)]


def is_attention_matrix(output: Tensor) -> bool:
    """Whether an output N×heads×tokens×tokens holds weights whose rows sum to 1.

    The weights of a single token are all 1, which says nothing.
    """
    if output.ndim != 4 or output.shape[3] < 2 or not output.numel():
        return False
    if not output.is_floating_point() or output.is_meta:
        return False
    # The first row says no of nearly every map.
    return _are_weights(output[:1, :1, :1]) and _are_weights(output)


def _are_weights(rows: Tensor) -> bool:
    """Whether numbers are at least 0 and sum to 1 along the last axis."""
    values = rows.detach().float()
    tolerance = ROW_SUM_TOLERANCE if rows.element_size() >= 4 else HALF_ROW_SUM_TOLERANCE
    row_sums = values.sum(-1)
    return bool((values >= 0).all()) and bool(((row_sums - 1).abs() <= tolerance).all())


def refuse_attention_matrix(output: Tensor, layer: str) -> None:
    """Raises SightlineError where a layer that is to be laid on the image gives such weights."""
    if is_attention_matrix(output):
        raise SightlineError(
            f"layer {layer} gives the weights of an attention, heads×queries×keys, which are no "
            "map of the image; ask attention, or choose a layer with feature maps"
        )


def find_parent(name: str) -> str:
    """The path of the module that a layer belongs to: of a step its own, of a module the outer."""
    path = name.split(":", maxsplit=1)[0]
    return path.rpartition("/" if "/" in path else ".")[0]
