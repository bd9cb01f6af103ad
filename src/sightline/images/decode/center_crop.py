"""The centre crop that a network is fed, made from a file as cheaply as can be.

Pictures have 8-bit pixels. A JPEG is decoded at a reduced scale that leaves at least twice the
pixels needed, and crop and resizing are one step. Files of bands are resized as floats.
"""

import io
from collections.abc import Sequence
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
from sightline.images.transforms import crop_center, resize_image
from sightline.images.validation import add_batch_axis, check_image

# Of a picture that is so many times as long as the crop, only the middle is resized.
MAX_ASPECT_RATIO = 3

# A file's bytes or, where it is large, its path; or a picture that is decoded.
ImageSource = bytes | Path | Image.Image | Tensor

PictureSize = tuple[int, int]  # height and width

FloatPixels = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


class CenterCrop(NamedTuple):
    """The middle of a picture, and the upright picture's height and width.

    `pixels` are rows×columns×3 in 0 to 255 of a picture, rows×columns×C in [0, 1] of bands.
    """

    pixels: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]] | FloatPixels"
    height: int
    width: int


def fit_center_crop(
    source: ImageSource, size: int | PictureSize, short_side: int | None = None
) -> CenterCrop:
    """What `Model.fit` makes of a picture, in 8 bits; of bands, as floats.

    `size` is the side of a square, or height and width. The picture is resized until it covers
    that size, enlarged so that its shorter side is `short_side` (its own by default), and the
    middle is cut out. `source` is a file's bytes or path, a Pillow picture or an image tensor
    1×C×H×W. Threads that decode at the same time share DECODING_BUDGET.

    Raises SightlineError for files and tensors that are no whole picture, OSError for a file that
    can't be read.
    """
    frame = make_crop_frame(size, short_side)
    if isinstance(source, bytes):
        return _decode_crop(io.BytesIO(source), frame)
    if isinstance(source, Path):
        with source.open("rb") as file:
            return _decode_crop(file, frame)
    if isinstance(source, Tensor):
        image = add_batch_axis(source)
        if image.ndim == 4 and image.shape[1] not in (1, 3):
            return _crop_bands(check_image(image, channels=image.shape[1]), frame)
        picture = convert_tensor_to_pillow(source)
    else:
        picture = convert_to_rgb(source)
    pixels = _crop_picture(picture, frame)
    return CenterCrop(pixels, picture.height, picture.width)


def encode_thumbnail(crop: CenterCrop, side: int, bands: tuple[int, int, int] = (0, 1, 2)) -> bytes:
    """The crop as a JPEG file, its longer side at most `side`; three of its bands are shown."""
    pixels = crop.pixels
    if pixels.dtype != np.uint8:
        last_band = pixels.shape[2] - 1
        selected_bands = pixels[..., [min(band, last_band) for band in bands]]
        pixels = (selected_bands * 255).round().astype(np.uint8)
    picture = Image.fromarray(pixels)
    height, width = limit_long_side((picture.height, picture.width), side)
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=85)
    return encoded.getvalue()


def limit_long_side(size: PictureSize, side: int) -> PictureSize:
    """A size of the same aspect whose longer side is at most `side`; none is 0."""
    scale = min(1.0, side / max(size))
    height, width = size
    return max(1, round(height * scale)), max(1, round(width * scale))


def stack_crops(crops: Sequence[CenterCrop]) -> Tensor:
    """The crops as a batch of images, n×C×rows×columns in [0, 1], in channels_last layout."""
    if any(crop.pixels.dtype != np.uint8 for crop in crops):
        return torch.cat([_convert_to_image(crop) for crop in crops])
    pixels = torch.from_numpy(np.stack([crop.pixels for crop in crops]))
    return pixels.permute(0, 3, 1, 2).float().div_(255)


class CropFrame(NamedTuple):
    """The rows and columns that are cut out, and those that the resized picture has to cover."""

    rows: int
    columns: int
    covered_rows: float
    covered_columns: float

    @property
    def size(self) -> PictureSize:
        """Height and width of the crop."""
        return self.rows, self.columns

    @property
    def covered_size(self) -> tuple[float, float]:
        """Height and width that the resized picture has at least."""
        return self.covered_rows, self.covered_columns

    def choose_resized_size(self, height: int, width: int) -> PictureSize:
        """The size to which a picture of that height and width is resized."""
        scale = max(self.covered_rows / height, self.covered_columns / width)
        return max(self.rows, round(height * scale)), max(self.columns, round(width * scale))

    def choose_middle_size(self, height: int, width: int) -> PictureSize:
        """The middle of a picture that is worth resizing: all but the ends of a very long one."""
        longest_height = round(MAX_ASPECT_RATIO * width * self.rows / self.columns)
        longest_width = round(MAX_ASPECT_RATIO * height * self.columns / self.rows)
        return min(height, max(1, longest_height)), min(width, max(1, longest_width))


def make_crop_frame(size: int | PictureSize, short_side: int | None) -> CropFrame:
    """The frame for a crop of `size` from a picture that is enlarged to cover `short_side`."""
    rows, columns = (size, size) if isinstance(size, int) else size
    crop_side = min(rows, columns)
    covered_side = max(crop_side, short_side or crop_side)
    covered_rows = rows * covered_side / crop_side
    covered_columns = columns * covered_side / crop_side
    return CropFrame(rows, columns, covered_rows, covered_columns)


def _convert_to_image(crop: CenterCrop) -> Tensor:
    """A crop of a picture or of bands as 1×C×rows×columns in [0, 1]."""
    pixels = torch.from_numpy(crop.pixels).permute(2, 0, 1)[None].float()
    return pixels / 255 if crop.pixels.dtype == np.uint8 else pixels


def _decode_crop(file: IO[bytes], frame: CropFrame) -> CenterCrop:
    """The crop of a picture file, or of one with bands."""
    if holds_bands(file):
        return _crop_bands(read_bands(file, MAX_PIXELS, DECODING_BUDGET), frame)
    with open_picture(file, cover=frame.covered_size, budget=DECODING_BUDGET) as decoded:
        pixels = _crop_picture(convert_to_rgb(decoded.picture), frame)
        return CenterCrop(pixels, decoded.height, decoded.width)


def _crop_bands(image: Tensor, frame: CropFrame) -> CenterCrop:
    """The crop of bands 1×C×H×W in [0, 1]."""
    height, width = image.shape[-2:]
    middle_height, middle_width = frame.choose_middle_size(height, width)
    middle = crop_center(image, middle_height, middle_width)
    resized = resize_image(middle, *frame.choose_resized_size(middle_height, middle_width))
    crop = crop_center(resized, frame.rows, frame.columns)
    return CenterCrop(crop[0].permute(1, 2, 0).contiguous().numpy(), height, width)


def _crop_picture(
    picture: Image.Image, frame: CropFrame
) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    """The crop of an RGB picture, rows×columns×3."""
    picture = _cut_ends_off(picture, frame)
    resized_height, resized_width = frame.choose_resized_size(picture.height, picture.width)
    # The crop of the resized picture, measured in pixels of the picture before resizing.
    left = (resized_width - frame.columns) // 2 * picture.width / resized_width
    top = (resized_height - frame.rows) // 2 * picture.height / resized_height
    right = left + frame.columns * picture.width / resized_width
    bottom = top + frame.rows * picture.height / resized_height

    size = (frame.columns, frame.rows)
    box = (left, top, right, bottom)
    if box != (0, 0, *size) or picture.size != size:
        picture = picture.resize(size, Image.Resampling.BILINEAR, box)
    return np.asarray(picture)


def _cut_ends_off(picture: Image.Image, frame: CropFrame) -> Image.Image:
    """The middle of a very long picture; any other picture as it is."""
    height, width = frame.choose_middle_size(picture.height, picture.width)
    if (height, width) == (picture.height, picture.width):
        return picture
    left = (picture.width - width) // 2
    top = (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))
