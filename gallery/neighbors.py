"""Nearest neighbours
==================

The images nearest to one in the embedded network's features, beside those nearest in pixels.
"""

from pathlib import Path

import sightline as sl

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"

model = sl.load()
result = sl.neighbors(model, model.fit(sl.sample("motorcycle_left")))
sl.write(result.panels["neighbors"], PICTURES / "neighbors.png")
