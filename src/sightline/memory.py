"""How many images a network can be run on at once in a given memory, so that large work is split instead of dying."""

from math import prod

from torch import Tensor

from .model import Model

# Without gradients a layer's input and output are held, and one more map for a branch that waits or a convolution's workspace.
HELD = 3


def affordable(model: Model, image: Tensor, gigabytes: float = 1.0, *, gradients: bool = True) -> int:
    """How many copies of an image N×3×H×W can be run at once with features of at most `gigabytes` (10⁹ bytes), at least 1.

    With gradients the outputs of all layers are kept, without them only some of the largest. An estimate from the layers'
    shapes: what a network makes outside its modules is not seen, what containers pass on is counted twice.
    """
    sizes = [prod(layer.shape) for layer in model.layers.values()]
    numbers = sum(sizes) if gradients else HELD * max(sizes, default=0)
    share = prod(image.shape[-2:]) / model.size**2
    return max(1, int(gigabytes * 1e9 / (model.mean.element_size() * share * max(numbers, 1))))
