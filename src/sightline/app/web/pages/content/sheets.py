"""The pictures of the explorer's pages: patches of units, and sheets of them.

Functions named `add_…` add a picture to the explorer and return its address. The picture itself is
made when somebody asks for it.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from sightline.app.web.explorer.explorer import Explorer
from sightline.app.web.pages.content.facts import describe_unit
from sightline.data.store.interface import THUMBNAIL_SIZE
from sightline.data.store.reader import Scan, TopImages
from sightline.errors import SightlineError
from sightline.images.decode.center_crop import fit_center_crop, stack_crops
from sightline.images.decode.pixels import convert_pillow_to_tensor
from sightline.images.plotting.maps import (
    enlarge_pixels,
    find_gradient_limit,
    make_contact_sheet,
    render_around_gray,
)
from sightline.images.transforms import resize_image
from sightline.methods.attribution.guided import backpropagate_given_neurons
from sightline.models.model import Model
from sightline.models.tracing.crops import PixelBox, crop_padded_window
from sightline.models.tracing.receptive_field import ReceptiveField, receptive_field

CARD_SIDE = 96  # pixels of a unit's card, and of its cell on a sheet of its layer
PATCH_SIDE = 120  # of one of the strongest patches of a unit
RANGE_SIDE = 80  # of a patch from across a unit's range

SHEET_COLUMNS = 8  # units in a row of a layer's sheet
SHEET_UNITS = SHEET_COLUMNS**2

# A patch smaller than this on the stored thumbnail is cut out of the original instead.
MIN_THUMBNAIL_PATCH = 40

Position = tuple[int, int] | None  # row and column in a unit's map; None without a map


@dataclass(frozen=True)
class Patch:
    """What a unit sees of an image where it is strong.

    Attributes:
        image_id: The image.
        position: Of the strongest response in the unit's map.
        box: The pixels of the network's square that the unit sees there, moved into the square
            where it sees beyond its edge. None for the whole square, and where it is not known.
        value: The unit's response.
    """

    image_id: int
    position: Position
    box: PixelBox | None
    value: float


# ── where units are strong ──


def list_strongest_patches(explorer: Explorer, layer: str, unit: int, count: int) -> list[Patch]:
    """The strongest patches of a unit, at most one of an image, strongest first."""
    top_images = read_top_images(explorer.scan, layer)
    return select_patches(explorer, layer, unit, top_images, range(count))


@lru_cache(maxsize=32)
def read_top_images(scan: Scan, layer: str) -> TopImages:
    """The strongest images of all units of a layer, read once."""
    return scan.top(layer)


def select_patches(
    explorer: Explorer, layer: str, unit: int, images: TopImages, rows: Sequence[int]
) -> list[Patch]:
    """Some of the images of a unit, by their rows; rows that the scan lacks are left out."""
    kept_rows = [row for row in rows if row < len(images.ids)]
    field = find_field(explorer.model, explorer.scan, layer)
    patches: list[Patch] = []
    for row in kept_rows:
        image_id = int(images.ids[row, unit])
        if image_id < 0:
            continue
        position: Position = None
        if images.positions is not None:
            map_row, map_column = images.positions[row, unit].tolist()
            position = (map_row, map_column)
        box = None
        if field is not None and position is not None:
            box = shift_inside(field.window(*position), explorer.scan.size)
        patches.append(Patch(image_id, position, box, float(images.values[row, unit])))
    return patches


def shift_inside(box: PixelBox, size: tuple[int, int]) -> PixelBox:
    """A box, not larger than an image of this height and width, moved into it."""
    top, left, bottom, right = box
    down = max(0, -top) - max(0, bottom - size[0])
    along = max(0, -left) - max(0, right - size[1])
    return top + down, left + along, bottom + down, right + along


def find_field(model: Model | None, scan: Scan, layer: str) -> ReceptiveField | None:
    """What the units of a layer see of the scan's images.

    None where each sees all of it, and where that is not known.
    """
    if model is None:
        return None
    try:
        field = receptive_field(model, layer, *scan.size)
    except SightlineError:
        return None
    height, width = scan.size
    sees_inside = field.size[0] < height and field.size[1] < width
    return field if sees_inside else None


# ── one patch ──


def cut_patch(explorer: Explorer, patch: Patch, side: int) -> Tensor:
    """A patch, 1×3×side×side, gray beyond the image.

    It is cut out of the thumbnail where that is sharp enough or the original is gone.
    """
    scan = explorer.scan
    if patch.box is None:
        return resize_image(pad_to_square(read_thumbnail(explorer, patch.image_id)), side, side)

    thumbnail_scale = min(1.0, THUMBNAIL_SIZE / max(scan.size))
    top, left, bottom, right = patch.box
    if (bottom - top) * thumbnail_scale < min(MIN_THUMBNAIL_PATCH, side):
        picture = explorer.read_image(patch.image_id)
        if picture is not None:
            return fit_patch(crop_padded_window(picture, patch.box), side)

    first_row = round(top * thumbnail_scale)
    first_column = round(left * thumbnail_scale)
    end_row = max(round(bottom * thumbnail_scale), first_row + 1)
    end_column = max(round(right * thumbnail_scale), first_column + 1)
    box = (first_row, first_column, end_row, end_column)
    return fit_patch(crop_padded_window(read_thumbnail(explorer, patch.image_id), box), side)


def read_thumbnail(explorer: Explorer, id: int) -> Tensor:
    """What the network saw of an image, small: 1×3×h×w in [0, 1]."""
    content = explorer.read_thumbnails([id])[0]
    return stack_crops([fit_center_crop(content, explorer.scan.thumbnail_size)])


def pad_to_square(picture: Tensor) -> Tensor:
    """The picture in the middle of a gray square."""
    height, width = picture.shape[-2:]
    side = max(height, width)
    top = (height - side) // 2
    left = (width - side) // 2
    return crop_padded_window(picture, (top, left, top + side, left + side))


def fit_patch(patch: Tensor, side: int) -> Tensor:
    """A patch at the side of a cell. Small ones keep their pixels visible."""
    enlarged = enlarge_pixels(patch, side)
    return resize_image(enlarged, side, side)


def describe_patches(explorer: Explorer, patches: Sequence[Patch]) -> list[Any]:
    """What the pixels of patches depend on, as JSON."""
    return [[explorer.digest_image(patch.image_id), patch.box] for patch in patches]


# ── cards and sheets ──


def add_unit_card(explorer: Explorer, layer: str, unit: int) -> str:
    """The strongest patch of a unit, as its card shows it."""
    patches = list_strongest_patches(explorer, layer, unit, 1)
    return add_sheet_of_patches(explorer, patches, CARD_SIDE, columns=1)


def make_unit_card(explorer: Explorer, layer: str, unit: int, note: str) -> dict[str, Any]:
    """A unit with its picture and a note, as cards show it."""
    card = describe_unit(explorer, layer, unit)
    return {**card, "picture": add_unit_card(explorer, layer, unit), "note": note}


def add_layer_sheet(explorer: Explorer, layer: str, first_unit: int, unit_count: int) -> str:
    """The strongest patches of up to 64 units of a layer, in rows of eight."""
    patches: list[Patch] = []
    for unit in range(first_unit, min(first_unit + SHEET_UNITS, unit_count)):
        patches += list_strongest_patches(explorer, layer, unit, 1)
    return add_sheet_of_patches(explorer, patches, CARD_SIDE, SHEET_COLUMNS)


def add_sheet_of_patches(
    explorer: Explorer, patches: Sequence[Patch], side: int, columns: int
) -> str:
    """Patches side by side, row by row."""

    def make_sheet() -> Tensor:
        explorer.read_thumbnails([patch.image_id for patch in patches])
        cells = [cut_patch(explorer, patch, side) for patch in patches]
        return arrange_cells(cells, columns)

    key = {
        "picture": "patches",
        "patches": describe_patches(explorer, patches),
        "network size": explorer.scan.size,
        "side": side,
        "columns": columns,
    }
    return explorer.add_picture(key, make_sheet, depends_on={})


def add_gradient_sheet(
    explorer: Explorer, layer: str, unit: int, patches: Sequence[Patch], columns: int
) -> str | None:
    """What pushes a unit up in each of its patches, by guided backpropagation; all on one scale.

    None without the network.
    """
    model = explorer.model
    if model is None:
        return None

    def make_sheet() -> Tensor:
        images = torch.cat([explorer.read_input(patch.image_id) for patch in patches])
        cells = draw_gradient_patches(model, images, layer, unit, patches)
        return arrange_cells(cells, columns)

    key = {
        "picture": "guided",
        "layer": layer,
        "unit": unit,
        "patches": describe_patches(explorer, patches),
        "side": PATCH_SIDE,
        "columns": columns,
    }
    origin = {"network": explorer.scan.description.network.weights}
    return explorer.add_picture(key, make_sheet, depends_on=origin)


def draw_gradient_patches(
    model: Model, images: Tensor, layer: str, unit: int, patches: Sequence[Patch]
) -> list[Tensor]:
    """The guided gradient of a unit in each of its patches, around gray."""
    positions = torch.tensor([patch.position or (0, 0) for patch in patches])
    units = torch.full((len(patches),), unit)
    neurons = (units, positions[:, 0], positions[:, 1])
    gradients = backpropagate_given_neurons(model, images, layer, "guided", neurons)
    gradient = model.to_picture(gradients.gradient)
    rendered = render_around_gray(gradient, find_gradient_limit(gradient))
    cells: list[Tensor] = []
    for picture, patch in zip(rendered.split(1), patches, strict=True):
        window = picture if patch.box is None else crop_padded_window(picture, patch.box)
        cells.append(fit_patch(window, PATCH_SIDE))
    return cells


def add_filter_sheet(explorer: Explorer, layer: str, weight: Tensor, first_unit: int) -> str:
    """The filters of up to 64 units that read three colours, on one scale for the whole layer."""

    def make_sheet() -> Tensor:
        filters = weight[first_unit : first_unit + SHEET_UNITS]
        colors = render_around_gray(filters, float(weight.abs().max()))
        cells = [fit_patch(picture, CARD_SIDE) for picture in colors.split(1)]
        return arrange_cells(cells, SHEET_COLUMNS)

    key = {"picture": "filters", "layer": layer, "first": first_unit, "side": CARD_SIDE}
    origin = {"network": explorer.scan.description.network.weights}
    return explorer.add_picture(key, make_sheet, depends_on=origin)


def arrange_cells(cells: Sequence[Tensor], columns: int) -> Tensor:
    """Square pictures of one size side by side without gaps; the places left over are gray."""
    sheet = make_contact_sheet(torch.cat(list(cells)), columns=columns, gap=0, fill=0.5)
    missing_columns = max(0, columns - len(cells))
    padding = (0, missing_columns * cells[0].shape[-1], 0, 0)
    return nn.functional.pad(sheet, padding, value=0.5)


def count_sheet_rows(cell_count: int, columns: int) -> int:
    """How many rows a sheet of cells has."""
    return math.ceil(cell_count / columns)


# ── synthesis ──


def add_synthesis_sheet(
    explorer: Explorer, layer: str, first_unit: int, unit_count: int
) -> str | None:
    """The syntheses of up to 64 units of a layer, in rows of eight; None where none are shown."""
    units = range(first_unit, min(first_unit + SHEET_UNITS, unit_count))
    addresses = [explorer.synthesis(layer, unit) for unit in units]
    known_addresses = [address for address in addresses if address]
    if len(known_addresses) < len(units):
        return None

    def make_sheet() -> Tensor:
        cells = [read_small_picture(explorer, address) for address in known_addresses]
        return arrange_cells(cells, SHEET_COLUMNS)

    key = {"picture": "synthesis sheet", "pictures": known_addresses, "side": CARD_SIDE}
    return explorer.add_picture(key, make_sheet, depends_on={})


def read_small_picture(explorer: Explorer, address: str) -> Tensor:
    """A picture of the explorer at the size of a card, made if it is not there yet."""
    content = explorer.pictures.read(address.removeprefix("pictures/")) or b""
    with Image.open(io.BytesIO(content)) as file:
        picture = convert_pillow_to_tensor(file)
    return resize_image(picture, CARD_SIDE, CARD_SIDE)
