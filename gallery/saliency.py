"""Saliency by backpropagation
===========================

Magnitude of the gradient of the class score.
"""

from pathlib import Path

import sightline as sl

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"

model = sl.load()
photo = model.fit(sl.sample("golf_ball"), 224)
result = sl.saliency(model, photo)
sl.write(result.panels["saliency"], PICTURES / "saliency.png")
