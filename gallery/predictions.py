"""Predictions
===========

The most probable classes of a photograph.
"""

from pathlib import Path

import sightline as sl

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"

model = sl.load()
photo = model.fit(sl.sample("golf_ball"))
result = sl.predictions(model, photo)
sl.write(result.panels["predictions"], PICTURES / "predictions.png")
