"""Eight kinds of class activation map at the last convolution, row by row.

CAM, Grad-CAM, Grad-CAM++, HiResCAM; Layer-CAM, XGrad-CAM, Score-CAM, Eigen-CAM.
"""

from pathlib import Path

import torch

import sightline as sl
from sightline.images.plotting import maps as render

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"
KINDS = ("cam", "gradcam", "gradcam++", "hirescam", "layercam", "xgradcam", "scorecam", "eigencam")

model = sl.load()
photo = model.fit(sl.sample("rocket"), 240)
width = photo.shape[3]
overlays = [sl.cam(model, photo, kind=kind).panels["cam"][..., -width:] for kind in KINDS]
sheet = render.make_contact_sheet(torch.cat(overlays), columns=4, gap=6)
sl.write(sheet, PICTURES / "cam.png")
