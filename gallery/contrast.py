"""Two networks compared
=====================

Ascent, gradient and attack on the embedded network, and on the same architecture trained plainly.
"""

from pathlib import Path

import sightline as sl
from sightline.images.plotting.maps import arrange_in_row

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"

model = sl.load()
result = sl.contrast(model, model.fit(sl.sample("golf_ball")))
sl.write(
    arrange_in_row(result.panels["ascent"], result.panels["saliency"]), PICTURES / "contrast.jpg"
)
sl.write(result.panels["attack"], PICTURES / "contrast_attack.jpg")
print(result.captions["attack"])
