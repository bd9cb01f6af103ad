"""Six paintings on six photographs
================================

Six paintings on six photographs, and six textures, with SqueezeNet's trained weights.

Needs the data folder (SIGHTLINE_DATA, or ../shared/data beside the project); without it the
pictures stay as they are.
"""

import os
import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

import sightline as sl
from sightline.images.io.pictures import encode_jpeg
from sightline.images.plotting.maps import make_contact_sheet
from sightline.images.transforms import crop_center, resize_image, resize_short_side

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"
DATA = Path(os.environ.get("SIGHTLINE_DATA") or Path(__file__).parents[2] / "shared" / "data")
PAIRS = {
    "tubingen": "van_gogh_starry_night",
    "cornell": "hokusai_great_wave",
    "hoover_tower_night": "munch_the_scream",
    "sailboat": "turner_shipwreck_of_the_minotaur",
    "flowers": "kandinsky_composition_vii",
    "amber": "matisse_woman_with_a_hat",
}
TEXTURES = (
    "pebbles.jpg",
    "water_caustics.jpg",
    "brodatz_d3.jpg",
    "wood.jpg",
    "sliced_wasserstein_example.png",
    "tiny_161.jpg",
)
PHOTO_SIDE = 256
SAMPLE_SIDE = 128
TEXTURE_SIDE = 192


def read_square(path: Path, side: int) -> Tensor:
    """The central square of a picture, at most `side` pixels wide."""
    image = sl.read(path)
    if min(image.shape[-2:]) > side:
        image = resize_short_side(image, side)
    square_side = min(side, *image.shape[-2:])
    return crop_center(image, square_side, square_side)


def paint_photos(model: sl.Model) -> list[Tensor]:
    """Photograph, painting and result for each pair."""
    pictures: list[Tensor] = []
    for photo_name, painting_name in PAIRS.items():
        photo = read_square(DATA / "content" / f"{photo_name}.jpg", PHOTO_SIDE)
        painting = DATA / "paintings" / f"{painting_name}.jpg"
        result = sl.style(model, photo, styles=(str(painting),), steps=80)
        pictures += [photo, read_square(painting, PHOTO_SIDE), result.tensors["image"]]
    return pictures


def synthesize_textures(model: sl.Model) -> list[Tensor]:
    """Sample and texture, at the same scale, for each texture."""
    pictures: list[Tensor] = []
    for name in TEXTURES:
        sample = read_square(DATA / "textures" / name, SAMPLE_SIDE)
        result = sl.texture(model, sample, method="gatys", side=TEXTURE_SIDE, steps=100)
        _, _, height, width = sample.shape
        margins = (0, TEXTURE_SIDE - width, 0, TEXTURE_SIDE - height)
        pictures += [F.pad(sample, margins, value=1), result.tensors["image"]]
    return pictures


def write_sheet(pictures: list[Tensor], height: int, width: int, path: Path) -> None:
    """Writes pictures, six a row, as one JPEG of this size."""
    sheet = make_contact_sheet(torch.cat(pictures), columns=6)
    resized = resize_image(sheet, height, width)
    path.write_bytes(encode_jpeg(resized))


def main() -> None:
    if not DATA.is_dir():
        sys.exit(f"no data in {DATA}; the pictures stay as they are")
    model = sl.load("squeezenet1_0", weights=DATA / "nets" / "squeezenet1_0.safetensors")
    write_sheet(paint_photos(model), 500, 1000, PICTURES / "paintings.jpg")
    write_sheet(synthesize_textures(model), 300, 900, PICTURES / "textures.jpg")


if __name__ == "__main__":
    main()
