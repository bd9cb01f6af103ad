"""From a picture's bytes to the square of 8-bit pixels that a network is fed, as cheaply as the codec allows.

JPEG is decoded at reduced scale while that leaves twice the pixels needed; crop and resizing are one step, on the part that is kept.
"""

import io
import struct
from contextlib import suppress
from importlib import import_module
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps
from torch import Tensor

from sightline.errors import SightlineError
from sightline.images.io import (
    check_image,
    check_pixel_count,
    convert_pillow_to_tensor,
    detect_image_format,
    make_decoding_error,
)

MAX_PIXELS = 100_000_000  # pixels, as in image.read

ORIENTATION_TAG = 0x0112  # in EXIF

ImageSource = bytes | Image.Image | Tensor


class FittedSquare(NamedTuple):
    """The middle square, side×side×3 in 0 to 255, and the whole picture's height and width, upright."""

    pixels: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]"
    height: int
    width: int


def fit_square(source: ImageSource, side: int, short_side: int) -> FittedSquare:
    """What `Model.fit` makes of a picture, rounded to 8 bits: its short side resized to `short`, the middle `side`×`side` of that.

    `source` is a file's bytes, a Pillow picture or an image tensor 1×3×H×W. Raises SightlineError, one line, for anything else.
    """
    picture, height, width = open_as_rgb(source, short_side)
    if picture.width > picture.height * 3:  # of a very long picture only the middle counts
        left = (picture.width - picture.height * 3) // 2
        picture = picture.crop((left, 0, left + picture.height * 3, picture.height))
    elif picture.height > picture.width * 3:
        top = (picture.height - picture.width * 3) // 2
        picture = picture.crop((0, top, picture.width, top + picture.width * 3))
    scale = short_side / min(picture.size)
    columns, rows = (round(length * scale) for length in picture.size)
    left, top = (
        (columns - side) // 2 * picture.width / columns,
        (rows - side) // 2 * picture.height / rows,
    )
    box = (left, top, left + side * picture.width / columns, top + side * picture.height / rows)
    if box != (0, 0, side, side) or picture.size != (side, side):
        picture = picture.resize((side, side), Image.Resampling.BILINEAR, box)
    return FittedSquare(np.asarray(picture), height, width)


def open_as_rgb(source: ImageSource, short_side: int) -> tuple[Image.Image, int, int]:
    """The picture as 8-bit RGB, perhaps at reduced scale, and its true height and width."""
    if isinstance(source, Tensor):
        source = convert_tensor_to_pillow(source)
    if isinstance(source, bytes):
        return decode_as_rgb(source, short_side)
    picture = convert_to_rgb(source)
    return picture, picture.height, picture.width


def decode_as_rgb(data: bytes, short_side: int) -> tuple[Image.Image, int, int]:
    kind = detect_image_format(data[:64])
    try:
        plugin: type[ImageFile.ImageFile] = getattr(
            import_module(f"PIL.{kind}ImagePlugin"), f"{kind}ImageFile"
        )
        with plugin(io.BytesIO(data)) as picture:
            width, height = picture.size
            check_pixel_count(f"{width}×{height} = ", width * height, MAX_PIXELS)
            turned = False
            if kind == "Jpeg":
                reduction = min(width, height) / (2 * short_side)
                picture.draft("RGB", (int(width / reduction), int(height / reduction)))
            picture.load()
            with suppress(
                SyntaxError, ValueError, LookupError, TypeError, struct.error
            ):  # EXIF may be damaged in a whole picture
                turned = picture.getexif().get(ORIENTATION_TAG, 1) in (5, 6, 7, 8)
                ImageOps.exif_transpose(picture, in_place=True)
            return (
                (convert_to_rgb(picture), width, height)
                if turned
                else (convert_to_rgb(picture), height, width)
            )
    except SightlineError:
        raise
    except Exception as error:  # on bytes they don't like, decoders raise whatever comes to hand
        raise make_decoding_error(kind.upper(), error, MAX_PIXELS) from error


def convert_to_rgb(picture: Image.Image) -> Image.Image:
    """8-bit RGB of a loaded picture in any mode, over white where it is transparent."""
    if picture.mode == "RGB" and not picture.has_transparency_data:
        return picture
    if picture.mode[0] in "FI" or picture.has_transparency_data:
        return convert_tensor_to_pillow(convert_pillow_to_tensor(picture))
    return picture.convert("RGB")


def convert_tensor_to_pillow(image: Tensor) -> Image.Image:
    """An image tensor, 1×3×H×W or 3×H×W in [0, 1], in 8 bits."""
    pixels = check_image(image[None] if image.ndim == 3 else image)[0]
    return Image.fromarray(
        pixels.detach().cpu().mul(255).round().byte().permute(1, 2, 0).contiguous().numpy()
    )


def encode_thumbnail(square: FittedSquare, side: int) -> bytes:
    """The square as a small JPEG file."""
    picture = Image.fromarray(square.pixels)
    encoded = io.BytesIO()
    (
        picture.resize((side, side), Image.Resampling.BILINEAR) if picture.width > side else picture
    ).save(encoded, "JPEG", quality=85)
    return encoded.getvalue()


def stack_squares(squares: list[FittedSquare]) -> Tensor:
    """The squares as images, n×3×side×side in [0, 1], in channels_last."""
    return (
        torch.from_numpy(np.stack([view.pixels for view in squares]))
        .permute(0, 3, 1, 2)
        .float()
        .div_(255)
    )
