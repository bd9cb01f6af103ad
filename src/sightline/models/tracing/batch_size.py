"""How many images a network can be run on at once in a given memory, so that large work is split instead of dying."""

from math import prod

from torch import Tensor

from sightline.models.model import Model

# Without gradients a layer's input and output are held, and one more map for a branch that waits or a convolution's workspace.
MAPS_KEPT_WITHOUT_GRADIENTS = 3

# Measured on five networks: a processor takes longer for each image, up to a third, once a layer's output is much larger than so many
# bytes, for it leaves the caches and is new memory every time.
CACHE_FRIENDLY_BYTES = 16e6


def estimate_max_batch(
    model: Model, image: Tensor, gigabytes: float = 1.0, *, gradients: bool = True
) -> int:
    """How many copies of an image N×3×H×W can be run at once with features of at most `gigabytes` (10⁹ bytes), at least 1.

    With gradients the outputs of all layers are kept, without them only some of the largest. An estimate from the layers'
    shapes: what a network makes outside its modules is not seen, what containers pass on is counted twice.
    """
    sizes = list_output_bytes(model, image)
    return max(
        1,
        int(
            gigabytes
            * 1e9
            / max(
                sum(sizes) if gradients else MAPS_KEPT_WITHOUT_GRADIENTS * max(sizes, default=0), 1
            )
        ),
    )


def choose_batch_size(
    model: Model, image: Tensor, gigabytes: float = 1.0, *, gradients: bool = True
) -> int:
    """How many copies to run at once: as many as are affordable, but on a processor no more than make it faster."""
    many = estimate_max_batch(model, image, gigabytes, gradients=gradients)
    if model.device.type != "cpu":
        return many
    return max(
        1, min(many, int(CACHE_FRIENDLY_BYTES / max(list_output_bytes(model, image), default=1)))
    )


def list_output_bytes(model: Model, image: Tensor) -> list[float]:
    """Size of every layer's output for one image as large as this one."""
    share = prod(image.shape[-2:]) / model.size**2
    return [
        model.mean.element_size() * share * prod(layer.shape) for layer in model.layers.values()
    ]
