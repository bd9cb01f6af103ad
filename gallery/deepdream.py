"""DeepDream
=========

DeepDream: a photograph changed to increase what a layer responds to in it.
"""

from pathlib import Path

import sightline as sl

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"

model = sl.load()
photo = model.fit(sl.sample("rocket"), 300)
result = sl.deepdream(model, photo, layer="relu5_2", octaves=4)
sl.write(result.panels["deepdream"], PICTURES / "deepdream.png")
