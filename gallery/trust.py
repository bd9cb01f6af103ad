"""The model-randomization test: maps of the class as the network's layers lose what they learned, from the answer down. Row by row:
gradient, Grad-CAM, guided backpropagation. Only the last one still draws the picture when half of the layers are random."""

from pathlib import Path

import torch

import sightline as sl
from sightline.images import io as image
from sightline.images.plotting import maps as render

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"

model = sl.load()
photo = model.fit(sl.sample("rocket"))
rows = [
    sl.trust(model, photo, method=name).panels["maps"] for name in ("saliency", "gradcam", "guided")
]
sheet = render.make_contact_sheet(torch.cat(rows), columns=1, gap=4)
sl.write(
    image.resize_image(sheet, sheet.shape[2] // 2, sheet.shape[3] // 2), PICTURES / "trust.png"
)
