"""Self-contained HTML: templates filled in, and pictures inside the page."""

import base64
from functools import cache
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sightline.images.io.pictures import encode_jpeg, encode_png, encode_webp_picture
from sightline.images.transforms import resize_image

if TYPE_CHECKING:
    from jinja2 import Environment

# A PNG larger than this many bytes is put into a notebook as JPEG.
MAX_PNG_BYTES = 200_000


def render_template(template: str, *, package: str = "sightline", **content: Any) -> str:
    """The text of the page that a file of a package's folder `templates` gives.

    What is filled in is escaped. Raises jinja2.UndefinedError if something is missing.
    """
    return _make_environment(package).get_template(template).render(**content)


@cache
def _make_environment(package: str) -> "Environment":
    """What reads the templates of a package, and keeps them compiled."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    return Environment(
        # Any package's templates may include those of the methods' pages.
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("sightline")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def make_data_uri(picture: Tensor) -> str:
    """A picture 1×3×H×W in [0, 1] as the source of an <img>, lossless."""
    return _encode_data_uri("png", encode_png(picture))


def make_webp_uri(picture: Tensor, *, lossless: bool = False) -> str:
    """A picture 1×3×H×W in [0, 1] as the source of an <img>, small."""
    return _encode_data_uri("webp", encode_webp_picture(picture, lossless=lossless))


def make_preview_uri(picture: Tensor, max_side: int) -> str:
    """A picture 1×3×H×W as the source of an <img>, at most `max_side` pixels high and wide.

    It is a PNG, or a JPEG where the PNG would be large.
    """
    height, width = picture.shape[-2:]
    scale = min(1.0, max_side / max(height, width))
    preview = resize_image(
        picture.detach().cpu(), max(1, round(height * scale)), max(1, round(width * scale))
    )
    encoded = encode_png(preview)
    if len(encoded) > MAX_PNG_BYTES:
        return _encode_data_uri("jpeg", encode_jpeg(preview))
    return _encode_data_uri("png", encoded)


def _encode_data_uri(subtype: str, content: bytes) -> str:
    return f"data:image/{subtype};base64,{base64.b64encode(content).decode()}"
