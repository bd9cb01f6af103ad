"""Labels of units
===============

The units of the embedded network's last convolution that respond to one sample photograph.
"""

from pathlib import Path

import sightline as sl

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"

result = sl.labels(sl.load(), max_units=4)
sl.write(result.panels["labels"], PICTURES / "labels.png")
