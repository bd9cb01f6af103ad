"""Pictures of the pages: thumbnails of images, what units see, and attributions side by side."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from sightline.data.store.reader import Scan
from sightline.errors import SightlineError, escape_for_display
from sightline.images.plotting.html import make_webp_uri
from sightline.images.plotting.maps import overlay_heatmap
from sightline.images.transforms import resize_image
from sightline.methods.attribution.cam import gradcam
from sightline.methods.attribution.saliency import saliency
from sightline.methods.diagnosis.unit_names import UnitNames
from sightline.models.model import Model

THUMBNAIL_SIDE = 88

# Images of a group that are shown.
SHOWN_IMAGES = 12

# Pixels of the side of a picture with an attribution.
ATTRIBUTION_SIDE = 224

# What makes the address of a picture 1×3×H×W, from a key that says what it shows.
AddPicture = Callable[[str, Tensor], str]


@dataclass(frozen=True)
class Tile:
    """A picture with a line below it; `image_id` is the image that it shows whole, or −1."""

    source: str
    width: int
    height: int
    caption: str
    alt: str
    image_id: int = -1


def embed_picture(key: str, picture: Tensor) -> str:
    """The picture itself, for a page of one file."""
    return make_webp_uri(picture.clamp(0, 1))


def make_thumbnail_tiles(
    scan: Scan,
    ids: Sequence[int],
    captions: Sequence[str],
    add_picture: AddPicture,
    limit: int = SHOWN_IMAGES,
) -> list[Tile]:
    """Tiles of the first images, small."""
    first_ids = [int(id) for id in ids[:limit]]
    if not first_ids:
        return []
    pictures = resize_image(scan.thumbnails(first_ids), THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    tiles: list[Tile] = []
    for id, picture, caption in zip(first_ids, pictures.split(1), captions, strict=False):
        source = add_picture(f"thumbnail {id}", picture)
        alt = f"image {id}: {caption}" if caption else f"image {id}"
        tiles.append(Tile(source, THUMBNAIL_SIDE, THUMBNAIL_SIDE, caption, alt, id))
    return tiles


def title_unit(layer: str, unit: int, names: UnitNames) -> str:
    """«layer4 · 12», with the unit's name where it has one: «layer4 · 12 «church»»."""
    title = f"{escape_for_display(layer)} · {unit}"
    name = names.get((layer, unit))
    return title if name is None else f"{title} «{name}»"


def make_unit_tiles(
    scan: Scan, layer: str, unit: int, add_picture: AddPicture, count: int = 4
) -> list[Tile]:
    """Tiles of the images to which a unit responds most."""
    top_images = scan.top(layer)
    ids = [int(id) for id in top_images.ids[:count, unit].tolist() if id >= 0]
    values = top_images.values[: len(ids), unit].tolist()
    captions = [f"{value:.3g}" for value in values]
    return make_thumbnail_tiles(scan, ids, captions, add_picture)


def load_network(scan: Scan, device: str | None = None) -> Model | None:
    """The network of a scan; None where it can't be had by name."""
    try:
        return scan.model(device)
    except SightlineError:
        return None


def draw_attribution(model: Model, image: Tensor, label: int) -> Tensor:
    """An image with what speaks for a class laid over it, 1×3×H×W.

    By Grad-CAM, or by the gradient where a network has no feature maps.
    """
    try:
        values = gradcam(model, image, label=label).values["attribution"].clamp_min(0)
    except SightlineError:
        values = saliency(model, image, label=label).values["attribution"].abs()
        if values.ndim == 4:
            values = values.amax(1)
    return overlay_heatmap(model.to_picture(image), values)


@dataclass(frozen=True)
class Side:
    """One of the networks that are compared; its model is None where it can't be had by name."""

    name: str
    scan: Scan
    model: Model | None


def make_attribution_tiles(
    sides: Sequence[Side], id: int, labels: Sequence[int], add_picture: AddPicture
) -> list[Tile]:
    """Over an image what speaks for each network's answer; empty where the image is gone."""
    tiles: list[Tile] = []
    for side, label in zip(sides, labels, strict=True):
        model = side.model
        if model is None:
            continue
        try:
            image = side.scan.image(id).to(model.device)
        except SightlineError:
            return []
        picture = draw_attribution(model, image, label)
        tile = resize_image(picture, ATTRIBUTION_SIDE, ATTRIBUTION_SIDE)
        source = add_picture(f"attribution {side.name} {id} {label}", tile)
        caption = f"{side.name}: what speaks for {model.labels[label]}"
        tiles.append(Tile(source, ATTRIBUTION_SIDE, ATTRIBUTION_SIDE, caption, caption))
    return tiles
