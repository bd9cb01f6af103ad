"""Ten classes by two networks
===========================

Each class by the default ascent: above by the network that was trained against adversarial examples
(the default), below by the one that was trained plainly.
"""

from pathlib import Path

import torch

import sightline as sl
from sightline.images.plotting.maps import make_contact_sheet
from sightline.images.transforms import resize_image

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"

SIDE = 128
WIDTH = 1200

rows = [
    sl.synthesis(sl.load(name), layer="logits", units="0-9", size=SIDE).tensors["image"]
    for name in ("sightnet", "sightnet_plain")
]
sheet = make_contact_sheet(torch.cat(rows), columns=10)
height, width = sheet.shape[-2:]
picture = resize_image(sheet, round(height * WIDTH / width), WIDTH)
sl.write(picture, PICTURES / "sightnet_classes.jpg")
