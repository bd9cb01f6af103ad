"""Reading and writing images. An image is a float32 tensor N×C×H×W with values in [0, 1].

Pictures have three channels: red, green and blue.
"""

import io
import os
import warnings
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from sightline.errors import SightlineError, make_unknown_name_error, suggest_closest_name
from sightline.images.decode.bands import holds_bands, read_bands
from sightline.images.decode.picture import MAX_COUNTED_PAGES, MAX_PIXELS, open_picture
from sightline.images.decode.pixels import (
    convert_pillow_to_tensor,
    extract_alpha,
    quantize_image,
)
from sightline.images.decode.source import check_regular_file
from sightline.images.files import replace_atomically
from sightline.images.sample_names import DEFAULT_SAMPLE, DRAWN_SAMPLE, SAMPLE_NAMES
from sightline.images.validation import add_batch_axis, check_image

WRITABLE_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
# Rounding may leave this much beyond [0, 1] in an image that is written.
WRITE_TOLERANCE = 1e-3

DRAWN_SAMPLE_FILE = Path(__file__).parents[2] / "assets" / f"{DRAWN_SAMPLE}.jpg"

# Of a large folder, only so many names are compared with one that does not exist.
MAX_COMPARED_NAMES = 2000

ImageOrPath = Tensor | str | Path


# ── reading ──


def read(path: str | Path | Sequence[str | Path], *, limit: int = MAX_PIXELS) -> Tensor:
    """Reads the picture in a file, upright: 1×3×H×W in [0, 1]; those of a list as a batch.

    The content decides the format, not the suffix. Transparent pixels become white. At most
    `limit` pixels are decoded. Of an animation the first frame is read, with a warning.

    TIFF files of several bands, and arrays in `.npy` files (H×W, H×W×C or C×H×W, where C is smaller
    than both sides), are read as 1×C×H×W: uint8 is divided by 255, uint16 by 65535, and floats lie
    in [0, 1]. One band is repeated to gray, C = 3.

    Raises SightlineError, one line that begins with the file's name, for anything that is not a
    whole picture, and for a list of pictures of different sizes.
    """
    if isinstance(path, (list, tuple)):
        return _read_batch(path, limit)
    if not isinstance(path, (str, os.PathLike)):
        raise SightlineError(
            f"the path of a picture is a text, and this is of type {type(path).__name__}"
        )
    path = Path(path)
    name = escape_line_breaks(path.name or str(path))
    try:
        check_regular_file(path)
        with path.open("rb") as file:
            if holds_bands(file):
                return read_bands(file, limit)
            with open_picture(file, limit, count_frames=True) as decoded:
                image = convert_pillow_to_tensor(decoded.picture)
    except FileNotFoundError as error:
        reason = describe_missing_file(path)
        raise SightlineError(f"{name}: {escape_line_breaks(reason)}") from error
    except (OSError, ValueError) as error:  # ValueError: SightlineError, and a null byte in a path
        reason = getattr(error, "strerror", None) or str(error)
        raise SightlineError(f"{name}: {escape_line_breaks(reason)}") from error
    if decoded.frame_count > 1:
        count = f"{decoded.frame_count} frames"
        if decoded.frame_count == MAX_COUNTED_PAGES:
            count += " or more"
        warnings.warn(f"{name}: {count}; the first is read", stacklevel=2)
    return image


def _read_batch(paths: Sequence[str | Path], limit: int) -> Tensor:
    """The pictures of files of one size as a batch N×C×H×W; raises as `read` does."""
    if not paths:
        raise SightlineError("the list of pictures is empty; give one file or more")
    images = [read(path, limit=limit) for path in paths]
    for path, image in zip(paths, images, strict=True):
        if image.shape != images[0].shape:
            first, size = ("×".join(map(str, picture.shape[1:])) for picture in (images[0], image))
            raise SightlineError(
                f"{escape_line_breaks(Path(path).name)}: {size}, and "
                f"{escape_line_breaks(Path(paths[0]).name)} is {first}; a batch has one size: "
                "model.fit(files) brings them to it"
            )
    return torch.cat(images)


def read_alpha(path: str | Path) -> Tensor | None:
    """The opacity of a picture file's pixels, 1×1×H×W in [0, 1].

    None for samples, which have no file, for bands, and where all pixels are opaque. Raises as
    `read` does.
    """
    path = Path(path)
    if not path.is_file():
        return None
    name = escape_line_breaks(path.name)
    try:
        with path.open("rb") as file:
            if holds_bands(file):
                return None
            with open_picture(file) as decoded:
                return extract_alpha(decoded.picture)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SightlineError(f"{name}: {escape_line_breaks(reason)}") from error


def read_file_or_sample(source: str | Path) -> Tensor:
    """Reads what a user names on the command line: a file, else one of `samples()`. 1×C×H×W."""
    name = str(source)
    if name in SAMPLE_NAMES and not Path(source).exists():
        return sample(name)
    return read(source)


def read_picture(path: str | Path) -> Tensor:
    """Reads a picture, 1×3×H×W, as `read` does; raises SightlineError for other bands."""
    return check_image(read(path), escape_line_breaks(Path(path).name))


def resolve_image(source: ImageOrPath, channels: int = 3) -> Tensor:
    """The image that a parameter names: a tensor, or a file or sample. N×channels×H×W.

    Raises SightlineError for what is no image of so many channels.
    """
    if isinstance(source, Tensor):
        return check_image(source, channels=channels)
    name = escape_line_breaks(Path(source).name)
    return check_image(read_file_or_sample(source), name, channels=channels)


def samples() -> list[str]:
    """The names of the photographs and textures of scikit-image.

    The last is the default: a golf ball, drawn for this package, which its network knows.
    """
    return list(_find_sample_files())


def sample(name: str = DEFAULT_SAMPLE) -> Tensor:
    """Reads one of `samples()`: 1×3×H×W in [0, 1]. Raises SightlineError for an unknown name."""
    sample_files = _find_sample_files()
    if name not in sample_files:
        raise make_unknown_name_error("sample image", name, sample_files)
    return read(sample_files[name])


def _find_sample_files() -> dict[str, Path]:
    folder = Path(str(files("skimage") / "data"))
    sample_files = {name: path for name in SAMPLE_NAMES for path in folder.glob(f"{name}.*")}
    return {**sample_files, DRAWN_SAMPLE: DRAWN_SAMPLE_FILE}


# ── writing ──


def write(image: Tensor, path: str | Path) -> None:
    """Writes one image, 3×H×W or 1×3×H×W in [0, 1], rounded to 8 bits.

    A fourth channel is opacity; in a JPEG, which has none, the picture then stands on white. The
    suffix decides the format: .png, .jpg, .jpeg or .webp. The file appears whole or not at all.

    Raises SightlineError for another suffix, NaN, values outside [0, 1] by more than 0.001, and a
    folder that can't be written.
    """
    path = Path(path)
    format_name = WRITABLE_FORMATS.get(path.suffix.lower())
    if not format_name:
        raise SightlineError(
            f"{escape_line_breaks(str(path))}: pictures are written as "
            f"{', '.join(WRITABLE_FORMATS)}, not as {path.suffix!r}"
        )
    encoded = _encode_image(image, format_name)
    try:
        with replace_atomically(path) as temporary:
            temporary.write_bytes(encoded)
    except (OSError, ValueError) as error:  # ValueError: SightlineError, and a null byte in a path
        raise SightlineError(escape_line_breaks(str(error))) from error


def encode_png(image: Tensor) -> bytes:
    """The bytes of the PNG file that `write` makes of this image; raises as `write` does."""
    return _encode_image(image, "PNG")


def encode_jpeg(image: Tensor, quality: int = 85) -> bytes:
    """The bytes of a JPEG file with colors at half resolution; raises as `write` does."""
    return _encode_image(image, "JPEG", quality=quality, subsampling=2)


def encode_webp_picture(image: Tensor, quality: int = 82, *, lossless: bool = False) -> bytes:
    """The bytes of a WebP file; raises as `write` does."""
    return _encode_image(image, "WEBP", quality=quality, lossless=lossless)


def _encode_image(
    image: Tensor,
    format_name: str,
    quality: int = 95,
    subsampling: int = 0,
    *,
    lossless: bool = False,
) -> bytes:
    """The bytes of a file with this one image, 3×H×W or 1×3×H×W; a fourth channel is opacity."""
    batch = add_batch_axis(image)
    has_alpha = getattr(batch, "ndim", 0) == 4 and batch.shape[1] == 4
    batch = check_image(batch, tolerance=WRITE_TOLERANCE, channels=4 if has_alpha else 3)
    if len(batch) != 1:
        raise SightlineError(f"a file holds one image; this batch has {len(batch)}")
    if has_alpha and format_name == "JPEG":
        batch = batch[:, :3] * batch[:, 3:] + 1 - batch[:, 3:]
    pixels = quantize_image(batch[0])
    encoded = io.BytesIO()
    try:
        Image.fromarray(pixels).save(
            encoded, format_name, quality=quality, subsampling=subsampling, lossless=lossless
        )
    except (OSError, ValueError) as error:
        height, width = pixels.shape[:2]
        raise SightlineError(
            f"an image of {height}×{width} can't be written as {format_name} ({error})"
        ) from error
    return encoded.getvalue()


# ── error messages ──


def escape_line_breaks(text: str) -> str:
    """The text on one line: line breaks, control characters and undecodable bytes escaped."""
    return text if text.isprintable() else repr(text)[1:-1]


def describe_missing_file(path: Path) -> str:
    """Why a path leads to no file, with the closest name in its folder."""
    if path.is_symlink():
        return "a link to a file that does not exist"
    try:
        sibling_names = [sibling.name for sibling in path.parent.iterdir()]
    except OSError:
        return f"no such file; there is no folder {path.parent}"
    return "no such file" + suggest_closest_name(path.name, sibling_names[:MAX_COMPARED_NAMES])
