"""From an image in [0, 1] to what a network is fed."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from sightline.errors import SightlineError
from sightline.images.color import LUMINANCE_WEIGHTS
from sightline.images.transforms import crop_center, resize_image, resize_short_side

# Band counts of a network that sees ordinary pictures: as luminance, or in color.
PICTURE_CHANNELS = (1, 3)

MAX_SIDE = 16_384  # pixels

# Above it, a mean is that of images in 0 to 255, or of 16 bits.
LARGEST_MEAN = 2.0


def check_channel_statistics(mean: Any, std: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std as tuples; raises SightlineError unless both have the same number of values.

    Deviations must be above 0, all values finite, and means those of images in [0, 1].
    """
    means = _read_channel_numbers("mean", mean)
    deviations = _read_channel_numbers("std", std)
    if len(means) != len(deviations):
        raise SightlineError(
            "mean and std need one value for each channel; "
            f"they have {len(means)} and {len(deviations)}"
        )
    is_finite = all(abs(value) < float("inf") for value in (*means, *deviations))
    if not is_finite or min(deviations) <= 0:
        raise SightlineError(
            f"std is {deviations}, mean is {means}; deviations must be above 0, all values finite"
        )
    if max(means) > LARGEST_MEAN:
        raise SightlineError(
            f"mean is {means}; images are in [0, 1] here, and so are their means: divide mean and "
            "std by 255 (or by the largest value that a pixel had)"
        )
    return means, deviations


def _read_channel_numbers(name: str, values: Any) -> tuple[float, ...]:
    """The numbers in a list, array or tensor; raises SightlineError for anything else."""
    items = values.flatten().tolist() if isinstance(values, Tensor) else values
    try:
        numbers = tuple(float(value) for value in items)
    except (TypeError, ValueError):
        numbers = ()
    if not numbers or isinstance(values, (str, bytes)):
        raise SightlineError(
            f"{name} is {values!r:.80}; give a list with one number for each channel"
        )
    return numbers


def check_image_size(size: Any) -> tuple[int, int]:
    """Height and width from a side or a pair; raises SightlineError for anything else."""
    sides: list[Any] = [size, size]
    if isinstance(size, (tuple, list)):
        sides = list(cast(Sequence[Any], size))
    if len(sides) != 2 or not all(_is_side(side) for side in sides):
        raise SightlineError(
            f"size is {size!r:.80}; give a side in pixels from 1 to 16,384, or (height, width)"
        )
    height, width = sides
    return int(height), int(width)


def format_size(size: tuple[int, int]) -> str:
    """«224», or «24×40» (height and width) for what is not square."""
    height, width = size
    return str(height) if height == width else f"{height}×{width}"


def _is_side(side: Any) -> bool:
    return isinstance(side, int) and not isinstance(side, bool) and 1 <= side <= MAX_SIDE


def fit_image(image: Tensor, size: tuple[int, int], resize_ratio: float) -> Tensor:
    """The centre of an image as a network of `size` (height, width) was made to see it.

    The image is resized until it covers `size` times `resize_ratio`, its aspect kept, and cropped.
    """
    target_height, target_width = size
    height, width = image.shape[-2:]
    # Only the centre is used, so the ends of a very long image need not be resized.
    longest_height = round(3 * width * target_height / target_width)
    longest_width = round(3 * height * target_width / target_height)
    image = crop_center(image, min(height, longest_height), min(width, longest_width))
    if target_height == target_width:
        short_side = round(target_height * resize_ratio)
        resized = resize_short_side(image, max(target_height, short_side))
    else:
        height, width = image.shape[-2:]
        scale = resize_ratio * max(target_height / height, target_width / width)
        new_height = max(target_height, round(height * scale))
        new_width = max(target_width, round(width * scale))
        resized = resize_image(image, new_height, new_width)
    return crop_center(resized, target_height, target_width)


def convert_to_luminance(image: Tensor) -> Tensor:
    """N×1×H×W of an image N×3×H×W: what a network of one channel sees."""
    weights = image.new_tensor(LUMINANCE_WEIGHTS).view(1, 3, 1, 1)
    return (image * weights).sum(1, keepdim=True)


def show_as_picture(image: Tensor, bands: Sequence[int]) -> Tensor:
    """Three bands of an image N×C×H×W as red, green and blue; one band three times."""
    if image.shape[1] == 3 and tuple(bands) == (0, 1, 2):
        return image
    return image[:, [min(band, image.shape[1] - 1) for band in bands]]


def check_bands(bands: Any, channels: int) -> tuple[int, int, int]:
    """The bands that pictures show as red, green and blue: given, else the first three.

    Raises SightlineError for anything but three numbers of bands.
    """
    if bands is None:
        last = channels - 1
        return (0, min(1, last), min(2, last))
    is_list = isinstance(bands, (tuple, list)) and len(bands) == 3
    if not is_list or not all(isinstance(band, int) and 0 <= band < channels for band in bands):
        raise SightlineError(
            f"bands is {bands!r:.60}; give three numbers from 0 to {channels - 1}, "
            "those shown as red, green and blue"
        )
    red, green, blue = bands
    return red, green, blue


def call_preprocess(preprocess: Callable[[Tensor], Any], image: Tensor) -> Any:
    """What the caller's own preprocessing makes of an image; raises SightlineError if it fails."""
    try:
        network_input = preprocess(image)
    except (SightlineError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise SightlineError(
            f"preprocess fails on an image {tuple(image.shape)} "
            f"({type(error).__name__}: {str(error)[:200]})"
        ) from error
    if network_input is None:
        raise SightlineError("preprocess returns None; it must return what the network takes")
    return network_input
