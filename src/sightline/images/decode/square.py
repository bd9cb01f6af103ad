"""The square that a network is fed, made from a file as cheaply as can be.

Pictures have 8-bit pixels. A JPEG is decoded at a reduced scale that leaves at least twice the
pixels needed, and crop and resizing are one step. Files of bands are resized as floats.
"""

import io
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sightline.images.decode.bands import holds_bands, read_bands
from sightline.images.decode.memory import DECODING_BUDGET
from sightline.images.decode.picture import MAX_PIXELS, open_picture
from sightline.images.decode.pixels import convert_tensor_to_pillow, convert_to_rgb
from sightline.images.transforms import crop_center, resize_short_side
from sightline.images.validation import add_batch_axis, check_image

# Of a picture longer than this, `fit_square` resizes only the middle.
MAX_ASPECT_RATIO = 3

# A file's bytes or, where it is large, its path; or a picture that is decoded.
ImageSource = bytes | Path | Image.Image | Tensor


FloatPixels = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


class FittedSquare(NamedTuple):
    """The middle square, and the upright picture's height and width.

    `pixels` are side×side×3 in 0 to 255 of a picture, side×side×C in [0, 1] of bands.
    """

    pixels: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]] | FloatPixels"
    height: int
    width: int


def fit_square(source: ImageSource, side: int, short_side: int) -> FittedSquare:
    """What `Model.fit` makes of a picture, in 8 bits; of bands, as floats.

    The shorter side is resized to `short_side`, then the middle `side`×`side` is cut out.
    `source` is a file's bytes or path, a Pillow picture or an image tensor 1×C×H×W. Threads that
    decode at the same time share DECODING_BUDGET.

    Raises SightlineError for files and tensors that are no whole picture, OSError for a file that
    can't be read.
    """
    if isinstance(source, bytes):
        return _decode_square(io.BytesIO(source), side, short_side)
    if isinstance(source, Path):
        with source.open("rb") as file:
            return _decode_square(file, side, short_side)
    if isinstance(source, Tensor):
        image = add_batch_axis(source)
        if image.ndim == 4 and image.shape[1] not in (1, 3):
            return _fit_bands(check_image(image, channels=image.shape[1]), side, short_side)
        picture = convert_tensor_to_pillow(source)
    else:
        picture = convert_to_rgb(source)
    pixels = _resize_square(picture, side, short_side)
    return FittedSquare(pixels, picture.height, picture.width)


def encode_thumbnail(
    square: FittedSquare, side: int, bands: tuple[int, int, int] = (0, 1, 2)
) -> bytes:
    """The square as a JPEG file of at most `side`×`side` pixels; three of its bands are shown."""
    pixels = square.pixels
    if pixels.dtype != np.uint8:
        last_band = pixels.shape[2] - 1
        selected_bands = pixels[..., [min(band, last_band) for band in bands]]
        pixels = (selected_bands * 255).round().astype(np.uint8)
    picture = Image.fromarray(pixels)
    if picture.width > side:
        picture = picture.resize((side, side), Image.Resampling.BILINEAR)
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=85)
    return encoded.getvalue()


def stack_squares(squares: list[FittedSquare]) -> Tensor:
    """The squares as a batch of images, n×C×side×side in [0, 1], in channels_last layout."""
    if any(square.pixels.dtype != np.uint8 for square in squares):
        return torch.cat([_convert_to_image(square) for square in squares])
    pixels = torch.from_numpy(np.stack([square.pixels for square in squares]))
    return pixels.permute(0, 3, 1, 2).float().div_(255)


def _convert_to_image(square: FittedSquare) -> Tensor:
    """A square of a picture or of bands as 1×C×side×side in [0, 1]."""
    pixels = torch.from_numpy(square.pixels).permute(2, 0, 1)[None].float()
    return pixels / 255 if square.pixels.dtype == np.uint8 else pixels


def _decode_square(file: IO[bytes], side: int, short_side: int) -> FittedSquare:
    """The square of a picture file, or of one with bands."""
    if holds_bands(file):
        return _fit_bands(read_bands(file, MAX_PIXELS, DECODING_BUDGET), side, short_side)
    with open_picture(file, short_side=short_side, budget=DECODING_BUDGET) as decoded:
        pixels = _resize_square(convert_to_rgb(decoded.picture), side, short_side)
        return FittedSquare(pixels, decoded.height, decoded.width)


def _fit_bands(image: Tensor, side: int, short_side: int) -> FittedSquare:
    """The middle square of bands 1×C×H×W in [0, 1]."""
    height, width = image.shape[-2:]
    longest_side = MAX_ASPECT_RATIO * min(height, width)
    middle = crop_center(image, min(height, longest_side), min(width, longest_side))
    square = crop_center(resize_short_side(middle, short_side), side, side)
    return FittedSquare(square[0].permute(1, 2, 0).contiguous().numpy(), height, width)


def _resize_square(
    picture: Image.Image, side: int, short_side: int
) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    """The middle square of an RGB picture, side×side×3."""
    picture = _crop_to_aspect_ratio(picture)
    scale = short_side / min(picture.size)
    resized_width = round(picture.width * scale)
    resized_height = round(picture.height * scale)
    # The crop of the resized picture, measured in pixels of the picture before resizing.
    left = (resized_width - side) // 2 * picture.width / resized_width
    top = (resized_height - side) // 2 * picture.height / resized_height
    right = left + side * picture.width / resized_width
    bottom = top + side * picture.height / resized_height

    box = (left, top, right, bottom)
    if box != (0, 0, side, side) or picture.size != (side, side):
        picture = picture.resize((side, side), Image.Resampling.BILINEAR, box)
    return np.asarray(picture)


def _crop_to_aspect_ratio(picture: Image.Image) -> Image.Image:
    """The middle of a very long picture; any other picture as it is."""
    max_width = picture.height * MAX_ASPECT_RATIO
    max_height = picture.width * MAX_ASPECT_RATIO
    if picture.width > max_width:
        left = (picture.width - max_width) // 2
        return picture.crop((left, 0, left + max_width, picture.height))
    if picture.height > max_height:
        top = (picture.height - max_height) // 2
        return picture.crop((0, top, picture.width, top + max_height))
    return picture
