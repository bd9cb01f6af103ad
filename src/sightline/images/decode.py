"""Decoding of picture files: the only file that knows formats and codecs.

`open_picture` is the one decoder. `fit_square` makes from a picture's bytes the square of 8-bit
pixels that a network is fed, as cheaply as the codec allows: a JPEG is decoded at a reduced scale
that leaves at least twice the pixels needed, and crop and resizing are one step.
"""

import io
import logging
import re
import struct
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import IO, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps
from torch import Tensor

from sightline.errors import SightlineError
from sightline.images.color import GRAY_LEVELS, compute_srgb_gray_curve, convert_to_srgb
from sightline.images.validation import add_batch_axis, check_image, describe_out_of_range

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageFormat:
    """A readable format: the name of its Pillow plugin, a pattern of its first bytes, suffixes."""

    plugin: str
    signature: bytes
    suffixes: tuple[str, ...]


# `Image.open` checks for decompression bombs with a process-wide limit, and tries formats that
# start other programs (EPS). Here the first bytes of a file choose one of these Pillow plugins,
# and a file without such a signature is refused.
READABLE_FORMATS = (
    ImageFormat("Jpeg", rb"\xff\xd8\xff", (".jpg", ".jpeg")),
    ImageFormat("Png", rb"\x89PNG\r\n\x1a\n", (".png",)),
    ImageFormat("Gif", rb"GIF8[79]a", (".gif",)),
    ImageFormat("WebP", rb"RIFF.{4}WEBP", (".webp",)),
    ImageFormat("Avif", rb".{4}ftypavi[fs]", (".avif",)),
    ImageFormat("Tiff", rb"II[*+]\0|MM\0[*+]", (".tif", ".tiff")),
    ImageFormat("Bmp", rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0", (".bmp",)),
    ImageFormat("Ppm", rb"P[1-6f]\s", (".ppm", ".pgm", ".pnm")),
    ImageFormat("Jpeg2K", rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51", (".jp2",)),
)
IMAGE_FILE_SUFFIXES = tuple(suffix for format in READABLE_FORMATS for suffix in format.suffixes)

# What a file that is no picture may be instead. Only used to say so in the error message.
OTHER_SIGNATURES = {
    "HTML or XML": rb"(?i)\s*<(!doctype|html|head|body|svg|\?xml)",
    "HEIC": rb".{4}ftyp(hei|hev|mif1)",
    "a zip archive or a pickle, perhaps PyTorch weights": rb"PK\x03\x04|\x80[\x02-\x05]",
    "safetensors weights": rb".{4}\0{4}\{",
    "text": rb"[\t\n\r\x20-\x7e\x80-\xff]+\Z",
}
SIGNATURE_LENGTH = 64  # bytes

MAX_PIXELS = 100_000_000
# Of a picture longer than this, `fit_square` resizes only the middle.
MAX_ASPECT_RATIO = 3

EXIF_ORIENTATION_TAG = 0x0112
# The orientations in which rows and columns are exchanged.
TRANSPOSED_ORIENTATIONS = (5, 6, 7, 8)
TIFF_BITS_PER_SAMPLE_TAG = 258

ImageSource = bytes | Image.Image | Tensor


@dataclass(frozen=True)
class DecodedPicture:
    """A loaded, upright picture, perhaps at reduced scale, and the height and width of the file's.

    `frame_count` is 1 unless the frames were counted.
    """

    picture: Image.Image
    height: int
    width: int
    frame_count: int = 1


class FittedSquare(NamedTuple):
    """The middle square, side×side×3 in 0 to 255, and the upright picture's height and width."""

    pixels: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]"
    height: int
    width: int


# ── from bytes to a Pillow picture ──


@contextmanager
def open_picture(
    file: IO[bytes],
    max_pixels: int = MAX_PIXELS,
    *,
    short_side: int | None = None,
    count_frames: bool = False,
) -> Generator[DecodedPicture, None, None]:
    """Decodes a picture file; the picture can be used inside the `with` block.

    With `short_side`, a JPEG may be decoded at a reduced scale whose shorter side still has twice
    that many pixels. Counting the frames of an animation reads the whole file.

    Raises OSError if not even the first bytes can be read, otherwise only SightlineError, also
    for what goes wrong inside the block.
    """
    first_bytes = file.read(SIGNATURE_LENGTH)
    file.seek(0)
    format_name = _detect_format(first_bytes).plugin
    try:
        module = import_module(f"PIL.{format_name}ImagePlugin")
        plugin: type[ImageFile.ImageFile] = getattr(module, f"{format_name}ImageFile")
        with plugin(file) as picture:
            width, height = picture.size
            _check_pixel_count(width * height, max_pixels, f"{width}×{height} = ")
            frame_count: int = getattr(picture, "n_frames", 1) if count_frames else 1
            if format_name == "Jpeg" and short_side is not None:
                reduction = min(width, height) / (2 * short_side)
                picture.draft("RGB", (int(width / reduction), int(height / reduction)))
            raw_mode = str(picture.tile[0].args) if picture.tile else ""
            picture.load()
            _scale_transparent_color(picture, raw_mode)
            if _turn_upright(picture):
                height, width = width, height
            yield DecodedPicture(picture, height, width, frame_count)
    except SightlineError:
        raise
    except Exception as error:  # decoders raise all kinds of exceptions on broken files
        raise _make_decoding_error(format_name.upper(), error, max_pixels) from error


def decode_as_rgb(data: bytes, short_side: int) -> tuple[Image.Image, int, int]:
    """The picture in a file's bytes as 8-bit RGB, and the full size's height and width, upright.

    The picture may be smaller than that, see `open_picture`.
    """
    with open_picture(io.BytesIO(data), short_side=short_side) as decoded:
        return convert_to_rgb(decoded.picture), decoded.height, decoded.width


def _scale_transparent_color(picture: Image.Image, raw_mode: str) -> None:
    """Brings the one transparent color of a PNG to the 8 bits that its pixels were decoded to.

    Pillow leaves it in the bits of the file. Of 16-bit RGB only the higher bytes are compared, so
    that a color less than 1/256 from the transparent one may count as transparent too.
    """
    color = picture.info.get("transparency")
    if raw_mode == "RGB;16B" and isinstance(color, tuple):
        picture.info["transparency"] = tuple(value >> 8 for value in color)
    if raw_mode in ("L;2", "L;4") and isinstance(color, int):
        bits = int(raw_mode[2:])
        picture.info["transparency"] = color * 255 // (2**bits - 1)


def _turn_upright(picture: Image.Image) -> bool:
    """Applies the EXIF orientation in place; returns whether rows and columns were exchanged."""
    try:
        orientation = picture.getexif().get(EXIF_ORIENTATION_TAG, 1)
        ImageOps.exif_transpose(picture, in_place=True)
    except (SyntaxError, ValueError, LookupError, TypeError, struct.error) as error:
        # The EXIF block of an intact picture may be damaged.
        logger.debug("unreadable EXIF block; the picture is taken as upright (%s)", error)
        return False
    return orientation in TRANSPOSED_ORIENTATIONS


def _detect_format(first_bytes: bytes) -> ImageFormat:
    """The format of a file by its first bytes; raises SightlineError if it is none of ours."""
    if not first_bytes:
        raise SightlineError("an empty file")
    for image_format in READABLE_FORMATS:
        if re.match(image_format.signature, first_bytes, re.DOTALL):
            return image_format
    names = ", ".join(image_format.plugin for image_format in READABLE_FORMATS).upper()
    guess = ""
    for description, signature in OTHER_SIGNATURES.items():
        if re.match(signature, first_bytes, re.DOTALL):
            guess = f"; it looks like {description}"
            break
    raise SightlineError(f"not an image in a known format ({names}){guess}")


def _check_pixel_count(pixel_count: int, max_pixels: int, size: str = "") -> None:
    """Raises SightlineError above the limit; `size` stands before the count in its message."""
    if pixel_count > max_pixels:
        raise SightlineError(
            f"{size}{pixel_count:,} pixels, over the limit of {max_pixels:,}; "
            f"sightline.read(path, limit={pixel_count}) allows it"
        )


def _make_decoding_error(format_name: str, error: Exception, max_pixels: int) -> SightlineError:
    """The error that tells a user what a decoder's exception means."""
    if isinstance(error, Image.DecompressionBombError):
        # A few plugins check before they tell the size, which then only stands in their message.
        pixel_count = int(re.findall(r"\d+", str(error))[0])
        _check_pixel_count(pixel_count, max_pixels)
    if isinstance(error, MemoryError) or "allocate" in str(error):
        return SightlineError(f"not enough memory to decode this {format_name}")
    system_message = getattr(error, "strerror", None)
    if system_message:
        return SightlineError(system_message)
    reason = str(error) or type(error).__name__
    return SightlineError(f"a truncated, broken or unsupported {format_name} ({reason})")


# ── between Pillow pictures and tensors ──


def convert_pillow_to_tensor(picture: Image.Image) -> Tensor:
    """A loaded picture of any mode as 1×3×H×W, sRGB in [0, 1]; transparent pixels become white."""
    if _has_deep_pixels(picture):
        return _convert_deep_gray(picture).repeat(1, 3, 1, 1)
    picture = convert_to_srgb(picture)
    mode = "RGBA" if picture.has_transparency_data else "RGB"
    pixels = torch.as_tensor(np.array(picture.convert(mode)))
    planes = pixels.permute(2, 0, 1)[None].contiguous().float().div_(255)
    if mode == "RGB":
        return planes
    color = planes[:, :3]
    alpha = planes[:, 3:]
    return (color * alpha + (1 - alpha)).clamp_(0, 1)


def convert_tensor_to_pillow(image: Tensor) -> Image.Image:
    """An image 1×3×H×W or 3×H×W in [0, 1] as an 8-bit RGB picture."""
    return Image.fromarray(quantize_image(check_image(add_batch_axis(image))[0]))


def convert_to_rgb(picture: Image.Image) -> Image.Image:
    """A loaded picture of any mode as 8-bit sRGB; transparent pixels become white."""
    if not _has_deep_pixels(picture):
        picture = convert_to_srgb(picture)
    if picture.mode == "RGB" and not picture.has_transparency_data:
        return picture
    if _has_deep_pixels(picture) or picture.has_transparency_data:
        return convert_tensor_to_pillow(convert_pillow_to_tensor(picture))
    return picture.convert("RGB")


def quantize_image(image: Tensor) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    """One image 3×H×W rounded to 8 bits, H×W×3. Values beyond [0, 1] are clipped."""
    levels = image.detach().clamp(0, 1).mul_(255).round_().byte()
    return levels.permute(1, 2, 0).cpu().contiguous().numpy()


def _has_deep_pixels(picture: Image.Image) -> bool:
    """Whether the pixels are floats or integers of more than 8 bits. Such pictures are gray."""
    return picture.mode[0] in "FI"


def _convert_deep_gray(picture: Image.Image) -> Tensor:
    """H×W in [0, 1] of float or more than 8-bit gray, divided by its white, in sRGB."""
    if picture.mode == "I" and picture.format != "PPM":
        raise SightlineError(
            "integer pixels, signed or of 32 bits, whose white is unknown; "
            "save it with 8 or 16 bits"
        )
    if picture.mode == "F":
        white = 1
    else:
        # Pillow leaves the values of a 12-bit TIFF as they are, and widens PNM to 16 bits.
        tiff_tags = getattr(picture, "tag_v2", {})
        bits: int = tiff_tags.get(TIFF_BITS_PER_SAMPLE_TAG, (16,))[0]
        white = 2**bits - 1
    values = torch.as_tensor(np.array(picture).astype(np.float32))
    transparent_level = picture.info.get("transparency")
    is_transparent = None
    if isinstance(transparent_level, int):
        is_transparent = values == transparent_level
    values.div_(white)
    problem = describe_out_of_range(values, tolerance=1e-4)
    if problem:
        raise SightlineError(f"pixels {problem}; they must lie in [0, 1]")
    values.clamp_(0, 1)

    profile: bytes | None = picture.info.get("icc_profile")
    curve = compute_srgb_gray_curve(profile) if profile else None
    if curve is not None:
        values = curve[values.mul(GRAY_LEVELS - 1).round().long()]
    if is_transparent is not None:
        values[is_transparent] = 1
    return values


# ── the square that a network is fed ──


def fit_square(source: ImageSource, side: int, short_side: int) -> FittedSquare:
    """What `Model.fit` makes of a picture, in 8 bits.

    The shorter side is resized to `short_side`, then the middle `side`×`side` is cut out.
    `source` is a file's bytes, a Pillow picture or an image tensor 1×3×H×W. Raises SightlineError
    for bytes and tensors that are no whole picture.
    """
    picture, height, width = _open_source_as_rgb(source, short_side)
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
    return FittedSquare(np.asarray(picture), height, width)


def encode_thumbnail(square: FittedSquare, side: int) -> bytes:
    """The square as a JPEG file of at most `side`×`side` pixels."""
    picture = Image.fromarray(square.pixels)
    if picture.width > side:
        picture = picture.resize((side, side), Image.Resampling.BILINEAR)
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=85)
    return encoded.getvalue()


def stack_squares(squares: list[FittedSquare]) -> Tensor:
    """The squares as a batch of images, n×3×side×side in [0, 1], in channels_last layout."""
    pixels = torch.from_numpy(np.stack([square.pixels for square in squares]))
    return pixels.permute(0, 3, 1, 2).float().div_(255)


def _open_source_as_rgb(source: ImageSource, short_side: int) -> tuple[Image.Image, int, int]:
    """The picture as 8-bit RGB, perhaps at reduced scale, and its full height and width."""
    if isinstance(source, bytes):
        return decode_as_rgb(source, short_side)
    if isinstance(source, Tensor):
        picture = convert_tensor_to_pillow(source)
    else:
        picture = convert_to_rgb(source)
    return picture, picture.height, picture.width


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
