"""Segmentation without supervision
================================

Segmentation without supervision: seeds from Grad-CAM, the outline from GrabCut, the object.
"""

from pathlib import Path

import sightline as sl

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"

model = sl.load()
photo = model.fit(sl.sample("golf_ball"), 256)
result = sl.segment(model, photo, source="gradcam")
sl.write(result.panels["segment"], PICTURES / "segment.png")
