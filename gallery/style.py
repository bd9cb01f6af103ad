"""Style transfer: a photograph painted in the manner of other pictures."""

from pathlib import Path

import torch

import sightline as sl
from sightline.images.plotting.maps import make_contact_sheet

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"

model = sl.load()
photo = sl.image.resize_short_side(sl.sample("coffee"), 192)
made = [
    sl.style(model, photo, styles=(style,), steps=60).values["image"]
    for style in ("ihc", "hubble_deep_field", "gravel")
]
sl.write(make_contact_sheet(torch.cat([photo, *made]), columns=2), PICTURES / "style.jpg")  # type: ignore[list-item]
