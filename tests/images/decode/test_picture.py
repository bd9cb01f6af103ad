"""The middle square of a picture, from bytes: its pixels, its true size, and which way is up."""

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers import smooth
from PIL import Image

from sightline.errors import SightlineError
from sightline.images.decode.center_crop import (
    CenterCrop,
    encode_thumbnail,
    fit_center_crop,
    stack_crops,
)
from sightline.images.decode.formats import IMAGE_FILE_SUFFIXES
from sightline.images.decode.picture import decode_as_rgb, open_picture
from sightline.images.decode.pixels import convert_tensor_to_pillow, convert_to_rgb
from sightline.images.transforms import crop_center, resize_short_side
from sightline.models.network.preprocessing import fit_image

# What a viewer does with the stored pixels of each EXIF orientation (CIPA DC-008, 4.6.4).
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda pixels: pixels,
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: np.swapaxes(pixels, 0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(np.swapaxes(pixels, 0, 1), 2),
    8: np.rot90,
}
HEIGHT, WIDTH = 40, 56


def make_pixels(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A smooth picture, neither square nor symmetric, H×W×3."""
    side = max(height, width)
    picture = smooth(side=side, seed=5)[0, :, :height, :width]
    return picture.mul(255).round().byte().permute(1, 2, 0).contiguous().numpy()


def encode(pixels: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def encode_turned(pixels: np.ndarray, orientation: int, kind: str, **options: object) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(pixels, kind, exif=exif, **options)


def resize_by_pillow(pixels: np.ndarray, side: int, short_side: int) -> np.ndarray:
    """The whole picture resized, then its middle cut out: two steps instead of one."""
    height, width = pixels.shape[:2]
    scale = short_side / min(height, width)
    size = (round(width * scale), round(height * scale))
    resized = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
    top = (resized.shape[0] - side) // 2
    left = (resized.shape[1] - side) // 2
    return resized[top : top + side, left : left + side]


def max_difference(square: CenterCrop, expected: np.ndarray) -> int:
    assert square.pixels.shape == expected.shape
    return int(np.abs(square.pixels.astype(int) - expected.astype(int)).max())


# ── which way is up ──


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_size_and_pixels_are_upright(orientation: int, kind: str) -> None:
    pixels = make_pixels()
    upright = UPRIGHT[orientation](pixels)
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100, "subsampling": 0}
    data = encode_turned(pixels, orientation, kind, **options)
    tolerance = 6 if kind == "JPEG" else 1

    with open_picture(io.BytesIO(data)) as decoded:
        assert (decoded.height, decoded.width) == upright.shape[:2]
        assert (decoded.picture.height, decoded.picture.width) == upright.shape[:2]

    square = fit_center_crop(data, 24, short_side=32)
    assert (square.height, square.width) == upright.shape[:2]
    assert max_difference(square, resize_by_pillow(upright, 24, 32)) <= tolerance


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_a_large_jpeg_is_reduced_while_it_is_decoded_and_tells_its_full_size(
    orientation: int,
) -> None:
    pixels = make_pixels(400, 560)
    upright = UPRIGHT[orientation](pixels)
    data = encode_turned(pixels, orientation, "JPEG", quality=95)
    picture, height, width = decode_as_rgb(data, short_side=32)
    assert (height, width) == upright.shape[:2]
    assert (picture.height, picture.width) == (upright.shape[0] // 4, upright.shape[1] // 4)
    square = fit_center_crop(data, 32, short_side=32)
    assert (square.height, square.width) == upright.shape[:2]
    assert max_difference(square, resize_by_pillow(upright, 32, 32)) <= 8


def test_a_small_jpeg_is_decoded_whole() -> None:
    data = encode(make_pixels(), "JPEG")
    picture, _, _ = decode_as_rgb(data, short_side=32)
    assert (picture.height, picture.width) == (HEIGHT, WIDTH)


# ── the square ──


@pytest.mark.parametrize(("height", "width"), [(40, 56), (56, 40), (31, 77), (77, 32)])
@pytest.mark.parametrize(("side", "short_side"), [(24, 24), (24, 32), (20, 33), (60, 64)])
def test_crop_and_resizing_in_one_step_are_the_two_steps(
    height: int, width: int, side: int, short_side: int
) -> None:
    pixels = make_pixels(height, width)
    square = fit_center_crop(encode(pixels), side, short_side)
    # At the crop's border the one step does not see the pixels beyond it.
    expected = resize_by_pillow(pixels, side, short_side)
    inside = (slice(2, -2), slice(2, -2))
    difference = np.abs(square.pixels.astype(int) - expected.astype(int))
    assert difference[inside].max() <= 2
    assert (square.height, square.width) == (height, width)


def test_the_square_is_what_a_model_makes_of_the_tensor() -> None:
    image = smooth(side=64)[..., :40, :56]
    square = fit_center_crop(image, 24, short_side=32)
    expected = crop_center(resize_short_side(image, 32), 24, 24)
    assert (stack_crops([square]) - expected).abs().max() < 2.5 / 255
    assert (square.height, square.width) == (40, 56)


def test_a_square_of_the_right_size_is_not_touched() -> None:
    pixels = make_pixels(24, 24)
    assert np.array_equal(fit_center_crop(encode(pixels), 24, 24).pixels, pixels)


@pytest.mark.parametrize("is_wide", [True, False])
def test_of_a_very_long_picture_the_middle_counts(is_wide: bool) -> None:
    strip = np.zeros((30, 600, 3), np.uint8)
    strip[:, 290:310] = 255
    strip[:, :200] = 99
    pixels = strip if is_wide else strip.transpose(1, 0, 2)
    square = fit_center_crop(encode(pixels), 30, 30)
    middle = square.pixels if is_wide else square.pixels.transpose(1, 0, 2)
    assert (middle[:, 6:24] == 255).all()
    assert (middle[:, :4] == 0).all()
    assert (middle[:, 26:] == 0).all()
    assert (square.height, square.width) == pixels.shape[:2]


def test_all_sources_give_the_same_square() -> None:
    pixels = make_pixels()
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    squares = [
        fit_center_crop(source, 24, 32)
        for source in (encode(pixels), Image.fromarray(pixels), image)
    ]
    for square in squares[1:]:
        assert np.array_equal(square.pixels, squares[0].pixels)
        assert square[1:] == squares[0][1:] == (HEIGHT, WIDTH)


# ── other pictures ──


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "I;16", "F", "LA", "RGBA"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    gray = np.arange(35, dtype=np.uint8).reshape(5, 7) * 7
    if mode == "I;16":
        picture = Image.fromarray(gray.astype(np.uint16) * 257)
    elif mode == "F":
        picture = Image.fromarray(gray.astype(np.float32) / 255)
    else:
        picture = Image.fromarray(gray).convert("RGB").convert(mode)
    rgb = convert_to_rgb(picture)
    assert (rgb.mode, rgb.size) == ("RGB", (7, 5))
    expected = np.asarray(picture.convert("RGB")) if mode == "P" else np.stack([gray] * 3, -1)
    assert np.abs(np.asarray(rgb).astype(int) - expected.astype(int)).max() <= 1


def test_transparent_pixels_become_white() -> None:
    pixels = np.dstack([make_pixels(), np.zeros((HEIGHT, WIDTH), np.uint8)])
    pixels[:10, :, 3] = 255
    square = fit_center_crop(encode(pixels), 24, 40)
    picture, _, _ = decode_as_rgb(encode(pixels), 40)
    assert np.array_equal(np.asarray(picture)[:10], pixels[:10, :, :3])
    assert (np.asarray(picture)[10:] == 255).all()
    assert square.pixels.shape == (24, 24, 3)


def test_frames_are_counted_when_asked_for() -> None:
    frames = [Image.fromarray(make_pixels()).rotate(angle) for angle in (0, 90, 180)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    for count_frames, expected in ((True, 3), (False, 1)):
        file.seek(0)
        with open_picture(file, count_frames=count_frames) as decoded:
            assert decoded.frame_count == expected
            first = np.asarray(decoded.picture.convert("RGB")).astype(int)
        assert np.abs(first - make_pixels()).mean() < 8, "it is the first frame"


def test_what_goes_wrong_in_the_block_is_an_error_of_the_picture() -> None:
    with (
        pytest.raises(SightlineError, match="not enough memory to decode this PNG"),
        open_picture(io.BytesIO(encode(make_pixels()))),
    ):
        raise MemoryError


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "an empty file"),
        (b"some words", "not an image in a known format .*; it looks like text"),
        (encode(make_pixels())[:200], "a truncated, broken or unsupported PNG"),
    ],
)
def test_what_is_no_picture_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(SightlineError, match=message):
        fit_center_crop(data, 24, 32)


def test_tensors_are_checked() -> None:
    with pytest.raises(SightlineError, match="an image is N×3×H×W"):
        fit_center_crop(torch.rand(1, 1, 8, 9), 8, 8)
    pixels = make_pixels()
    image = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    assert np.array_equal(np.asarray(convert_tensor_to_pillow(image)), pixels)


@pytest.mark.parametrize("size", [(24, 40), (40, 24), (20, 70)])
@pytest.mark.parametrize("short_side", [None, 27, 44])
@pytest.mark.parametrize("shape", [(60, 47), (30, 120), (200, 33)])
def test_a_crop_that_is_no_square_is_that_of_the_network(
    size: tuple[int, int], short_side: int | None, shape: tuple[int, int]
) -> None:
    image = smooth(2, side=max(shape))[:1, :, : shape[0], : shape[1]]
    expected = fit_image(image, size, max(1.0, (short_side or 0) / min(size)))
    for source in (image, convert_tensor_to_pillow(image)):
        crop = fit_center_crop(source, size, short_side)
        assert crop[1:] == shape
        assert (stack_crops([crop]) - expected).abs().mean() < 0.008
    bands = torch.cat([image, image[:, :2]], 1)
    from_bands = stack_crops([fit_center_crop(bands, size, short_side)])
    assert (from_bands[:, :3] - expected).abs().max() < 1e-5


def test_a_reduced_jpeg_has_enough_pixels_for_a_long_crop() -> None:
    image = smooth(1, side=800)[..., :640]
    encoded = io.BytesIO()
    convert_tensor_to_pillow(image).save(encoded, "JPEG", quality=95)
    crop = stack_crops([fit_center_crop(encoded.getvalue(), (40, 300))])
    assert (crop - fit_image(image, (40, 300), 1.0)).abs().mean() < 0.01


# ── thumbnails and batches ──


def test_thumbnails_keep_the_aspect_of_a_crop() -> None:
    crop = fit_center_crop(encode(make_pixels()), (48, 20))
    for side, expected in ((24, (10, 24)), (48, (20, 48)), (99, (20, 48))):
        assert Image.open(io.BytesIO(encode_thumbnail(crop, side))).size == expected


def test_thumbnails_are_small_and_not_enlarged() -> None:
    square = fit_center_crop(encode(make_pixels()), 40, 40)
    for side, expected in ((16, 16), (40, 40), (64, 40)):
        picture = Image.open(io.BytesIO(encode_thumbnail(square, side)))
        assert (picture.format, picture.size) == ("JPEG", (expected, expected))
        shown = np.asarray(picture.resize((40, 40))).astype(int)
        assert np.abs(shown - square.pixels).mean() < 14


def test_squares_are_stacked_as_images() -> None:
    squares = [
        CenterCrop(make_pixels(6, 6), 6, 9),
        CenterCrop(np.ascontiguousarray(make_pixels(6, 6)[::-1]), 9, 6),
    ]
    batch = stack_crops(squares)
    assert batch.shape == (2, 3, 6, 6)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    for image, square in zip(batch, squares, strict=True):
        for row in range(6):
            for column in range(6):
                expected = torch.from_numpy(square.pixels[row, column].copy()) / 255
                assert torch.equal(image[:, row, column], expected)


def test_suffixes_are_lower_case_and_named_once() -> None:
    assert len(set(IMAGE_FILE_SUFFIXES)) == len(IMAGE_FILE_SUFFIXES)
    assert all(suffix == suffix.lower() and suffix[0] == "." for suffix in IMAGE_FILE_SUFFIXES)
