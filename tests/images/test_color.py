"""Color statistics reach what they promise; the profiles of files are converted to sRGB."""

import itertools
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import smooth
from PIL import Image, ImageCms
from torch import Tensor

from sightline.images.color import (
    RGB_TO_YIQ,
    apply_channel_matrix,
    convert_to_srgb,
    copy_photo_colors,
    match_colors,
    match_luminance,
)
from sightline.images.decode.center_crop import fit_center_crop
from sightline.images.decode.picture import decode_as_rgb
from sightline.images.io.pictures import read


def make_picture(low: float, high: float, seed: int) -> Tensor:
    """Smooth colors within a range, 1×3×30×40."""
    return low + (high - low) * smooth(1, 40, seed)[..., :30, :]


def compute_statistics(image: Tensor) -> tuple[Tensor, Tensor]:
    pixels = image[0].flatten(1)
    return pixels.mean(1), torch.cov(pixels)


def test_a_matrix_is_applied_to_each_pixel() -> None:
    image = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    matrix = torch.rand(3, 3, generator=torch.Generator().manual_seed(1))
    result = apply_channel_matrix(image, matrix.double())
    assert result.dtype == torch.float32
    for n in range(2):
        for y in range(4):
            for x in range(5):
                torch.testing.assert_close(result[n, :, y, x], matrix @ image[n, :, y, x])


def test_colors_get_the_mean_and_covariance_of_the_reference() -> None:
    noise = torch.randn(2, 1, 3, 30, 40, generator=torch.Generator().manual_seed(0))
    image_mixing = torch.tensor([[0.06, 0.0, 0.0], [0.05, 0.02, 0.0], [0.0, 0.01, 0.03]])
    reference_mixing = torch.tensor([[0.02, 0.0, 0.04], [0.0, 0.06, -0.03], [0.0, 0.0, 0.05]])
    image = 0.4 + apply_channel_matrix(noise[0], image_mixing)
    reference = 0.5 + apply_channel_matrix(noise[1], reference_mixing)
    matched = match_colors(image, reference)
    assert 0 < matched.min() < matched.max() < 1
    mean, covariance = compute_statistics(matched)
    reference_mean, reference_covariance = compute_statistics(reference)
    torch.testing.assert_close(mean, reference_mean, atol=1e-5, rtol=0)
    torch.testing.assert_close(covariance, reference_covariance, atol=2e-4, rtol=0)
    torch.testing.assert_close(match_colors(image, image), image, atol=1e-4, rtol=0)


def test_luminance_gets_the_mean_and_deviation_of_the_reference() -> None:
    image = make_picture(0, 1, seed=0)
    reference = make_picture(0.4, 0.6, seed=1)
    gray = match_luminance(image, reference)
    luminance = apply_channel_matrix(reference, RGB_TO_YIQ)[:, :1]
    assert torch.equal(gray[:, 0], gray[:, 1])
    assert torch.equal(gray[:, 0], gray[:, 2])
    torch.testing.assert_close(gray[:, 0].mean(), luminance.mean(), atol=1e-3, rtol=0)
    torch.testing.assert_close(gray[:, 0].std(), luminance.std(), atol=1e-3, rtol=0)


def test_colors_of_a_photo_keep_the_luminance_of_the_image() -> None:
    image = make_picture(0.4, 0.6, seed=2)
    photo = make_picture(0.4, 0.6, seed=3)
    combined = apply_channel_matrix(copy_photo_colors(image, photo), RGB_TO_YIQ)
    image_yiq = apply_channel_matrix(image, RGB_TO_YIQ)
    photo_yiq = apply_channel_matrix(photo, RGB_TO_YIQ)
    torch.testing.assert_close(combined[:, :1], image_yiq[:, :1], atol=1e-4, rtol=0)
    torch.testing.assert_close(combined[:, 1:], photo_yiq[:, 1:], atol=1e-4, rtol=0)
    torch.testing.assert_close(copy_photo_colors(photo, photo), photo, atol=1e-4, rtol=0)


# ── color profiles ──

# Red, green and blue of two color spaces, as columns of XYZ adapted to D50, and their white.
WIDE_GAMUT = np.array(
    [[0.5151, 0.2920, 0.1571], [0.2412, 0.6922, 0.0666], [-0.0011, 0.0419, 0.7841]]
)
SRGB = np.array([[0.4361, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7141]])
D50 = np.array([0.9642, 1, 0.8249])


def pack_fixed(*numbers: float) -> bytes:
    """s15Fixed16Number (ICC.1:2010, 4.6)."""
    return b"".join(struct.pack(">i", round(number * 65536)) for number in numbers)


def make_profile(space: bytes, tags: dict[bytes, bytes], connection: bytes = b"XYZ ") -> bytes:
    """An ICC profile, version 2.4, for a display or a printer (ICC.1:2001, 6.1 and 6.2)."""
    description = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78)
    tags = {b"desc": description, b"wtpt": b"XYZ \0\0\0\0" + pack_fixed(*D50), **tags}
    table = struct.pack(">I", len(tags))
    body = b""
    for name, content in tags.items():
        position = 128 + 4 + 12 * len(tags) + len(body)
        table += name + struct.pack(">II", position, len(content))
        body += content + bytes(-len(content) % 4)
    kind = b"prtr" if space == b"CMYK" else b"mntr"
    header = struct.pack(">I4sI", 128 + len(table) + len(body), b"test", 0x02400000)
    header += kind + space + connection + struct.pack(">6H", 2024, 1, 1, 0, 0, 0)
    header += b"acsp" + bytes(28) + pack_fixed(*D50) + bytes(48)
    return header + table + body


def make_curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"


def make_rgb_profile(primaries: np.ndarray, gamma: float) -> bytes:
    tags = {}
    for letter, column in zip(b"rgb", primaries.T, strict=True):
        tags[bytes([letter]) + b"XYZ"] = b"XYZ \0\0\0\0" + pack_fixed(*column)
        tags[bytes([letter]) + b"TRC"] = make_curve(gamma)
    return make_profile(b"RGB ", tags)


def make_gray_profile(gamma: float) -> bytes:
    return make_profile(b"GRAY", {b"kTRC": make_curve(gamma)})


def make_cmyk_profile(corners: dict[tuple[int, ...], tuple[int, ...]]) -> bytes:
    """Lab of the 16 mixtures of full and no ink, as a table of 2⁴ points (lut8Type)."""
    identity = bytes(range(256))
    table = bytearray()
    for inks in itertools.product((0, 1), repeat=4):
        lightness, a, b = corners.get(inks, (0, 0, 0))
        table += bytes([round(lightness * 2.55), a + 128, b + 128])
    header = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + pack_fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    lookup = header + identity * 4 + bytes(table) + identity * 3
    return make_profile(b"CMYK", {b"A2B0": lookup}, b"Lab ")


def encode_srgb(linear: np.ndarray) -> np.ndarray:
    """The transfer curve of IEC 61966-2-1, clipped to [0, 1]."""
    linear = linear.clip(0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def derive_srgb(pixels: np.ndarray, primaries: np.ndarray, gamma: float) -> np.ndarray:
    """H×W×3 in [0, 1] through XYZ, by the definition."""
    xyz = pixels**gamma @ primaries.T
    return encode_srgb(xyz @ np.linalg.inv(SRGB).T)


def derive_srgb_of_lab(lab: tuple[int, ...]) -> np.ndarray:
    """CIE 15, 8.2.1.1, inverted; the white is D50."""
    f_y = (lab[0] + 16) / 116
    f = np.array([f_y + lab[1] / 500, f_y, f_y - lab[2] / 200])
    xyz = D50 * np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))
    return encode_srgb(np.linalg.inv(SRGB) @ xyz)


def make_noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save_picture(picture: Image.Image, path: Path, profile: bytes, **options: object) -> Path:
    picture.save(path, icc_profile=profile, **options)
    return path


def read_pixels(path: Path) -> np.ndarray:
    """H×W×3 in [0, 1], which must be the same by both ways to read a file."""
    pixels = read(path)[0].permute(1, 2, 0).numpy()
    rgb, _, _ = decode_as_rgb(path.read_bytes(), short_side=min(pixels.shape[:2]))
    assert np.abs(np.asarray(rgb) / 255 - pixels).max() < 0.51 / 255
    return pixels


def is_close(pixels: np.ndarray, expected: np.ndarray, levels: float = 1.6) -> bool:
    return bool(np.abs(pixels - expected).max() <= levels / 255)


@pytest.mark.parametrize("gamma", [1.0, 1.8, 2.2])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp", ".avif"])
def test_rgb_is_converted_to_srgb(gamma: float, suffix: str, tmp_path: Path) -> None:
    pixels = make_noise(6, 9, 3)
    path = tmp_path / f"a{suffix}"
    options = {"lossless": True} if suffix == ".webp" else {}
    if suffix == ".avif":  # it is lossy, except for a constant gray
        pixels = np.full((16, 24, 3), 90, np.uint8)
    save_picture(Image.fromarray(pixels), path, make_rgb_profile(WIDE_GAMUT, gamma), **options)
    assert is_close(read_pixels(path), derive_srgb(pixels / 255, WIDE_GAMUT, gamma), levels=2)


def test_a_reduced_jpeg_is_converted_too(tmp_path: Path) -> None:
    color = np.array((216, 72, 40), np.uint8)
    pixels = np.broadcast_to(color, (160, 240, 3)).copy()
    profile = make_rgb_profile(WIDE_GAMUT, 2.2)
    path = save_picture(Image.fromarray(pixels), tmp_path / "a.jpg", profile, quality=98)
    rgb, height, width = decode_as_rgb(path.read_bytes(), short_side=20)
    assert (rgb.size, height, width) == ((60, 40), 160, 240)
    expected = derive_srgb(color / 255, WIDE_GAMUT, 2.2)
    assert is_close(np.asarray(rgb) / 255, expected, levels=4)
    square = fit_center_crop(path.read_bytes(), 20, 20)
    assert is_close(square.pixels / 255, expected, levels=4)
    assert is_close(read_pixels(path), expected, levels=4)


def test_a_pillow_picture_is_converted_as_its_file_is(tmp_path: Path) -> None:
    picture = Image.fromarray(make_noise(20, 30, 3))
    path = save_picture(picture, tmp_path / "a.png", make_rgb_profile(WIDE_GAMUT, 1.8))
    with Image.open(path) as opened:
        square = fit_center_crop(opened, 16, 20)
    assert np.array_equal(square.pixels, fit_center_crop(path.read_bytes(), 16, 20).pixels)


def test_transparency_is_kept_and_composed_after_the_conversion(tmp_path: Path) -> None:
    pixels = make_noise(6, 9, 4)
    profile = make_rgb_profile(WIDE_GAMUT, 2.2)
    path = save_picture(Image.fromarray(pixels), tmp_path / "a.png", profile)
    alpha = pixels[..., 3:] / 255
    expected = derive_srgb(pixels[..., :3] / 255, WIDE_GAMUT, 2.2) * alpha + 1 - alpha
    assert is_close(read_pixels(path), expected)


def test_a_palette_is_converted_and_its_transparent_entry_stays_white(tmp_path: Path) -> None:
    indices = make_noise(6, 9) % 4
    palette = make_noise(4, 3, seed=1)
    picture = Image.fromarray(indices)
    picture.putpalette(palette.tobytes())
    profile = make_rgb_profile(WIDE_GAMUT, 2.2)
    path = save_picture(picture, tmp_path / "a.png", profile, transparency=2)
    expected = derive_srgb(palette / 255, WIDE_GAMUT, 2.2)[indices]
    expected[indices == 2] = 1
    assert is_close(read_pixels(path), expected)


@pytest.mark.parametrize("gamma", [1.0, 1.8, 3.0])
@pytest.mark.parametrize("mode", ["L", "LA", "I;16", "F"])
def test_gray_is_converted_to_srgb(gamma: float, mode: str, tmp_path: Path) -> None:
    levels = make_noise(6, 9)
    levels[0] = range(9)
    profile = make_gray_profile(gamma)
    gray = levels / 255
    alpha = np.ones_like(gray)
    path = tmp_path / "a.png"
    if mode == "I;16":
        deep = levels.astype(np.uint16) * 256 + 77
        gray = deep / 65535
        save_picture(Image.fromarray(deep), path, profile)
    elif mode == "F":
        path = tmp_path / "a.tif"
        save_picture(Image.fromarray(gray.astype(np.float32)), path, profile)
    elif mode == "LA":
        opacity = make_noise(6, 9, seed=1)
        alpha = opacity / 255
        save_picture(Image.fromarray(np.dstack([levels, opacity])), path, profile)
    else:
        save_picture(Image.fromarray(levels), path, profile)
    expected = encode_srgb(gray**gamma) * alpha + 1 - alpha
    assert is_close(read_pixels(path), expected[..., None])


def test_a_transparent_gray_stays_white_after_the_conversion(tmp_path: Path) -> None:
    levels = make_noise(6, 9)
    levels[0, :5] = 40
    for pixels, key in ((levels, 40), (levels.astype(np.uint16) * 257, 40 * 257)):
        picture = Image.fromarray(pixels)
        path = save_picture(picture, tmp_path / "a.png", make_gray_profile(1.8), transparency=key)
        expected = encode_srgb((levels / 255) ** 1.8)
        expected[levels == 40] = 1
        assert is_close(read_pixels(path), expected[..., None])


def test_inks_are_converted_to_srgb(tmp_path: Path) -> None:
    corners = {
        (0, 0, 0, 0): (100, 0, 0),
        (1, 0, 0, 0): (58, -30, -36),
        (0, 1, 0, 0): (50, 62, -3),
        (0, 0, 1, 0): (88, -6, 80),
        (0, 0, 0, 1): (18, 1, 2),
        (1, 1, 0, 0): (26, 20, -40),
    }
    inks = 255 * np.array(list(corners), np.uint8).reshape(2, 3, 4)
    picture = Image.frombytes("CMYK", (3, 2), inks.tobytes())
    path = save_picture(picture, tmp_path / "a.tif", make_cmyk_profile(corners))
    expected = np.array([derive_srgb_of_lab(lab) for lab in corners.values()]).reshape(2, 3, 3)
    assert is_close(read_pixels(path), expected, levels=3)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("fault", ["noise", "cut", "other space"])
def test_a_profile_that_is_of_no_use_is_ignored(
    mode: str, fault: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    picture = Image.fromarray(make_noise(6, 9, 3)).convert(mode)
    profiles = {
        "noise": make_noise(300, seed=len(mode)).tobytes(),
        "cut": make_rgb_profile(WIDE_GAMUT, 2.0 + len(mode) / 10)[:200],
        "other space": make_rgb_profile(WIDE_GAMUT, 2.2)
        if mode != "RGB"
        else make_gray_profile(2.5),
    }
    picture.save(tmp_path / "plain.tif")
    path = save_picture(picture, tmp_path / "a.tif", profiles[fault])
    with caplog.at_level("DEBUG", logger="sightline.images.color"):
        pixels = read_pixels(path)
    assert np.array_equal(pixels, read_pixels(tmp_path / "plain.tif"))
    if fault != "other space":
        (record,) = caplog.records
        assert record.levelname == "WARNING"
        assert "profile is ignored" in record.getMessage()
        assert "\n" not in record.getMessage()


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_of_srgb_not_a_bit_changes(mode: str, tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture = Image.fromarray(make_noise(6, 9, len(mode)))
    path = save_picture(picture, tmp_path / "a.png", profile)
    picture.save(tmp_path / "plain.png")
    assert np.array_equal(read_pixels(path), read_pixels(tmp_path / "plain.png"))
    with Image.open(path) as opened:
        assert convert_to_srgb(opened) is opened
