"""Between Pillow pictures and tensors.

Transparent pixels and those of more than 8 bits are converted in bands of rows: as numbers of 32
bits, a large picture would take many times its memory.
"""

from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sightline.errors import SightlineError
from sightline.images.color import GRAY_LEVELS, compute_srgb_gray_curve, convert_to_srgb
from sightline.images.validation import add_batch_axis, check_image, describe_out_of_range

# Pixels of a band.
BAND_PIXELS = 4_000_000

TIFF_BITS_PER_SAMPLE_TAG = 258


def convert_pillow_to_tensor(picture: Image.Image) -> Tensor:
    """A loaded picture of any mode as 1×3×H×W, sRGB in [0, 1]; transparent pixels become white."""
    white = _find_deep_white(picture)
    if white is None:
        picture = convert_to_srgb(picture)
    if picture.width * picture.height <= BAND_PIXELS:
        return _convert_band(picture, white)
    image = torch.empty(1, 3, picture.height, picture.width)
    for top, band in _split_into_bands(picture):
        image[:, :, top : top + band.height] = _convert_band(band, white)
    return image


def extract_alpha(picture: Image.Image) -> Tensor | None:
    """The opacity of a loaded picture's pixels, 1×1×H×W in [0, 1]; None where all are opaque."""
    transparent_level = picture.info.get("transparency")
    if _find_deep_white(picture) is not None:
        if not isinstance(transparent_level, int):
            return None
        alpha = torch.as_tensor(np.array(picture) != transparent_level).float()
    else:
        if picture.mode == "La":  # premultiplied; Pillow converts it to LA only
            picture = picture.convert("LA")
        if not picture.has_transparency_data:
            return None
        levels = np.array(picture.convert("RGBA").getchannel("A"))
        alpha = torch.as_tensor(levels).float().div_(255)
    return alpha[None, None] if bool((alpha < 1).any()) else None


def convert_tensor_to_pillow(image: Tensor) -> Image.Image:
    """An image 1×3×H×W or 3×H×W in [0, 1] as an 8-bit RGB picture."""
    return Image.fromarray(quantize_image(check_image(add_batch_axis(image))[0]))


def convert_to_rgb(picture: Image.Image) -> Image.Image:
    """A loaded picture of any mode as 8-bit sRGB; transparent pixels become white."""
    white = _find_deep_white(picture)
    if white is None:
        picture = convert_to_srgb(picture)
        if not picture.has_transparency_data:
            return picture if picture.mode == "RGB" else picture.convert("RGB")
    converted = Image.new("RGB", picture.size)
    for top, band in _split_into_bands(picture):
        converted.paste(convert_tensor_to_pillow(_convert_band(band, white)), (0, top))
    return converted


def quantize_image(image: Tensor) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    """One image C×H×W rounded to 8 bits, H×W×C. Values beyond [0, 1] are clipped."""
    levels = image.detach().clamp(0, 1).mul_(255).round_().byte()
    return levels.permute(1, 2, 0).cpu().contiguous().numpy()


def _split_into_bands(picture: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """The picture in bands of whole rows, each with the number of its first row."""
    row_count = max(1, BAND_PIXELS // picture.width)
    for top in range(0, picture.height, row_count):
        bottom = min(top + row_count, picture.height)
        yield top, picture.crop((0, top, picture.width, bottom))


def _find_deep_white(picture: Image.Image) -> int | None:
    """The value of white in gray floats or integers of more than 8 bits; None for other pixels.

    Raises SightlineError where it is unknown.
    """
    if picture.mode[0] not in "FI":
        return None
    if picture.mode == "I" and picture.format != "PPM":
        raise SightlineError(
            "integer pixels, signed or of 32 bits, whose white is unknown; "
            "save it with 8 or 16 bits"
        )
    if picture.mode == "F":
        return 1
    # Pillow leaves the values of a 12-bit TIFF as they are, and widens PNM to 16 bits.
    tiff_tags = getattr(picture, "tag_v2", {})
    bits: int = tiff_tags.get(TIFF_BITS_PER_SAMPLE_TAG, (16,))[0]
    return 2**bits - 1


def _convert_band(picture: Image.Image, deep_white: int | None) -> Tensor:
    """A band, or a whole picture, as 1×3×H×W in [0, 1]; the colors of 8-bit pixels are sRGB."""
    if deep_white is not None:
        return _convert_deep_gray(picture, deep_white).repeat(1, 3, 1, 1)
    mode = "RGBA" if picture.has_transparency_data else "RGB"
    pixels = torch.as_tensor(np.array(picture.convert(mode)))
    planes = pixels.permute(2, 0, 1)[None].contiguous().float().div_(255)
    if mode == "RGB":
        return planes
    color = planes[:, :3]
    alpha = planes[:, 3:]
    return (color * alpha + (1 - alpha)).clamp_(0, 1)


def _convert_deep_gray(picture: Image.Image, white: int) -> Tensor:
    """H×W in [0, 1] of float or more than 8-bit gray, divided by its white, in sRGB."""
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
