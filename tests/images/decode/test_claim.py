"""The fewest bytes that a picture can take, against the smallest files that encoders make."""

import io
from typing import Any

import pytest
from PIL import Image, ImageFile

import sightline as sl
from sightline.images.decode.claim import check_claimed_size, count_fewest_bytes

# The plainest picture takes the fewest bytes.
PLAIN: list[tuple[str, str, dict[str, Any]]] = [
    *((mode, "PNG", {"compress_level": 9}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")),
    *(
        (mode, "TIFF", {"compression": compression})
        for mode in ("1", "L", "RGB", "RGBA", "CMYK", "I;16", "F")
        for compression in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits")
    ),
    ("1", "TIFF", {"compression": "group4"}),
    ("RGB", "TIFF", {"compression": "zstd"}),
    ("RGB", "TIFF", {"compression": "jpeg"}),
    *((mode, "GIF", {}) for mode in ("1", "L")),
    *((mode, "BMP", {}) for mode in ("1", "L", "RGB")),
    *((mode, "PPM", {}) for mode in ("1", "L", "RGB")),
    *((mode, "JPEG", {"quality": 1, "optimize": True}) for mode in ("L", "RGB", "CMYK")),
    ("L", "JPEG", {"quality": 1, "progressive": True}),
    ("RGB", "WEBP", {"lossless": True}),
    ("RGB", "AVIF", {"quality": 1}),
    ("RGB", "JPEG2000", {}),
]


def encode_plain(mode: str, file_format: str, options: dict[str, Any]) -> bytes:
    encoded = io.BytesIO()
    Image.new(mode, (1201, 900)).save(encoded, file_format, **options)
    return encoded.getvalue()


def open_file(data: bytes) -> ImageFile.ImageFile:
    picture = Image.open(io.BytesIO(data))
    assert isinstance(picture, ImageFile.ImageFile)
    return picture


@pytest.mark.parametrize(("mode", "file_format", "options"), PLAIN, ids=str)
def test_no_whole_file_is_refused(mode: str, file_format: str, options: dict[str, Any]) -> None:
    data = encode_plain(mode, file_format, options)
    picture = open_file(data)
    assert count_fewest_bytes(picture) <= len(data)
    check_claimed_size(picture, len(data))
    picture.load()


@pytest.mark.parametrize(
    ("mode", "file_format", "share"),
    [("RGB", "BMP", 0.4), ("RGB", "PPM", 0.4), ("L", "PPM", 0.1), ("RGBA", "TIFF", 0.4)],
)
def test_of_raw_pixels_the_bound_is_near(mode: str, file_format: str, share: float) -> None:
    data = encode_plain(mode, file_format, {})
    assert share * len(data) < count_fewest_bytes(open_file(data)) <= len(data)


@pytest.mark.parametrize(
    ("mode", "file_format", "options"),
    [
        ("RGB", "PNG", {}),
        ("RGB", "TIFF", {"compression": "tiff_adobe_deflate"}),
        ("RGB", "TIFF", {"compression": "packbits"}),
        ("L", "GIF", {}),
        ("RGB", "JPEG", {}),
    ],
    ids=str,
)
def test_a_tiny_file_is_refused(mode: str, file_format: str, options: dict[str, Any]) -> None:
    picture = open_file(encode_plain(mode, file_format, options))
    with pytest.raises(sl.SightlineError, match=r"it claims 1201×900 pixels, which take [0-9,]+ b"):
        check_claimed_size(picture, 60)


def test_bands_that_lie_apart_count_once() -> None:
    """As in a TIFF of three planes, of one bit less than is raw in no mode."""
    picture = open_file(encode_plain("RGB", "TIFF", {}))
    tile = picture.tile[0]
    fewest = count_fewest_bytes(picture)
    picture.tile = [tile._replace(args=(band, 0, 1)) for band in "RGB"]
    assert count_fewest_bytes(picture) == fewest == 1201 * 900 * 12 // 8
