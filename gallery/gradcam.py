"""Grad-CAM
========

Grad-CAM at the last convolution.
"""

from pathlib import Path

import sightline as sl

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"

model = sl.load()
photo = model.fit(sl.sample("golf_ball"), 256)
result = sl.gradcam(model, photo)
sl.write(result.panels["gradcam"], PICTURES / "gradcam.png")
