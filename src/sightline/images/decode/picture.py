"""Decoding of picture files: the only file that knows codecs. `open_picture` is the one decoder."""

import io
import logging
import os
import re
import struct
from collections.abc import Generator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO

from PIL import Image, ImageFile, ImageOps

from sightline.errors import SightlineError, is_out_of_memory
from sightline.images.decode.claim import check_claimed_size, count_tile_pixels
from sightline.images.decode.formats import (
    ARRAY,
    SIGNATURE_LENGTH,
    ImageFormat,
    detect_format,
)
from sightline.images.decode.libtiff import silence_libtiff
from sightline.images.decode.memory import MemoryBudget
from sightline.images.decode.pixels import convert_to_rgb
from sightline.images.decode.source import MAX_FILE_BYTES, check_file_size

logger = logging.getLogger(__name__)

MAX_PIXELS = 100_000_000
# No pixel takes more in a file: four channels of 16 bits.
MAX_BYTES_PER_PIXEL = 8
# What the decoder of a progressive JPEG keeps of each pixel of the file, at any scale: three
# coefficients of 16 bits.
PROGRESSIVE_BYTES_PER_PIXEL = 6

# The decoder goes over all pixels for each scan of a JPEG, and a scan takes a few bytes; encoders
# write about ten.
MAX_SCANS = 100
START_OF_SCAN = b"\xff\xda"
COUNTED_BLOCK_BYTES = 1_000_000

# Of a TIFF file no more pages are counted: Pillow takes ever longer for the next one.
MAX_COUNTED_PAGES = 1000

EXIF_ORIENTATION_TAG = 0x0112
# The orientations in which rows and columns are exchanged.
TRANSPOSED_ORIENTATIONS = (5, 6, 7, 8)


@dataclass(frozen=True)
class DecodedPicture:
    """A loaded, upright picture, perhaps at reduced scale, and the height and width of the file's.

    `frame_count` is 1 unless the frames were counted; of a TIFF file's at most 1000 are.
    """

    picture: Image.Image
    height: int
    width: int
    frame_count: int = 1


@contextmanager
def open_picture(
    file: IO[bytes],
    max_pixels: int = MAX_PIXELS,
    *,
    cover: tuple[float, float] | None = None,
    count_frames: bool = False,
    budget: MemoryBudget | None = None,
) -> Generator[DecodedPicture, None, None]:
    """Decodes a picture file; the picture can be used inside the `with` block.

    With `cover`, a height and width in pixels that the picture will be resized to cover, a JPEG may
    be decoded at a reduced scale that still has twice the pixels needed. Counting the frames of an
    animation reads the whole file. With a `budget`, the memory for the picture is reserved from it
    until the block ends.

    Raises OSError if not even the first bytes can be read, otherwise only SightlineError, also
    for what goes wrong inside the block.
    """
    image_format = detect_format(file.read(SIGNATURE_LENGTH))
    format_name = image_format.plugin
    if format_name == ARRAY:
        raise SightlineError("an array of numbers, where a picture is expected")
    byte_count = file.seek(0, os.SEEK_END)
    check_file_size(byte_count, max(MAX_FILE_BYTES, MAX_BYTES_PER_PIXEL * max_pixels))
    file.seek(0)
    try:
        with _get_plugin(image_format)(file) as picture:
            width, height = picture.size
            _check_pixel_count(width * height, max_pixels, f"{width}×{height} = ")
            check_claimed_size(picture, byte_count)
            frame_count = _count_frames(picture) if count_frames else 1
            if format_name == "Jpeg":
                _check_scan_count(picture, file)
            if format_name == "Jpeg" and cover is not None:
                # Whichever way its EXIF turns it.
                reduction = min(width, height) / (2 * max(cover))
                picture.draft("RGB", (int(width / reduction), int(height / reduction)))
            needed_bytes = byte_count + _estimate_decoding_bytes(
                image_format, picture, width * height
            )
            with budget.reserve_bytes(needed_bytes) if budget else nullcontext():
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
    with open_picture(io.BytesIO(data), cover=(short_side, short_side)) as decoded:
        return convert_to_rgb(decoded.picture), decoded.height, decoded.width


def read_orientation(path: Path) -> int:
    """The EXIF orientation of a picture file, 1 to 8; 1 where it has none.

    Raises OSError and SightlineError for what is no picture.
    """
    with path.open("rb") as file:
        image_format = detect_format(file.read(SIGNATURE_LENGTH))
        if image_format.plugin == ARRAY:
            return 1
        file.seek(0)
        try:
            with _get_plugin(image_format)(file) as picture:
                return int(picture.getexif().get(EXIF_ORIENTATION_TAG, 1))
        except Exception as error:  # noqa: BLE001 - as in `_turn_upright`, and broken files
            logger.debug("unreadable EXIF block; the picture is taken as upright (%s)", error)
            return 1


def _get_plugin(image_format: ImageFormat) -> type[ImageFile.ImageFile]:
    """Pillow's class for the pictures of a format."""
    if image_format.plugin == "Tiff":
        silence_libtiff()
    module = import_module(f"PIL.{image_format.plugin}ImagePlugin")
    return getattr(module, f"{image_format.plugin}ImageFile")


def _count_frames(picture: ImageFile.ImageFile) -> int:
    """The frames of an animation, or the pages of a TIFF file as far as they are counted."""
    if picture.format != "TIFF":
        return int(getattr(picture, "n_frames", 1))
    count = 1
    with suppress(EOFError):
        while count < MAX_COUNTED_PAGES:
            picture.seek(count)
            count += 1
    picture.seek(0)
    return count


def _check_scan_count(picture: ImageFile.ImageFile, file: IO[bytes]) -> None:
    """Raises SightlineError for a JPEG in more scans than any encoder writes.

    `file` stands behind the header of the first scan, as Pillow leaves it; it is left there.
    """
    start = file.tell()
    component_count = len(picture.getbands())
    header = START_OF_SCAN + bytes([0, 6 + 2 * component_count, component_count])
    file.seek(max(0, start - 8 - 2 * component_count))
    if "progressive" not in picture.info and file.read(len(header)) == header:
        file.seek(start)
        return  # all components are in the one scan
    file.seek(start)
    scan_count = 1
    while block := file.read(COUNTED_BLOCK_BYTES):
        scan_count += block.count(START_OF_SCAN)
    file.seek(start)
    if scan_count > MAX_SCANS:
        raise SightlineError(
            f"broken: a JPEG in {scan_count:,} scans; at most {MAX_SCANS} are decoded"
        )


def _estimate_decoding_bytes(
    image_format: ImageFormat, picture: ImageFile.ImageFile, file_pixels: int
) -> int:
    """The most memory that the picture takes at the scale at which it will be decoded."""
    width, height = picture.size
    pixel_count = width * height + count_tile_pixels(picture)
    byte_count = pixel_count * image_format.bytes_per_pixel
    if "progressive" in picture.info:
        byte_count += file_pixels * PROGRESSIVE_BYTES_PER_PIXEL
    return byte_count


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
    if is_out_of_memory(error):
        return SightlineError(f"not enough memory to decode this {format_name}")
    system_message = getattr(error, "strerror", None)
    if system_message:
        return SightlineError(system_message)
    reason = str(error) or type(error).__name__
    return SightlineError(f"a truncated, broken or unsupported {format_name} ({reason})")
