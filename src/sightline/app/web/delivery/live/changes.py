"""What a user changes in an image: rectangles and brush strokes that are made gray."""

import base64
import binascii
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sightline.errors import SightlineError
from sightline.images.plotting.maps import MID_GRAY

Rectangle = tuple[int, int, int, int]  # top, left, bottom, right (exclusive)


def cover_image(image: Tensor, rectangles: Sequence[Rectangle], brush: str | None) -> Tensor:
    """The image 1×C×H×W with gray rectangles and gray pixels of the brush.

    Rectangles may reach beyond the image. Raises SightlineError for a brush of another size.
    """
    if not rectangles and brush is None:
        return image
    height, width = image.shape[-2:]
    is_covered = torch.zeros(height, width, dtype=torch.bool)
    for top, left, bottom, right in rectangles:
        is_covered[top:bottom, left:right] = True
    if brush is not None:
        is_covered |= decode_brush(brush, height, width)
    return torch.where(is_covered, MID_GRAY, image)


def decode_brush(brush: str, height: int, width: int) -> Tensor:
    """The pixels of a brush, height×width, from bits in rows as Base64.

    Raises SightlineError for text that is not Base64, and for another number of bits.
    """
    try:
        content = base64.b64decode(brush, validate=True)
    except (binascii.Error, ValueError) as error:
        raise SightlineError(f"brush is not Base64 ({error})") from error
    expected = (height * width + 7) // 8
    if len(content) != expected:
        raise SightlineError(
            f"brush has {len(content)} bytes; {height}×{width} pixels are {expected}"
        )
    bits = np.unpackbits(np.frombuffer(content, np.uint8), count=height * width)
    return torch.from_numpy(bits.astype(bool)).view(height, width)
