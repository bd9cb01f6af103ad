"""Style and texture with VGG-16
=============================

A photograph in the style of two paintings, and a texture grown from its Gram matrices.

Downloads VGG-16's weights (0.5 GB), unless SIGHTLINE_WEIGHTS names a folder with vgg16.safetensors.
"""

from pathlib import Path

import sightline as sl
from sightline.images.transforms import crop_center, resize_short_side

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"

SIDE = 256
PAINTINGS = ("starry_night", "great_wave")
TEXTURE = "gravel"


def main() -> None:
    model = sl.load("vgg16")
    photo = crop_center(resize_short_side(sl.sample("chelsea"), SIDE), SIDE, SIDE)
    for painting in PAINTINGS:
        result = sl.style(model, photo, styles=(painting,))
        sl.write(result.tensors["image"], PICTURES / f"vgg16_{painting}.jpg")

    sample = crop_center(resize_short_side(sl.sample(TEXTURE), SIDE), SIDE // 2, SIDE // 2)
    texture = sl.texture(model, sample, method="gatys", side=SIDE)
    sl.write(texture.tensors["image"], PICTURES / "vgg16_texture.jpg")


if __name__ == "__main__":
    main()
