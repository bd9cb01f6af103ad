"""Texture synthesis: a larger picture from a small piece, by four classical methods; and a photograph remade from gravel."""

from pathlib import Path

import sightline as sl
from sightline.images.plotting.maps import arrange_in_row

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"

model = sl.load()
piece = model.fit(sl.sample("brick"), 96)
made = [
    sl.texture(model, piece, method=method, side=192)
    for method in ("quilting", "efros_leung", "wei_levoy", "patchmatch")
]
sl.write(
    arrange_in_row(made[0].panels["texture"], *(result.values["image"] for result in made[1:])),
    PICTURES / "texture.png",
)

piece = sl.image.crop_center(model.fit(sl.sample("gravel"), 256), 128, 128)
ways = [
    sl.texture(model, piece, method="gatys", side=192, pooling=pooling, steps=80)
    for pooling in ("average", "max")
]
sl.write(
    arrange_in_row(ways[0].panels["texture"], *(way.tensors["image"] for way in ways[1:])),
    PICTURES / "texture_neural.png",
)

gravel = model.fit(sl.sample("gravel"), 256)
followed = sl.texture(model, gravel, window=18, guide=model.fit(sl.sample("astronaut"), 256))
sl.write(followed.panels["texture"], PICTURES / "texture_transfer.png")
