"""Style transfer
==============

Style transfer: a photograph in the style of three paintings.
"""

from pathlib import Path

import torch

import sightline as sl
from sightline.images.plotting.maps import make_contact_sheet
from sightline.images.transforms import resize_short_side

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"

model = sl.load()
photo = resize_short_side(sl.sample("coffee"), 256)
restyled = [
    sl.style(model, photo, styles=(style,), steps=60).values["image"]
    for style in ("starry_night", "great_wave", "scream")
]
sheet = make_contact_sheet(torch.cat([photo, *restyled]), columns=2)  # type: ignore[list-item]
sl.write(sheet, PICTURES / "style.jpg")
