"""Trust
=====

The model-randomization test: attributions while layers are randomized from the output down.

Row by row: gradient, Grad-CAM, guided backpropagation. Only the last still shows the image when
half of the layers are random.
"""

from pathlib import Path

import torch

import sightline as sl
from sightline.images.plotting import maps as render
from sightline.images.transforms import resize_image

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"

model = sl.load()
photo = model.fit(sl.sample("golf_ball"))
methods = ("saliency", "gradcam", "guided")
rows = [sl.trust(model, photo, method=method).panels["maps"] for method in methods]
sheet = render.make_contact_sheet(torch.cat(rows), columns=1, gap=4)
half_size = resize_image(sheet, sheet.shape[2] // 2, sheet.shape[3] // 2)
sl.write(half_size, PICTURES / "trust.png")
