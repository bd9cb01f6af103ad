"""Segmentation without supervision
================================

Segmentation without supervision: seeds from saliency, the outline from GrabCut, the object.

The network takes the object for a French horn.
"""

from pathlib import Path

import sightline as sl

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"

model = sl.load("sightnet_plain")
photo = model.fit(sl.sample("motorcycle_left"), 256)
result = sl.segment(model, photo)
sl.write(result.panels["segment"], PICTURES / "segment.png")
