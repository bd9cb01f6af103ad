"""How many images a network can be run on at once in a given memory."""

from math import prod

from torch import Tensor

from sightline.models.model import Model

# Without gradients a layer's input and output are held, and one more map for a branch that waits or
# for a convolution's workspace.
MAPS_KEPT_WITHOUT_GRADIENTS = 3

# Measured on five networks: once a layer's output is much larger than this, a processor takes up to
# a third longer for each image. The output no longer fits the caches, and is new memory every time.
CACHE_FRIENDLY_BYTES = 16e6


def estimate_max_batch(
    model: Model, image: Tensor, gigabytes: float = 1.0, *, gradients: bool = True
) -> int:
    """How many images of this size can be run at once, at least 1.

    Their features take at most `gigabytes` (10⁹ bytes). With gradients the outputs of all layers
    are kept, without them only some of the largest. It is an estimate from the layers' shapes: what
    a network makes outside its modules is not counted, what containers pass on is counted twice.
    """
    output_bytes = list_output_bytes(model, image)
    if gradients:
        bytes_per_image = sum(output_bytes)
    else:
        bytes_per_image = MAPS_KEPT_WITHOUT_GRADIENTS * max(output_bytes, default=0)
    return max(1, int(gigabytes * 1e9 / max(bytes_per_image, 1)))


def choose_batch_size(
    model: Model, image: Tensor, gigabytes: float = 1.0, *, gradients: bool = True
) -> int:
    """How many images to run at once: as many as fit, but on a processor no more than is faster."""
    max_batch = estimate_max_batch(model, image, gigabytes, gradients=gradients)
    if model.device.type != "cpu":
        return max_batch
    largest_output = max(list_output_bytes(model, image), default=1)
    return max(1, min(max_batch, int(CACHE_FRIENDLY_BYTES / largest_output)))


def list_output_bytes(model: Model, image: Tensor) -> list[float]:
    """The size in bytes of every layer's output for one image as large as this one."""
    area_ratio = prod(image.shape[-2:]) / model.size**2
    bytes_per_number = model.mean.element_size()
    return [bytes_per_number * area_ratio * prod(layer.shape) for layer in model.layers.values()]
