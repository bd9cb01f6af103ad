"""Filters
=======

First-layer filters as images.
"""

from pathlib import Path

import sightline as sl

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"

model = sl.load()
result = sl.filters(model)
sl.write(result.panels["filters"], PICTURES / "filters.png")
