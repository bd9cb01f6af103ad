"""Six paintings on six photographs, and six textures made anew, with SqueezeNet's trained weights. Needs the data folder
(SIGHTLINE_DATA, or ../shared/data beside the project); without it the pictures stay as they are."""

import os
import sys
from pathlib import Path

import torch

import sightline as sl
from sightline.images.plotting.maps import make_contact_sheet

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
SIDE = 256


def square(path: Path, side: int) -> torch.Tensor:
    """The middle of a picture, at most `side` pixels."""
    image = sl.read(path)
    image = sl.image.resize_short_side(image, side) if min(image.shape[-2:]) > side else image
    least = min(side, *image.shape[-2:])
    return sl.image.crop_center(image, least, least)


if not DATA.is_dir():
    sys.exit(f"no data in {DATA}; the pictures stay as they are")
model = sl.load("squeezenet1_0", weights=DATA / "nets" / "squeezenet1_0.safetensors")
rows = list[torch.Tensor]()
for photo, painting in PAIRS.items():
    content = square(DATA / "content" / f"{photo}.jpg", SIDE)
    style = str(DATA / "paintings" / f"{painting}.jpg")
    rows += [
        content,
        square(Path(style), SIDE),
        sl.style(model, content, styles=(style,), steps=80).tensors["image"],
    ]
(PICTURES / "paintings.jpg").write_bytes(
    sl.image.encode_jpeg(
        sl.image.resize_image(make_contact_sheet(torch.cat(rows), columns=6), 500, 1000)
    )
)
rows = []
for name in TEXTURES:
    piece = square(DATA / "textures" / name, 128)
    made = sl.texture(model, piece, method="gatys", side=192, steps=100).tensors["image"]
    rows += [
        torch.nn.functional.pad(piece, (0, 192 - piece.shape[3], 0, 192 - piece.shape[2]), value=1),
        made,
    ]  # at one scale
(PICTURES / "textures.jpg").write_bytes(
    sl.image.encode_jpeg(
        sl.image.resize_image(make_contact_sheet(torch.cat(rows), columns=6), 300, 900)
    )
)
