"""The patch of an image that one position of a layer sees."""

from torch import Tensor
from torch.nn import functional as F

from sightline.errors import SightlineError
from sightline.images.plotting.maps import MID_GRAY, enlarge_pixels, resize_picture
from sightline.models.model import Model
from sightline.models.tracing.receptive_field import receptive_field

MIN_PATCH_SIDE, MAX_PATCH_SIDE = 64, 144  # short side of a patch on a sheet, in pixels

PixelBox = tuple[int, int, int, int]

# ── what they see ──


def find_receptive_box(model: Model, layer: str, row: int, column: int, image: Tensor) -> PixelBox:
    """The pixels a neuron sees; the whole image where the layer has no places."""
    height, width = image.shape[-2:]
    try:
        return receptive_field(model, layer, height, width).box(row, column, height, width)
    except SightlineError:
        return 0, 0, height, width


def find_receptive_window(
    model: Model, layer: str, row: int, column: int, image: Tensor
) -> PixelBox:
    """The same, of one size for all neurons of a layer: it may reach beyond the image."""
    height, width = image.shape[-2:]
    try:
        return receptive_field(model, layer, height, width).window(row, column)
    except SightlineError:
        return 0, 0, height, width


def crop_padded_window(image: Tensor, box: PixelBox) -> Tensor:
    """The part of a picture in a window that may reach beyond it; there it is gray."""
    top, left, bottom, right = box
    height, width = image.shape[-2:]
    above, before = max(-top, 0), max(-left, 0)
    large = F.pad(
        image, (before, max(right - width, 0), above, max(bottom - height, 0)), value=MID_GRAY
    )
    return large[:, :, top + above : bottom + above, left + before : right + before]


def resize_for_sheet(images: Tensor) -> Tensor:
    """Pictures of a size that a sheet of them can be looked at."""
    images = enlarge_pixels(images.detach().cpu(), MIN_PATCH_SIDE)
    height, width = images.shape[-2:]
    share = min(1, MAX_PATCH_SIDE / min(height, width))
    return resize_picture(images, round(height * share), round(width * share))
