"""The formats that can be read, told by the first bytes of a file."""

import re
from dataclasses import dataclass

from sightline.errors import SightlineError


@dataclass(frozen=True)
class ImageFormat:
    """A readable format: the name of its Pillow plugin, a pattern of its first bytes, suffixes.

    Attributes:
        plugin: The name of the Pillow plugin that reads it; ARRAY for arrays, which none does.
        bytes_per_pixel: The most memory that decoding and conversion take for each pixel: the
            decoder's own buffers, the picture, and a copy that is upright and in sRGB.
    """

    plugin: str
    signature: bytes
    suffixes: tuple[str, ...]
    bytes_per_pixel: int = 12


ARRAY = "Npy"

# `Image.open` checks for decompression bombs with a process-wide limit, and tries formats that
# start other programs (EPS). Here the first bytes of a file choose one of these Pillow plugins,
# and a file without such a signature is refused.
READABLE_FORMATS = (
    ImageFormat("Jpeg", rb"\xff\xd8\xff", (".jpg", ".jpeg")),
    ImageFormat("Png", rb"\x89PNG\r\n\x1a\n", (".png",)),
    ImageFormat("Gif", rb"GIF8[79]a", (".gif",)),
    ImageFormat("WebP", rb"RIFF.{4}WEBP", (".webp",), bytes_per_pixel=24),
    ImageFormat("Avif", rb".{4}ftypavi[fs]", (".avif",), bytes_per_pixel=24),
    ImageFormat("Tiff", rb"II[*+]\0|MM\0[*+]", (".tif", ".tiff")),
    ImageFormat("Bmp", rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0", (".bmp",)),
    ImageFormat("Ppm", rb"P[1-6f]\s", (".ppm", ".pgm", ".pnm")),
    ImageFormat(
        "Jpeg2K",
        rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
        (".jp2",),
        bytes_per_pixel=32,
    ),
    # Arrays have other uses too, so a file is not taken for an image by this suffix.
    ImageFormat(ARRAY, rb"\x93NUMPY", ()),
)
IMAGE_FILE_SUFFIXES = tuple(suffix for format in READABLE_FORMATS for suffix in format.suffixes)

# What a file that is no picture may be instead. Only used to say so in the error message.
OTHER_SIGNATURES = {
    "HTML or XML": rb"(?i)\s*<(!doctype|html|head|body|svg|\?xml)",
    "HEIC": rb".{4}ftyp(hei|hev|mif1)",
    "JPEG XL": rb"\0\0\0\x0cJXL |\xff\x0a",
    "a Photoshop document": rb"8BPS",
    "a PDF document": rb"%PDF-",
    "PostScript": rb"%!PS",
    "an icon": rb"\0\0[\x01\x02]\0",
    "OpenEXR": rb"v/1\x01",
    "a packed archive": rb"\x1f\x8b|\xfd7zXZ\0|BZh|\x28\xb5\x2f\xfd|7z\xbc\xaf\x27\x1c|Rar!",
    "a video": rb".{4}ftyp|\x1a\x45\xdf\xa3|RIFF.{4}AVI |\0\0\x01[\xb3\xba]",
    "a zip archive or a pickle, perhaps PyTorch weights": rb"PK\x03\x04|\x80[\x02-\x05]",
    "safetensors weights": rb".{4}\0{4}\{",
    "text": rb"[\t\n\r\x20-\x7e\x80-\xff]+\Z",
}
SIGNATURE_LENGTH = 64  # bytes


def detect_format(first_bytes: bytes) -> ImageFormat:
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
