"""Style and texture with VGG-16
=============================

A photograph in the style of two paintings, and a texture grown from Gram matrices.

Downloads VGG-16's weights (0.5 GB), unless SIGHTLINE_WEIGHTS names a folder with vgg16.safetensors.
"""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

import sightline as sl
from sightline.images.io.library import read_style_picture
from sightline.images.plotting.maps import make_contact_sheet
from sightline.images.transforms import crop_center, resize_image, resize_short_side

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"

SIDE = 256
PAINTINGS = ("starry_night", "great_wave")
TEXTURE = "gravel"
WIDTH = 1200


def crop_square(image: Tensor, side: int) -> Tensor:
    """The central square of a picture that is resized to the short side SIDE."""
    return crop_center(resize_short_side(image, SIDE), side, side)


def paint_photo(model: sl.Model, path: Path) -> None:
    """Writes the photograph, and each painting before the photograph in its style."""
    photo = crop_square(sl.sample("chelsea"), SIDE)
    images = [photo]
    for painting in PAINTINGS:
        result = sl.style(model, photo, styles=(painting,))
        images += [crop_square(read_style_picture(painting), SIDE), result.tensors["image"]]
    sheet = make_contact_sheet(torch.cat(images), columns=len(images))
    height, width = sheet.shape[-2:]
    sl.write(resize_image(sheet, round(height * WIDTH / width), WIDTH), path)


def grow_texture(model: sl.Model, path: Path) -> None:
    """Writes the exemplar, at the scale of the texture, and the texture."""
    exemplar = crop_square(sl.sample(TEXTURE), SIDE // 2)
    result = sl.texture(model, exemplar, method="gatys", side=SIDE)
    margins = (SIDE // 4,) * 4
    images = [F.pad(exemplar, margins, value=1.0), result.tensors["image"]]
    sl.write(make_contact_sheet(torch.cat(images), columns=2), path)


def main() -> None:
    model = sl.load("vgg16")
    paint_photo(model, PICTURES / "vgg16_style.jpg")
    grow_texture(model, PICTURES / "vgg16_texture.jpg")


if __name__ == "__main__":
    main()
