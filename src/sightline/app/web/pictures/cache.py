"""Pictures and numbers kept under the digest of what they depend on.

A digest is that of a key: a mapping that names everything that the pixels depend on (weights,
layer, unit, parameters, the images that are shown, and the version of the code where it matters).
So a picture is made once, another checkpoint makes again only what differs, and a file that is
there is right. Files are written under a temporary name and renamed: killing the process at any
moment leaves a file whole or absent.
"""

import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any

from torch import Tensor

from sightline.errors import SightlineError
from sightline.images.decode.pixels import quantize_image
from sightline.images.files import get_cache_path, replace_atomically

# Raised whenever the code draws another picture for the same key.
PICTURE_VERSION = 1

WEBP_QUALITY = 60
DIGEST_LENGTH = 32  # hexadecimal digits, 128 bits
PICTURE_NAME = re.compile(rf"[0-9a-f]{{{DIGEST_LENGTH}}}\.(webp|jpg)")
# So many pictures are remembered that pages have asked for, and that nobody has fetched yet.
MAX_REQUESTS = 200_000

PictureMaker = Callable[[], Tensor | bytes]


@dataclass(frozen=True)
class PictureRequest:
    """How a picture is made that a page shows."""

    make: PictureMaker
    is_kept: bool
    quality: int = WEBP_QUALITY


class PictureCache:
    """The pictures of a site by their file names, and a folder that keeps them."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or get_cache_path("pictures", "explorer")
        self.lock = RLock()
        self._requests: OrderedDict[str, PictureRequest] = OrderedDict()

    def add(
        self,
        key: Mapping[str, Any],
        make: PictureMaker,
        *,
        suffix: str = ".webp",
        is_kept: bool = True,
        quality: int = WEBP_QUALITY,
    ) -> str:
        """The file name under which a picture can be read from now on.

        `make` gives it as 1×3×H×W in [0, 1], or the bytes of its file. It is called when the
        picture is read for the first time. One that is not kept is made each time.
        """
        name = compute_key_digest(key) + suffix
        with self.lock:
            self._requests[name] = PictureRequest(make, is_kept, quality)
            self._requests.move_to_end(name)
            if len(self._requests) > MAX_REQUESTS:
                self._requests.popitem(last=False)
        return name

    def find_path(self, name: str) -> Path:
        """Where the file of this name is kept. Nothing else of a name becomes a path.

        Raises SightlineError for what is no name of a picture.
        """
        if not PICTURE_NAME.fullmatch(name):
            raise SightlineError(f"no picture has the name {name!r:.80}")
        return self.folder / name[:2] / name

    def has(self, name: str) -> bool:
        """Whether the picture is kept already."""
        return self.find_path(name).is_file()

    def read(self, name: str) -> bytes | None:
        """The bytes of a picture's file, made if it is not kept; None if no page asked for it.

        Raises SightlineError if it can't be made or written.
        """
        path = self.find_path(name)
        content = _read_bytes(path)
        if content is not None:
            return content
        with self.lock:
            request = self._requests.get(name)
        if request is None:
            return None
        picture = request.make()
        content = (
            picture if isinstance(picture, bytes) else encode_as_webp(picture, request.quality)
        )
        if request.is_kept:
            write_bytes(content, path)
        return content

    def keep(self, key: Mapping[str, Any], picture: Tensor, quality: int = WEBP_QUALITY) -> str:
        """Keeps a picture that is made already, 1×3×H×W. Returns its file name."""
        name = f"{compute_key_digest(key)}.webp"
        write_bytes(encode_as_webp(picture, quality), self.find_path(name))
        return name

    def read_numbers(
        self, key: Mapping[str, Any], make: Callable[[], dict[str, Any]] | None
    ) -> dict[str, Any] | None:
        """Numbers by their key, made and kept if they are not there; None without `make`."""
        content = _read_bytes(self._find_numbers_path(key))
        if content is not None:
            return json.loads(content)
        if make is None:
            return None
        numbers = make()
        self.keep_numbers(key, numbers)
        return numbers

    def keep_numbers(self, key: Mapping[str, Any], numbers: Mapping[str, Any]) -> None:
        """Keeps numbers that are found already, in the place of earlier ones."""
        write_bytes(json.dumps(numbers).encode(), self._find_numbers_path(key))

    def _find_numbers_path(self, key: Mapping[str, Any]) -> Path:
        digest = compute_key_digest(key)
        return self.folder / digest[:2] / f"{digest}.json"


def compute_key_digest(key: Mapping[str, Any]) -> str:
    """The digest of a key, whose values are JSON; the order of its names does not matter.

    Raises TypeError for values that are not JSON.
    """
    text = json.dumps({"version": PICTURE_VERSION, "key": dict(key)}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_LENGTH]


def encode_as_webp(picture: Tensor, quality: int = WEBP_QUALITY) -> bytes:
    """A picture 1×3×H×W in [0, 1] as a WebP file; lossless for a quality of 100."""
    import io

    from PIL import Image

    pixels = quantize_image(picture.detach().cpu()[0])
    encoded = io.BytesIO()
    is_lossless = quality >= 100
    Image.fromarray(pixels).save(encoded, "WEBP", quality=quality, lossless=is_lossless)
    return encoded.getvalue()


def write_bytes(content: bytes, path: Path) -> None:
    """Writes a file whole or not at all. Raises SightlineError if it can't be written."""
    with replace_atomically(path) as temporary:
        temporary.write_bytes(content)


def _read_bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SightlineError(f"can't read {str(path)!r}: {error.strerror}") from error
