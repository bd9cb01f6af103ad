"""The image convention, checked: a float32 tensor N×3×H×W, RGB, with values in [0, 1]."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from sightline.errors import SightlineError


def check_image(
    image: Tensor, subject: str = "this tensor", tolerance: float = 1e-4, channels: int = 3
) -> Tensor:
    """Returns the image as float32 N×channels×H×W, without a copy if it is that already.

    Gradients flow through. `subject` is what an error message calls the image.
    Raises SightlineError for another type or shape, an empty or integer tensor, NaN, and values
    outside [0, 1] by more than `tolerance`.
    """
    problem = _describe_problem(image, tolerance, channels)
    if problem:
        raise SightlineError(f"an image is N×{channels}×H×W in [0, 1]; {subject} is {problem}")
    return image.float()


def add_batch_axis(image: Tensor) -> Tensor:
    """A single image 3×H×W as 1×3×H×W; anything else as it is."""
    # What is no tensor, and may have no `ndim`, is left for `check_image` to refuse.
    return image[None] if getattr(image, "ndim", None) == 3 else image


def describe_out_of_range(values: Tensor, tolerance: float) -> str:
    """How values leave [0, 1], «with NaN» or «in [-2.06, 2.06]»; empty if they do not."""
    low, high = (float(extreme) for extreme in values.detach().aminmax())
    if not low <= high:  # aminmax passes NaN on
        return "with NaN"
    if low < -tolerance or high > 1 + tolerance:
        return f"in [{low:.5g}, {high:.5g}]"
    return ""


def _suggest_conversion(image: object) -> str:
    """How one gets an image from something else that holds one; empty if nobody knows."""
    if isinstance(image, (str, Path)):
        return "; model.fit(FILE) reads and fits a file"
    if isinstance(image, np.ndarray):
        return "; torch.from_numpy(array) makes one"
    if isinstance(image, Image.Image):
        return "; torchvision's to_tensor(picture)[None] makes one"
    return ""


def _suggest_axes(shape: Sequence[int], channels: int) -> str:
    """How the axes of a single image become those of a batch; empty for other shapes."""
    if len(shape) == 3 and shape[0] == channels:
        return "; image[None] is a batch of one"
    if len(shape) == 3 and shape[2] == channels:
        return "; image.permute(2, 0, 1)[None] is a batch of one"
    if len(shape) == 4 and shape[3] == channels:
        return "; image.permute(0, 3, 1, 2) has the channels first"
    return ""


def _describe_problem(image: object, tolerance: float, channels: int) -> str:
    """What keeps an object from being an image; empty if nothing does."""
    if not isinstance(image, Tensor):
        return f"of type {type(image).__name__}, not a tensor{_suggest_conversion(image)}"
    if not image.is_floating_point():
        return f"of {image.dtype}; divide 0 to 255 by 255"
    shape = tuple(image.shape)
    if image.ndim == 5:
        return f"{shape}, a video or volume: give one of its slices"
    if image.ndim != 4 or image.shape[1] != channels or image.numel() == 0:
        return f"{shape}{_suggest_axes(shape, channels)}"
    range_problem = describe_out_of_range(image, tolerance)
    return f"{shape} {range_problem}" if range_problem else ""
