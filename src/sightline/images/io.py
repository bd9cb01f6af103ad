"""Pictures in and out, the only file that knows codecs. An image is a float32 tensor N×3×H×W, RGB, in [0, 1]."""

import io
import re
import stat
import struct
import warnings
from contextlib import suppress
from importlib import import_module
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps
from torch import Tensor
from torch.nn.functional import interpolate

from sightline.errors import SightlineError, make_unknown_name_error, suggest_closest_name
from sightline.images.files import replace_atomically

# `Image.open` checks for bombs with a process-wide limit and tries formats that start other programs (EPS).
# Here the first bytes of a file choose one of these Pillow plugins; a file without such a signature is refused.
_FORMAT_SIGNATURES = {
    "Jpeg": rb"\xff\xd8\xff",
    "Png": rb"\x89PNG\r\n\x1a\n",
    "Gif": rb"GIF8[79]a",
    "WebP": rb"RIFF.{4}WEBP",
    "Avif": rb".{4}ftypavi[fs]",
    "Tiff": rb"II[*+]\0|MM\0[*+]",
    "Bmp": rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0",
    "Ppm": rb"P[1-6f]\s",
    "Jpeg2K": rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
}

_OTHER_SIGNATURES = {
    "HTML or XML": rb"(?i)\s*<(!doctype|html|head|body|svg|\?xml)",
    "HEIC": rb".{4}ftyp(hei|hev|mif1)",
    "a zip archive or a pickle, perhaps PyTorch weights": rb"PK\x03\x04|\x80[\x02-\x05]",
    "safetensors weights": rb".{4}\0{4}\{",
    "text": rb"[\t\n\r\x20-\x7e\x80-\xff]+\Z",
}

_IMAGE_ENCODERS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}

_SAMPLE_NAMES = "rocket chelsea astronaut coffee motorcycle_left hubble_deep_field retina ihc brick grass gravel"


def read(path: str | Path, *, limit: int = 100_000_000) -> Tensor:
    """The picture in a file, upright and over white: 1×3×H×W. The content decides the format, not the suffix.

    At most `limit` pixels are decoded. Of an animation the first frame is read, and a warning says so.
    Raises SightlineError, one line that begins with the file's name, for anything that isn't a whole picture.
    """
    path = Path(path)
    name = escape_line_breaks(path.name or str(path))
    try:
        if not stat.S_ISREG(
            path.stat().st_mode
        ):  # to open a FIFO would be to wait for its writer, perhaps for ever
            raise SightlineError(
                f"a {'folder' if path.is_dir() else 'pipe, socket or device'}, not an image file"
            )
        with path.open("rb") as file:
            image, frames = _decode_image(file, limit)
    except (
        OSError,
        ValueError,
    ) as error:  # ValueError: a null byte in the path, and SightlineError
        reason = (
            describe_missing_file(path)
            if isinstance(error, FileNotFoundError)
            else getattr(error, "strerror", None) or str(error)
        )
        raise SightlineError(f"{name}: {escape_line_breaks(reason)}") from error
    if frames > 1:
        warnings.warn(f"{name}: {frames} frames; the first is read", stacklevel=2)
    return image


def write(image: Tensor, path: str | Path) -> None:
    """Writes one image, 3×H×W or 1×3×H×W in [0, 1], rounded to 8 bits, as .png, .jpg, .jpeg or .webp: whole or not at all.

    Raises SightlineError for another suffix, NaN, values outside [0, 1] by more than 0.001, a folder that can't be written.
    """
    path = Path(path)
    kind = _IMAGE_ENCODERS.get(path.suffix.lower())
    if not kind:
        raise SightlineError(
            f"{escape_line_breaks(str(path))}: pictures are written as {', '.join(_IMAGE_ENCODERS)}, not as {path.suffix!r}"
        )
    encoded = _encode_image(image, kind)
    try:
        with replace_atomically(path) as temporary:
            temporary.write_bytes(encoded)
    except (
        OSError,
        ValueError,
    ) as error:  # ValueError: a null byte in the path, and SightlineError
        raise SightlineError(escape_line_breaks(str(error))) from error


def encode_png(image: Tensor) -> bytes:
    """The bytes of the PNG file that `write` makes of this image; raises as `write` does."""
    return _encode_image(image, "PNG")


def encode_jpeg(image: Tensor, quality: int = 85) -> bytes:
    """The bytes of a JPEG file of this image, colours at half resolution; raises as `write` does."""
    return _encode_image(image, "JPEG", quality=quality, subsampling=2)


def check_image(image: Tensor, subject: str = "image") -> Tensor:
    """The image as float32 N×3×H×W, without a copy if it is that already; gradients flow through.

    Raises SightlineError for another shape, an empty or integer tensor, NaN, values outside [0, 1] by more than 0.0001.
    """
    return _validate_image(image, "this tensor" if subject == "image" else subject, tolerance=1e-4)


def resize_image(image: Tensor, height: int, width: int) -> Tensor:
    """N×3×height×width, antialiased bilinear, differentiable; no copy if it has that size. Raises SightlineError below 1×1."""
    if min(height, width) < 1:
        raise SightlineError(
            f"an image can't be resized to {height}×{width}; both must be at least 1"
        )
    if image.shape[-2:] == (height, width):
        return image
    return interpolate(image, (height, width), mode="bilinear", antialias=True).clamp(0, 1)


def resize_short_side(image: Tensor, pixels: int) -> Tensor:
    """Resized so that the shorter side has `pixels`, the aspect kept to the nearest pixel; raises as `resize` does."""
    scale = pixels / min(image.shape[-2:])
    return resize_image(image, *(round(side * scale) for side in image.shape[-2:]))


def limit_short_side(image: Tensor, pixels: int) -> Tensor:
    """The image, resized so that the shorter side has `pixels` if it has more."""
    return resize_short_side(image, pixels) if min(image.shape[-2:]) > pixels else image


def crop_center(image: Tensor, height: int, width: int) -> Tensor:
    """The middle N×3×height×width, a view. Raises SightlineError when the image is smaller than that."""
    rows, columns = image.shape[-2:]
    if not (1 <= height <= rows and 1 <= width <= columns):
        raise SightlineError(
            f"a crop of {height}×{width} can't be cut from an image of {rows}×{columns}"
        )
    return image[..., (rows - height) // 2 :, (columns - width) // 2 :][..., :height, :width]


def samples() -> list[str]:
    """The names of the photographs and textures that come with scikit-image, the default first."""
    return list(_find_sample_files())


def sample(name: str = "rocket") -> Tensor:
    """One of `samples()`: 1×3×H×W. Raises SightlineError for an unknown name."""
    found = _find_sample_files()
    if name not in found:
        raise make_unknown_name_error("sample image", name, found)
    return read(found[name])


def read_file_or_sample(source: str | Path) -> Tensor:
    """What a user means by an image on a command line: a file, else one of `samples()` by its name. 1×3×H×W."""
    return (
        sample(str(source))
        if str(source) in _SAMPLE_NAMES.split() and not Path(source).exists()
        else read(source)
    )


ImageOrPath = Tensor | str | Path


def resolve_image(source: ImageOrPath) -> Tensor:
    """The image that a knob names: a tensor as it is, once checked, else what `find` reads. N×3×H×W."""
    return check_image(source) if isinstance(source, Tensor) else read_file_or_sample(source)


def _find_sample_files() -> dict[str, Path]:
    folder = Path(str(files("skimage") / "data"))
    return {name: path for name in _SAMPLE_NAMES.split() for path in folder.glob(f"{name}.*")}


def escape_line_breaks(text: str) -> str:
    """The text on one line: line breaks, control characters and undecodable bytes escaped."""
    return text if text.isprintable() else repr(text)[1:-1]


def describe_missing_file(path: Path) -> str:
    if path.is_symlink():
        return "a link to a file that does not exist"
    with suppress(OSError):
        return "no such file" + suggest_closest_name(
            path.name, [sibling.name for sibling in path.parent.iterdir()][:2000]
        )
    return f"no such file; there is no folder {path.parent}"


def _decode_image(file: io.BufferedReader, limit: int) -> tuple[Tensor, int]:
    """The picture and the number of frames. Raises OSError if not even the first bytes can be read, else only SightlineError."""
    kind = detect_image_format(file.peek(64)[:64])
    try:
        plugin: type[ImageFile.ImageFile] = getattr(
            import_module(f"PIL.{kind}ImagePlugin"), f"{kind}ImageFile"
        )
        with plugin(file) as picture:
            check_pixel_count(
                f"{picture.width}×{picture.height} = ", picture.width * picture.height, limit
            )
            frames: int = getattr(picture, "n_frames", 1)
            picture.load()
            with suppress(
                SyntaxError, ValueError, LookupError, TypeError, struct.error
            ):  # EXIF may be damaged in a whole picture
                ImageOps.exif_transpose(picture, in_place=True)
            return convert_pillow_to_tensor(picture), frames
    except SightlineError:
        raise
    except Exception as error:  # on bytes they don't like, decoders raise whatever comes to hand
        raise make_decoding_error(kind.upper(), error, limit) from error


def detect_image_format(first_bytes: bytes) -> str:
    if not first_bytes:
        raise SightlineError("an empty file")
    for kind, signature in _FORMAT_SIGNATURES.items():
        if re.match(signature, first_bytes, re.DOTALL):
            return kind
    looks = [
        f"; it looks like {kind}"
        for kind, signature in _OTHER_SIGNATURES.items()
        if re.match(signature, first_bytes, re.DOTALL)
    ]
    raise SightlineError(
        f"not an image in a known format ({', '.join(_FORMAT_SIGNATURES).upper()}){''.join(looks[:1])}"
    )


def check_pixel_count(size_text: str, pixels: int, limit: int) -> None:
    if pixels > limit:
        raise SightlineError(
            f"{size_text}{pixels:,} pixels, over the limit of {limit:,}; sightline.read(path, limit={pixels}) allows it"
        )


def make_decoding_error(format_name: str, error: Exception, limit: int) -> SightlineError:
    """What a decoder's exception means to the user."""
    if isinstance(
        error, Image.DecompressionBombError
    ):  # a few plugins check before they tell the size
        check_pixel_count("", int(re.findall(r"\d+", str(error))[0]), limit)
    if isinstance(error, MemoryError) or "allocate" in str(error):
        return SightlineError(f"not enough memory to decode this {format_name}")
    return SightlineError(
        getattr(error, "strerror", None)
        or f"a truncated, broken or unsupported {format_name} ({error or type(error).__name__})"
    )


def convert_pillow_to_tensor(picture: Image.Image) -> Tensor:
    """1×3×H×W of a loaded picture in any mode, transparency over white."""
    if picture.mode[0] in "FI":
        return _convert_gray_to_tensor(picture).clamp_(0, 1).repeat(1, 3, 1, 1)
    pixels = torch.as_tensor(
        np.array(picture.convert("RGBA" if picture.has_transparency_data else "RGB"))
    )
    planes = pixels.permute(2, 0, 1)[None].contiguous().float().div_(255)
    color, alpha = planes[:, :3], planes[:, 3:]
    return (color * alpha + (1 - alpha)).clamp_(0, 1) if alpha.numel() else planes


def _convert_gray_to_tensor(picture: Image.Image) -> Tensor:
    """H×W of float or more than 8-bit gray, scaled by its white: Pillow leaves 12-bit TIFF as it is and widens PNM to 16 bits."""
    if picture.mode == "I" and picture.format != "PPM":
        raise SightlineError(
            "integer pixels, signed or of 32 bits, whose white is unknown; save it with 8 or 16 bits"
        )
    bits: int = getattr(picture, "tag_v2", {}).get(258, (16,))[0]  # of TIFF
    white = 1 if picture.mode == "F" else 2**bits - 1
    values = torch.as_tensor(np.array(picture).astype(np.float32)).div_(white)
    if stray := _describe_out_of_range(values, tolerance=1e-4):
        raise SightlineError(f"pixels {stray}; they must lie in [0, 1]")
    return values


def _describe_out_of_range(values: Tensor, tolerance: float) -> str:
    """How values leave [0, 1], «with NaN» or «in [-2.06, 2.06]»; empty if they don't."""
    low, high = (float(value) for value in values.detach().aminmax())
    if not low <= high:
        return "with NaN"
    return "" if -tolerance <= low and high <= 1 + tolerance else f"in [{low:.5g}, {high:.5g}]"


def _validate_image(image: object, subject: str, tolerance: float) -> Tensor:
    if not isinstance(image, Tensor):
        wrong = f"of type {type(image).__name__}, not a tensor"
    elif not image.is_floating_point():
        wrong = f"of {image.dtype}; divide 0 to 255 by 255"
    elif image.ndim != 4 or image.shape[1] != 3 or image.numel() == 0:
        wrong = f"{tuple(image.shape)}"
    elif stray := _describe_out_of_range(image, tolerance):
        wrong = f"{tuple(image.shape)} {stray}"
    else:
        return image.float()
    raise SightlineError(f"an image is N×3×H×W in [0, 1]; {subject} is {wrong}")


def _encode_image(
    image: Tensor, format_name: str, quality: int = 95, subsampling: int = 0
) -> bytes:
    """The bytes of a file with this one image, 3×H×W or 1×3×H×W."""
    image = _validate_image(
        image[None] if getattr(image, "ndim", 4) == 3 else image, "this tensor", tolerance=1e-3
    )
    if len(image) != 1:
        raise SightlineError(f"a file holds one image; this batch has {len(image)}")
    pixels = image[0].detach().clamp(0, 1).mul_(255).round_().byte().permute(1, 2, 0).cpu().numpy()
    encoded = io.BytesIO()
    try:
        Image.fromarray(pixels).save(encoded, format_name, quality=quality, subsampling=subsampling)
    except (OSError, ValueError) as error:
        raise SightlineError(
            f"an image of {pixels.shape[0]}×{pixels.shape[1]} can't be written as {format_name} ({error})"
        ) from error
    return encoded.getvalue()
