"""Saliency by occlusion
=====================

Saliency by occlusion: how far the score falls when a window is covered.
"""

from pathlib import Path

import sightline as sl

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"

model = sl.load()
photo = model.fit(sl.sample("golf_ball"), 256)
result = sl.occlusion(model, photo, window=24, stride=8)
sl.write(result.panels["occlusion"], PICTURES / "occlusion.png")
