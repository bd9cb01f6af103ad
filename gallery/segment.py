"""Segmentation without supervision: the seeds that saliency gives, the outline that GrabCut finds, the object cut out (what the network takes for
a French horn)."""

from pathlib import Path

import sightline as sl

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"

model = sl.load()
photo = model.fit(sl.sample("motorcycle_left"), 256)
result = sl.segment(model, photo)
sl.write(result.panels["segment"], PICTURES / "segment.png")
