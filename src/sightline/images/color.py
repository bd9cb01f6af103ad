"""Color profiles of files, color statistics, and two ways to keep a photograph's colors.

The source of the latter, for style transfer, is Gatys 2016, "Preserving color in neural artistic
style transfer"; sections are its.
"""

import io
import logging
from functools import lru_cache

import numpy as np
import torch
from PIL import Image, ImageCms
from torch import Tensor

logger = logging.getLogger(__name__)

LUMINANCE_WEIGHTS = (0.299, 0.587, 0.114)

# Square root of the covariance of natural colors (lucid, optvis/param/color.py), scaled to a
# largest column norm of 1.
COLOR_COVARIANCE_ROOT = torch.tensor([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
COLOR_CORRELATION = COLOR_COVARIANCE_ROOT / COLOR_COVARIANCE_ROOT.norm(dim=0).max()

# Luminance and two color differences (YIQ), as in section 4.
RGB_TO_YIQ = torch.tensor([LUMINANCE_WEIGHTS, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])

# Added to the diagonal of color covariances, and the smallest eigenvalue of their powers.
COVARIANCE_RIDGE = 1e-5
MIN_DEVIATION = 1e-6

# The color space that a profile must have for a picture of a mode.
PROFILE_SPACES = {"RGB": "RGB", "RGBA": "RGB", "CMYK": "CMYK", "I;16": "GRAY"}
# The modes that are converted before a profile is applied. Their colors are RGB.
RGB_MODES = ("RGB", "RGBX", "RGBA", "RGBa", "P", "PA", "YCbCr", "HSV")
# A profile that moves no color by more than so many of 255 levels is taken for sRGB.
SRGB_TOLERANCE = 1
# A profile for printing may hold megabytes.
MAX_CACHED_PROFILES = 16
GRAY_LEVELS = 65536


def apply_channel_matrix(image: Tensor, matrix: Tensor) -> Tensor:
    """Multiplies every pixel's color by a 3×3 matrix: N×3×H×W.

    As a matrix product it takes a tenth of einsum's time, forward and backward.
    """
    return (matrix.to(image) @ image.flatten(2)).unflatten(2, image.shape[2:])


def match_colors(image: Tensor, reference: Tensor) -> Tensor:
    """The image with the mean and covariance of the reference's colors: 1×3×H×W in [0, 1].

    The linear map between them is the symmetric one of section 3 (CORAL).
    """
    mean, covariance = _compute_color_statistics(image)
    reference_mean, reference_covariance = _compute_color_statistics(reference)
    whitening = _compute_matrix_power(covariance, -0.5)
    coloring = _compute_matrix_power(reference_covariance, 0.5)
    centered = image - mean.view(1, 3, 1, 1)
    matched = apply_channel_matrix(centered, coloring @ whitening)
    return (matched + reference_mean.view(1, 3, 1, 1)).clamp(0, 1)


def match_luminance(image: Tensor, reference: Tensor) -> Tensor:
    """The image in gray, with the mean and deviation of the reference's luminance (section 4).

    Returns 1×3×H×W in [0, 1], three equal channels.
    """
    luminance = apply_channel_matrix(image, RGB_TO_YIQ)[:, :1]
    target = apply_channel_matrix(reference, RGB_TO_YIQ)[:, :1]
    normalized = (luminance - luminance.mean()) / luminance.std().clamp_min(MIN_DEVIATION)
    matched = normalized * target.std() + target.mean()
    return matched.clamp(0, 1).expand(-1, 3, -1, -1).contiguous()


def copy_photo_colors(image: Tensor, photo: Tensor) -> Tensor:
    """The image's luminance with the photograph's color differences: N×3×H×W in [0, 1]."""
    luminance = apply_channel_matrix(image, RGB_TO_YIQ)[:, :1]
    color_differences = apply_channel_matrix(photo, RGB_TO_YIQ)[:, 1:]
    combined = torch.cat([luminance, color_differences], 1)
    return apply_channel_matrix(combined, torch.linalg.inv(RGB_TO_YIQ)).clamp(0, 1)


# ── color profiles ──


def convert_to_srgb(picture: Image.Image) -> Image.Image:
    """The picture in sRGB, by the color profile that its file embeds.

    Takes every 8-bit mode, and keeps transparency. A picture without a profile, or with one that is
    sRGB, broken, or for another color space than the picture's, is returned as it is.
    """
    if picture.mode == "La":  # premultiplied; Pillow converts it to LA only
        picture = picture.convert("LA")
    profile: bytes | None = picture.info.get("icc_profile")
    if not profile:
        return picture
    if picture.mode in ("L", "LA"):
        return _convert_gray_to_srgb(picture, profile)
    if picture.mode not in (*RGB_MODES, "CMYK"):
        return picture

    mode = "CMYK"
    if picture.mode != "CMYK":
        mode = "RGBA" if picture.has_transparency_data else "RGB"
    transform = _build_srgb_transform(profile, mode)
    if transform is None:
        return picture
    source = picture if picture.mode == mode else picture.convert(mode)
    converted = transform.apply(source)
    converted.info.pop("icc_profile", None)
    return converted


@lru_cache(maxsize=MAX_CACHED_PROFILES)
def compute_srgb_gray_curve(profile: bytes) -> Tensor | None:
    """The sRGB gray in [0, 1] of each of 65536 evenly spaced gray levels of a profile.

    The grays are rounded to 8 bits. Returns None for a profile as in `convert_to_srgb`.
    """
    transform = _build_srgb_transform(profile, "I;16")
    if transform is None:
        return None
    levels = np.arange(GRAY_LEVELS, dtype=np.uint16).reshape(256, 256)
    converted = ImageCms.applyTransform(Image.fromarray(levels), transform)
    curve = np.asarray(converted)[..., 0].reshape(-1) / 255
    identity = np.linspace(0, 1, GRAY_LEVELS)
    if np.abs(curve - identity).max() <= (SRGB_TOLERANCE + 0.5) / 255:  # 0.5: the rounding
        return None
    return torch.from_numpy(curve.astype(np.float32))


def _convert_gray_to_srgb(picture: Image.Image, profile: bytes) -> Image.Image:
    """A picture of mode L or LA in sRGB gray; see `convert_to_srgb`."""
    curve = compute_srgb_gray_curve(profile)
    if curve is None:
        return picture
    curve_of_bytes = curve[:: (GRAY_LEVELS - 1) // 255].mul(255).round()
    table = [int(level) for level in curve_of_bytes]
    if picture.has_transparency_data:
        gray, alpha = picture.convert("LA").split()
        converted = Image.merge("LA", (gray.point(table), alpha))
    else:
        converted = picture.point(table)
    converted.info.pop("icc_profile", None)
    return converted


@lru_cache(maxsize=MAX_CACHED_PROFILES)
def _build_srgb_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The conversion of pictures of one mode, or None where the picture should stay as it is."""
    output_mode = "RGBA" if mode == "RGBA" else "RGB"
    # The precomputed tables of littlecms are too coarse for dark grays.
    flags = ImageCms.Flags.NOOPTIMIZE if mode == "I;16" else ImageCms.Flags.NONE
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = profile[16:20].decode("ascii", "replace").strip()  # ICC.1:2010, 7.2.8
        if space != PROFILE_SPACES[mode]:
            logger.debug("a color profile of %s in a picture of mode %s is ignored", space, mode)
            return None
        target = ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(source, target, mode, output_mode, flags=flags)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        logger.warning("a broken color profile is ignored; colors are taken as sRGB (%s)", error)
        return None
    if PROFILE_SPACES[mode] == "RGB" and _is_identity(transform, mode):
        return None
    return transform


def _is_identity(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether a transform of RGB leaves all grays and a grid of 17×17×17 colors as they are."""
    steps = np.linspace(0, 255, 17).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(-1, 3)
    grays = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    colors = np.concatenate([grid, grays])[None]
    converted = ImageCms.applyTransform(Image.fromarray(colors).convert(mode), transform)
    difference = np.asarray(converted)[..., :3].astype(int) - colors
    return bool(np.abs(difference).max() <= SRGB_TOLERANCE)


def _compute_color_statistics(image: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (3) and covariance (3×3) of the colors of an image 1×3×H×W."""
    pixels = image[0].flatten(1)
    return pixels.mean(1), torch.cov(pixels) + COVARIANCE_RIDGE * torch.eye(3)


def _compute_matrix_power(matrix: Tensor, exponent: float) -> Tensor:
    """A power of a symmetric positive definite matrix, by its eigenvalues."""
    eigenvalues, eigenvectors = torch.linalg.eigh(matrix)
    powers = eigenvalues.clamp_min(COVARIANCE_RIDGE).pow(exponent)
    return eigenvectors * powers @ eigenvectors.T
