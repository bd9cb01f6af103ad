"""The images that one change for many images is learned from, and the images it is tested on."""

import torch
from torch import Tensor

from sightline.errors import SightlineError
from sightline.images.io.library import read_random_images
from sightline.methods.adversarial.adversarial import take_attacked_image
from sightline.models.model import Model


def split_attack_images(
    model: Model, image: Tensor, folder: str | None, max_images: int, seed: int
) -> tuple[Tensor, Tensor | None]:
    """Images to learn from, N×3×H×W, and images to test on, M×3×H×W or None, on the model's device.

    These are two halves of up to `max_images` pictures of the folder, at the size of `image`.
    Without a folder they are `image` and None. Raises SightlineError when the folder has no
    pictures or one can't be read, and for a network that takes no pictures.
    """
    if folder is None:
        return image, None
    if model.channels != 3:
        raise SightlineError(
            f"a folder holds pictures of 3 channels; {model.name} takes {model.channels}: "
            "leave out folder"
        )
    pictures = read_random_images(folder, max_images, seed, *image.shape[-2:])
    # When the folder has fewer pictures, the same tensors are repeated.
    distinct = list({id(picture): picture for picture in pictures}.values())
    half = (len(distinct) + 1) // 2
    train_images = take_attacked_image(model, torch.stack(distinct[:half]))
    if half == len(distinct):
        return train_images, None
    return train_images, take_attacked_image(model, torch.stack(distinct[half:]))
