"""Images of any number of bands: arrays in `.npy` files, and TIFF files that are no pictures.

Pillow reads the TIFF files of 8-bit pictures, of pictures with transparency or a color profile, and
of one band. All others are read here, without loss.
"""

import logging
import math
import os
import re
import zlib
from collections.abc import Sequence
from contextlib import nullcontext
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sightline.errors import SightlineError, is_out_of_memory
from sightline.images.decode.formats import SIGNATURE_LENGTH
from sightline.images.decode.memory import MemoryBudget
from sightline.images.decode.source import MAX_FILE_BYTES, check_file_size
from sightline.images.validation import describe_out_of_range

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

Array = np.ndarray[Any, np.dtype[Any]]

# So many values may be decoded for each pixel of the limit: as many as a picture with transparency
# has.
VALUES_PER_PIXEL = 4
# What decoding takes for each value: the value in the file, as float, and turned upright.
BYTES_PER_VALUE = 16

NUMPY_SIGNATURE = b"\x93NUMPY"
TIFF_SIGNATURE = re.compile(rb"II[*+]\0|MM\0[*+]")

# Values of the TIFF tags for the meaning of colors, the format of samples, extra samples and the
# compression.
MIN_IS_WHITE, MIN_IS_BLACK, TIFF_RGB = 0, 1, 2
SIGNED_SAMPLES, FLOAT_SAMPLES = 2, 3
ALPHA_SAMPLES = (1, 2)
UNCOMPRESSED = 1
DEFLATE_COMPRESSIONS = (8, 32946)
# No differences, and those between neighbouring integers.
KNOWN_PREDICTORS = (1, 2)
ICC_PROFILE_TAG = 34675
ORIENTATION_TAG = 274

# A logger without a handler prints its warnings; what they tell stands in the error that follows.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


def holds_bands(file: IO[bytes]) -> bool:
    """Whether a file is an array, or a TIFF file of bands that no picture has.

    A broken file is none. The file is left at its beginning.
    """
    first_bytes = file.read(SIGNATURE_LENGTH)
    file.seek(0)
    if first_bytes.startswith(NUMPY_SIGNATURE):
        return True
    if not TIFF_SIGNATURE.match(first_bytes):
        return False
    import tifffile

    try:
        with tifffile.TiffFile(file) as tiff:
            return _is_array_in_pages(tiff) or not _is_picture(_get_first_page(tiff))
    except Exception:  # noqa: BLE001 - Pillow then says what is wrong with the file
        return False
    finally:
        file.seek(0)


def read_bands(file: IO[bytes], max_pixels: int, budget: MemoryBudget | None = None) -> Tensor:
    """The image in a file of bands: 1×C×H×W in [0, 1]; one band is repeated to gray, C = 3.

    Integers of 8 and 16 bits are divided by their largest value; floats must lie in [0, 1]. The
    bands are the first or the last axis of an array, the one that is shorter than both others.

    Raises SightlineError for everything that can't be read so.
    """
    check_file_size(file.seek(0, os.SEEK_END), max(MAX_FILE_BYTES, 8 * max_pixels))
    file.seek(0)
    first_bytes = file.read(SIGNATURE_LENGTH)
    file.seek(0)
    format_name = "array" if first_bytes.startswith(NUMPY_SIGNATURE) else "TIFF"
    try:
        if format_name == "array":
            return _read_numpy_file(file, max_pixels, budget)
        return _read_tiff_file(file, max_pixels, budget)
    except SightlineError:
        raise
    except Exception as error:  # parsers raise all kinds of exceptions on broken files
        if is_out_of_memory(error):
            raise SightlineError(f"not enough memory to decode this {format_name}") from error
        reason = str(error).split("\n")[0][:200] or type(error).__name__
        raise SightlineError(
            f"a truncated, broken or unsupported {format_name} ({reason})"
        ) from error


def convert_bands_to_image(values: Array) -> Tensor:
    """Bands C×H×W of a file's numbers as an image 1×C×H×W in [0, 1]."""
    image = torch.from_numpy(np.array(values, np.float32, order="C"))
    if values.dtype.kind == "u":
        image = image.div_(np.iinfo(values.dtype).max)
    problem = describe_out_of_range(image, tolerance=1e-4)
    if problem:
        raise SightlineError(f"pixels {problem}; they must lie in [0, 1]")
    if len(image) == 1:
        image = image.expand(3, -1, -1)
    return image.clamp(0, 1)[None]


def _check_kind(dtype: np.dtype[Any]) -> None:
    """Raises SightlineError for numbers whose white is unknown, and for what is no number."""
    if dtype.kind in "fb" or (dtype.kind == "u" and dtype.itemsize <= 2):
        return
    if dtype.kind in "iu":
        raise SightlineError(
            f"pixels of {dtype}, whose white is unknown; save them as uint8, uint16, or as floats "
            "in [0, 1]"
        )
    kind = "Python objects" if dtype.hasobject else str(dtype)
    raise SightlineError(f"an array of {kind}; an image has uint8, uint16, or floats in [0, 1]")


def _check_value_count(bands: int, height: int, width: int, max_pixels: int) -> None:
    """Raises SightlineError for more values than may be decoded."""
    count = bands * height * width
    needed_limit = max(height * width, -(-count // VALUES_PER_PIXEL))
    if needed_limit > max_pixels:
        raise SightlineError(
            f"{bands} bands of {height}×{width} = {count:,} values, over the limit of "
            f"{max_pixels:,} pixels of {VALUES_PER_PIXEL}; "
            f"sightline.read(path, limit={needed_limit}) allows it"
        )


def find_band_axis(shape: Sequence[int]) -> int:
    """The axis of the bands in an array of three axes, 0 or 2: the one shorter than both others.

    Raises SightlineError where it is neither.
    """
    first, middle, last = shape
    if first < min(middle, last):
        return 0
    if last < min(first, middle):
        return 2
    raise SightlineError(
        f"an array {tuple(shape)}, whose bands can't be told from rows and columns: neither the "
        "first axis nor the last is shorter than both others; give the image as a tensor 1×C×H×W"
    )


# ── arrays ──


def _read_numpy_file(file: IO[bytes], max_pixels: int, budget: MemoryBudget | None) -> Tensor:
    """The image in a `.npy` file. Nothing in it is run, and its claims are checked first."""
    shape, is_fortran, dtype = _read_numpy_header(file)
    if len(shape) == 4 and shape[0] == 1:
        shape = shape[1:]
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise SightlineError(f"an array {shape}; an image is H×W, H×W×C or C×H×W")
    _check_kind(dtype)
    band_axis = find_band_axis(shape) if len(shape) == 3 else None
    bands = 1 if band_axis is None else shape[band_axis]
    height, width = (length for axis, length in enumerate(shape) if axis != band_axis)
    _check_value_count(bands, height, width, max_pixels)

    value_count = bands * height * width
    byte_count = value_count * dtype.itemsize
    _check_bytes_left(file, byte_count)
    with budget.reserve_bytes(value_count * BYTES_PER_VALUE) if budget else nullcontext():
        numbers = np.frombuffer(file.read(byte_count), dtype)
        values = numbers.reshape(shape, order="F" if is_fortran else "C")
        if band_axis is None:
            values = values[None]
        elif band_axis == 2:
            values = values.transpose(2, 0, 1)
        return convert_bands_to_image(values)


def _check_bytes_left(file: IO[bytes], byte_count: int) -> None:
    """Raises SightlineError if fewer bytes follow than an array's header claims."""
    start = file.tell()
    available = file.seek(0, os.SEEK_END) - start
    file.seek(start)
    if available < byte_count:
        raise SightlineError(
            f"a truncated array: its header claims {byte_count:,} bytes, {available:,} follow"
        )


def _read_numpy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type of the array in a `.npy` file, which is left at its first number."""
    from numpy.lib import format as numpy_format

    version = numpy_format.read_magic(file)
    if version == (1, 0):
        return numpy_format.read_array_header_1_0(file)
    if version == (2, 0):
        return numpy_format.read_array_header_2_0(file)
    raise SightlineError(f"an array file of version {version[0]}.{version[1]}, not 1.0 or 2.0")


# ── TIFF ──


def _get_first_page(tiff: "TiffFile") -> "TiffPage":
    from tifffile import TiffPage

    page = tiff.pages[0]
    if not isinstance(page, TiffPage) or page.dtype is None:
        raise SightlineError("a TIFF file without pixels")
    return page


def _is_array_in_pages(tiff: "TiffFile") -> bool:
    """Whether tifffile wrote an array of three axes as pages of one sample."""
    page = _get_first_page(tiff)
    if not tiff.is_shaped or page.samplesperpixel != 1 or len(tiff.series) != 1:
        return False
    shape = tiff.series[0].shape
    if len(shape) != 3 or shape[-2:] != page.shape:
        return False
    try:
        find_band_axis(shape)
    except SightlineError:
        return False
    return True


def _is_picture(page: "TiffPage") -> bool:
    """Whether Pillow reads a page without loss, or has to read it for its colors."""
    samples = page.samplesperpixel
    if samples == 1:
        # Pillow takes signed bytes for unsigned ones, and reads no other floats than of 32 bits.
        is_signed_byte = page.sampleformat == SIGNED_SAMPLES and page.bitspersample == 8
        is_other_float = page.sampleformat == FLOAT_SAMPLES and page.bitspersample != 32
        return not is_signed_byte and not is_other_float
    has_alpha = bool(page.extrasamples) and page.extrasamples[-1] in ALPHA_SAMPLES
    photometric = int(page.photometric)
    if photometric in (MIN_IS_WHITE, MIN_IS_BLACK):
        return samples == 2 and has_alpha and page.sampleformat != FLOAT_SAMPLES
    if photometric == TIFF_RGB:
        return _is_color_picture(page, has_alpha=has_alpha)
    return samples <= 4  # CMYK, YCbCr, Lab


def _is_color_picture(page: "TiffPage", *, has_alpha: bool) -> bool:
    """Whether Pillow reads a page of red, green and blue, and perhaps more samples."""
    if page.sampleformat == FLOAT_SAMPLES:
        return False
    if page.samplesperpixel > 3:
        return page.samplesperpixel == 4 and has_alpha
    return page.bitspersample <= 8 or ICC_PROFILE_TAG in page.tags


def _read_tiff_file(file: IO[bytes], max_pixels: int, budget: MemoryBudget | None) -> Tensor:
    """The bands of a TIFF file's first image, upright."""
    import tifffile

    with tifffile.TiffFile(file) as tiff:
        page = _get_first_page(tiff)
        # Either the first page, or all pages of the first series, which hold a band each.
        stored: Any = tiff.series[0] if _is_array_in_pages(tiff) else page
        axes = _find_axes(stored, page)
        height, width = (stored.shape[axes.index(axis)] for axis in "YX")
        bands = stored.shape[axes.index("C")] if "C" in axes else 1
        _check_kind(np.dtype(page.dtype))
        _check_value_count(bands, height, width, max_pixels)

        needed_bytes = bands * height * width * BYTES_PER_VALUE
        with budget.reserve_bytes(needed_bytes) if budget else nullcontext():
            for single_page in [page] if stored is page else stored.pages:
                _check_segments(single_page, file)
            values = stored.asarray()
            if "C" in axes:
                values = values.transpose([axes.index(axis) for axis in "CYX"])
            else:
                values = values[None]
            orientation = page.tags.valueof(ORIENTATION_TAG, 1)
            image = convert_bands_to_image(_turn_bands_upright(values, int(orientation)))
        return 1 - image if int(page.photometric) == MIN_IS_WHITE else image


def _find_axes(stored: Any, page: "TiffPage") -> str:
    """What the axes of a page, or of an array in pages, are: rows Y, columns X and bands C.

    A page of one band has no axis of them.
    """
    if stored is not page:
        return "CYX" if find_band_axis(stored.shape) == 0 else "YXC"
    axes = page.axes.replace("S", "C")
    if axes != "YX" and sorted(axes) != ["C", "X", "Y"]:
        raise SightlineError(f"a TIFF file of axes {page.axes}; an image has rows and columns")
    return axes


def _check_segments(page: Any, file: IO[bytes]) -> None:
    """Raises SightlineError for data that is not whole, or unpacks to more than it claims."""
    compression = int(page.compression)
    name = getattr(page.compression, "name", str(compression))
    if compression != UNCOMPRESSED and compression not in DEFLATE_COMPRESSIONS:
        raise SightlineError(
            f"a TIFF file of several bands packed as {name}; save it uncompressed or with deflate"
        )
    if int(page.predictor) not in KNOWN_PREDICTORS:
        raise SightlineError(
            "a TIFF file of several bands packed with a predictor for floats; save it without"
        )
    segments = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    byte_count = file.seek(0, os.SEEK_END)
    if any(offset + length > byte_count for offset, length in segments):
        raise SightlineError("a truncated TIFF: a part of its pixels lies beyond its end")
    stored_bytes = sum(page.databytecounts)
    claimed_bytes = math.prod(page.shape) * page.dtype.itemsize
    is_short = compression == UNCOMPRESSED and stored_bytes < claimed_bytes
    if is_short or len(segments) < math.prod(page.chunked):
        raise SightlineError("a truncated TIFF: pixels are missing")
    if compression != UNCOMPRESSED:
        _check_unpacked_sizes(segments, math.prod(page.chunks) * page.dtype.itemsize, file)


def _check_unpacked_sizes(
    segments: Sequence[tuple[int, int]], segment_bytes: int, file: IO[bytes]
) -> None:
    """Raises SightlineError for deflated segments (offset, length) that unpack to more bytes."""
    for offset, length in segments:
        file.seek(offset)
        unpacked = zlib.decompressobj().decompress(file.read(length), segment_bytes + 1)
        if len(unpacked) > segment_bytes:
            raise SightlineError("a broken TIFF: its pixels unpack to more than it claims")


def _turn_bands_upright(values: Array, orientation: int) -> Array:
    """Bands C×H×W turned by the value of a TIFF file's orientation tag."""
    if orientation in (5, 6, 7, 8):
        values = values.transpose(0, 2, 1)
    if orientation in (2, 3, 6, 7):
        values = values[:, :, ::-1]
    if orientation in (3, 4, 7, 8):
        values = values[:, ::-1]
    return values
