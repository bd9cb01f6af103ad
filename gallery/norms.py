"""Instance norm against batch norm
================================

What instance norm removes and batch norm keeps: a photograph and a pale copy, with either.
"""

from pathlib import Path

import sightline as sl
from sightline.images.transforms import crop_center, resize_short_side

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"

model = sl.load()
photo = crop_center(resize_short_side(sl.sample("chelsea"), 144), 144, 180)
sl.write(sl.norms(model, photo).panels["norms"], PICTURES / "norms.jpg")
