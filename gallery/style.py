"""Style transfer
==============

Style transfer: a photograph in the style of other pictures.
"""

from pathlib import Path

import torch

import sightline as sl
from sightline.images.plotting.maps import make_contact_sheet
from sightline.images.transforms import resize_short_side

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"

model = sl.load()
photo = resize_short_side(sl.sample("coffee"), 192)
restyled = [
    sl.style(model, photo, styles=(style,), steps=60).values["image"]
    for style in ("ihc", "hubble_deep_field", "gravel")
]
sheet = make_contact_sheet(torch.cat([photo, *restyled]), columns=2)  # type: ignore[list-item]
sl.write(sheet, PICTURES / "style.jpg")
