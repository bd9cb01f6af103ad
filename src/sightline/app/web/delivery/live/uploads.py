"""Images that are sent to the server: decoded once, kept in memory, never written."""

import secrets
from collections import OrderedDict
from dataclasses import dataclass, field
from threading import Lock

from torch import Tensor

from sightline.errors import SightlineError
from sightline.images.decode.center_crop import fit_center_crop, stack_crops

# The last images that were sent; at 512 pixels each takes 3 MB.
MAX_UPLOADS = 16


@dataclass(frozen=True)
class Upload:
    """An image that was sent: 1×C×rows×columns in [0, 1], and the size of the picture."""

    name: str
    image: Tensor
    height: int
    width: int


@dataclass
class UploadShelf:
    """The last images that were sent, by names that can't be guessed.

    Attributes:
        size: Height and width of what the network sees.
        short_side: Shorter side of the resized middle of a picture out of which that is cut.
        channels: Of the images that the network takes.
    """

    size: tuple[int, int]
    short_side: int
    channels: int
    _uploads: OrderedDict[str, Upload] = field(default_factory=OrderedDict[str, Upload])
    _lock: Lock = field(default_factory=Lock)

    def add(self, content: bytes) -> Upload:
        """Decodes the bytes of a picture's file, as a scan does.

        Raises SightlineError for what is no whole picture, has more pixels than may be decoded, or
        other channels than the network takes.
        """
        crop = fit_center_crop(content, self.size, self.short_side)
        image = stack_crops([crop])
        if image.shape[1] != self.channels:
            raise SightlineError(
                f"the picture has {image.shape[1]} channels; the network takes {self.channels}"
            )
        name = f"u-{secrets.token_urlsafe(16)}"
        upload = Upload(name, image, crop.height, crop.width)
        with self._lock:
            self._uploads[name] = upload
            while len(self._uploads) > MAX_UPLOADS:
                self._uploads.popitem(last=False)
        return upload

    def get(self, name: str) -> Upload:
        """An image by its name. Raises SightlineError for one that is not here any more."""
        with self._lock:
            upload = self._uploads.get(name)
            if upload is None:
                raise SightlineError("the server has forgotten this picture; send it again")
            self._uploads.move_to_end(name)
            return upload
