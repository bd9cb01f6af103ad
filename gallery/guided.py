"""Guided backpropagation
======================

Guided backpropagation of the strongest neuron of a middle layer, beside the patch it sees.
"""

from pathlib import Path

import sightline as sl

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"

model = sl.load()
photo = model.fit(sl.sample("chelsea"), 256)
result = sl.guided(model, photo, layer="relu3_2")
sl.write(result.panels["guided"], PICTURES / "guided.png")
