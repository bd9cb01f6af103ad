"""Feed-forward style networks
===========================

A photograph in the styles of six paintings, each by one pass of the shipped style network.
"""

from pathlib import Path

import sightline as sl

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"

model = sl.load()
photo = model.fit(sl.sample("chelsea"), 224)
sl.write(sl.stylize(model, photo).panels["stylize"], PICTURES / "stylize.jpg")
