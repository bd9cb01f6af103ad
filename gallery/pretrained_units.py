"""Units of VGG-16
===============

Which image would make a channel respond most? Eight channels of each of three depths.

Downloads VGG-16's weights (0.5 GB), unless SIGHTLINE_WEIGHTS names a folder with vgg16.safetensors.
"""

from pathlib import Path

import torch
from torch import Tensor

import sightline as sl
from sightline.images.plotting.maps import make_contact_sheet
from sightline.images.transforms import resize_image

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"

# Channels by layer, from edges and textures to parts of objects.
CHANNELS = {
    "relu3_3": "0-7",
    "relu4_3": "0-7",
    "relu5_3": "0-7",
}
SIDE = 112
STEPS = 48
COLUMN_COUNT = 8
WIDTH = 1200


def synthesize_channels(model: sl.Model, layer: str) -> Tensor:
    """One image for each channel of the layer that is shown, N×3×SIDE×SIDE."""
    result = sl.synthesis(model, layer=layer, units=CHANNELS[layer], size=SIDE, steps=STEPS)
    return result.tensors["image"]


def write_sheet(images: Tensor, path: Path) -> None:
    """Writes the images, a layer a row, as one JPEG of the README's width."""
    sheet = make_contact_sheet(images, columns=COLUMN_COUNT)
    height, width = sheet.shape[-2:]
    sl.write(resize_image(sheet, round(height * WIDTH / width), WIDTH), path)


def main() -> None:
    model = sl.load("vgg16")
    rows = [synthesize_channels(model, layer) for layer in CHANNELS]
    write_sheet(torch.cat(rows), PICTURES / "vgg16_units.jpg")


if __name__ == "__main__":
    main()
