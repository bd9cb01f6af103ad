"""A photograph in the styles of six paintings, one pass of the network that comes with Sightline each."""

from pathlib import Path

import sightline as sl

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"

model = sl.load()
photo = model.fit(sl.sample("chelsea"), 224)
sl.write(sl.stylize(model, photo).panels["stylize"], PICTURES / "stylize.jpg")
