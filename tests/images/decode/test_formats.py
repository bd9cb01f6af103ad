"""Formats are told by the first bytes; what is none is named as far as it can be."""

import io
import re

import pytest
from PIL import Image

import sightline as sl
from sightline.images.decode.formats import (
    IMAGE_FILE_SUFFIXES,
    SIGNATURE_LENGTH,
    detect_format,
)


@pytest.mark.parametrize(
    ("pillow_name", "plugin"),
    [
        ("JPEG", "Jpeg"),
        ("PNG", "Png"),
        ("GIF", "Gif"),
        ("WEBP", "WebP"),
        ("TIFF", "Tiff"),
        ("BMP", "Bmp"),
        ("PPM", "Ppm"),
        ("JPEG2000", "Jpeg2K"),
    ],
)
def test_what_pillow_writes_is_recognized(pillow_name: str, plugin: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (9, 5), "red").save(file, pillow_name)
    detected = detect_format(file.getvalue()[:SIGNATURE_LENGTH])
    assert detected.plugin == plugin
    assert set(detected.suffixes) <= set(IMAGE_FILE_SUFFIXES)


@pytest.mark.parametrize(
    ("first_bytes", "words"),
    [
        (b"", "an empty file"),
        (b"<!DOCTYPE html>", "it looks like HTML or XML"),
        (b"  <svg xmlns=", "it looks like HTML or XML"),
        (b"\0\0\0\x18ftypheic", "it looks like HEIC"),
        (b"\0\0\0\x18ftypisom", "it looks like a video"),
        (b"PK\x03\x04", "perhaps PyTorch weights"),
        (b"\x40\0\0\0\0\0\0\0{", "it looks like safetensors weights"),
        (b"This is no photograph.", "it looks like text"),
        (b"\x01\x02\x03\x04", "not an image in a known format (JPEG, PNG"),
        (b"%!PS-Adobe-3.0 EPSF", "it looks like PostScript"),
    ],
)
def test_what_is_no_picture_is_named(first_bytes: bytes, words: str) -> None:
    with pytest.raises(sl.SightlineError, match=re.escape(words)):
        detect_format(first_bytes)


def test_a_bmp_needs_the_size_of_its_header() -> None:
    """Otherwise a text that begins with BM would be one."""
    with pytest.raises(sl.SightlineError, match="it looks like text"):
        detect_format(b"BMW drivers, all of them")
