"""The part of an image that one position of a layer sees."""

from torch import Tensor
from torch.nn import functional as F

from sightline.errors import SightlineError
from sightline.images.plotting.maps import MID_GRAY, enlarge_pixels
from sightline.images.transforms import resize_image
from sightline.models.model import Model
from sightline.models.tracing.receptive_field import receptive_field

# Short side of a patch on a sheet, in pixels.
MIN_PATCH_SIDE = 64
MAX_PATCH_SIDE = 144

PixelBox = tuple[int, int, int, int]  # top, left, bottom, right (exclusive)


def find_receptive_box(model: Model, layer: str, row: int, column: int, image: Tensor) -> PixelBox:
    """The pixels that a neuron sees; the whole image where the layer has no positions."""
    height, width = image.shape[-2:]
    try:
        return receptive_field(model, layer, height, width).box(row, column, height, width)
    except SightlineError:
        return 0, 0, height, width


def find_receptive_window(
    model: Model, layer: str, row: int, column: int, image: Tensor
) -> PixelBox:
    """The window that a neuron sees, of one size for all neurons of a layer.

    It may reach beyond the image. It is the whole image where the layer has no positions, and along
    an axis where a neuron sees more than the image: most of such a window would be gray.
    """
    height, width = image.shape[-2:]
    try:
        window = receptive_field(model, layer, height, width).window(row, column)
    except SightlineError:
        return 0, 0, height, width
    top, left, bottom, right = window
    if bottom - top >= height:
        top, bottom = 0, height
    if right - left >= width:
        left, right = 0, width
    return top, left, bottom, right


def crop_padded_window(image: Tensor, box: PixelBox) -> Tensor:
    """The part of an image in a window that may reach beyond it; there it is gray."""
    top, left, bottom, right = box
    height, width = image.shape[-2:]
    pad_top = max(-top, 0)
    pad_left = max(-left, 0)
    pad_bottom = max(bottom - height, 0)
    pad_right = max(right - width, 0)
    padded = F.pad(image, (pad_left, pad_right, pad_top, pad_bottom), value=MID_GRAY)
    rows = slice(top + pad_top, bottom + pad_top)
    columns = slice(left + pad_left, right + pad_left)
    return padded[:, :, rows, columns]


def resize_for_sheet(images: Tensor) -> Tensor:
    """Images at a size fit for a sheet of them."""
    images = enlarge_pixels(images.detach().cpu(), MIN_PATCH_SIDE)
    height, width = images.shape[-2:]
    scale = min(1, MAX_PATCH_SIDE / min(height, width))
    return resize_image(images, round(height * scale), round(width * scale))
