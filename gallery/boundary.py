"""Decision boundary
=================

The classes around an image, on a plane through it and its adversarial.
"""

from pathlib import Path

import sightline as sl

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"

model = sl.load()
result = sl.boundary(model, model.fit(sl.sample("rocket")), cells=31, steps=60)
sl.write(result.panels["boundary"], PICTURES / "boundary.png")
