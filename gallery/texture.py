"""Texture synthesis
=================

Texture synthesis from a sample, by patches and by features; texture transfer to a photograph.
"""

from pathlib import Path

import sightline as sl
from sightline.images.plotting.maps import arrange_in_row
from sightline.images.transforms import crop_center

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"

model = sl.load()
piece = model.fit(sl.sample("brick"), 96)
synthesized = [
    sl.texture(model, piece, method=method, side=192)
    for method in ("quilting", "efros_leung", "wei_levoy", "patchmatch")
]
other_textures = [result.values["image"] for result in synthesized[1:]]
row = arrange_in_row(synthesized[0].panels["texture"], *other_textures)
sl.write(row, PICTURES / "texture.png")

piece = crop_center(model.fit(sl.sample("gravel"), 256), 128, 128)
by_pooling = [
    sl.texture(model, piece, method="gatys", side=192, pooling=pooling, steps=80)
    for pooling in ("average", "max")
]
average, maximum = by_pooling
row = arrange_in_row(average.panels["texture"], maximum.values["image"])
sl.write(row, PICTURES / "texture_neural.png")

gravel = model.fit(sl.sample("gravel"), 256)
transferred = sl.texture(model, gravel, window=18, guide=model.fit(sl.sample("astronaut"), 256))
sl.write(transferred.panels["texture"], PICTURES / "texture_transfer.png")
