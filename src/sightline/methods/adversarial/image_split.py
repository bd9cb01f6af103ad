"""The pictures that one change for many images is learned from, and the ones it is tried on."""

import torch
from torch import Tensor

from sightline.images.library import read_random_images
from sightline.models.model import Model


def split_attack_images(
    model: Model, image: Tensor, folder: str | None, max_images: int, seed: int
) -> tuple[Tensor, Tensor | None]:
    """Half of up to k pictures of a folder, covering the image's size, to learn from, and the other half; or the images and nothing.

    Raises SightlineError when the folder has no pictures or one can't be read.
    """
    if folder is None:
        return image, None
    pictures = list(
        {
            id(one): one for one in read_random_images(folder, max_images, seed, *image.shape[-2:])
        }.values()
    )  # a small folder repeats itself
    half = (len(pictures) + 1) // 2
    learned, new = (
        torch.stack(part).to(model.device) if part else None
        for part in (pictures[:half], pictures[half:])
    )
    return image if learned is None else learned, new
