"""RISE
====

RISE: random parts of the image are kept; the masks that leave a high score are averaged.
"""

from pathlib import Path

import sightline as sl

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"

model = sl.load()
photo = model.fit(sl.sample("golf_ball"), 256)
result = sl.rise(model, photo, samples=800, seed=0)
sl.write(result.panels["rise"], PICTURES / "rise.png")
