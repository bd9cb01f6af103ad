"""Activation maps
===============

Activation maps at three depths; the picture shows the middle one.
"""

from pathlib import Path

import sightline as sl

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"

model = sl.load()
photo = model.fit(sl.sample("golf_ball"), 256)
result = sl.activations(model, photo, layers=("relu1", "relu2_2", "relu5_2"), k=24)
sl.write(result.panels["relu2_2"], PICTURES / "activations.png")
