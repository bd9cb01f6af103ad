"""Eight kinds of class activation map at the last convolution, row by row: CAM, Grad-CAM, Grad-CAM++, HiResCAM; Layer-CAM, XGrad-CAM, Score-CAM,
Eigen-CAM."""

from pathlib import Path

import torch

import sightline as sl
from sightline.images.plotting import maps as render

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"
KINDS = ("cam", "gradcam", "gradcam++", "hirescam", "layercam", "xgradcam", "scorecam", "eigencam")

model = sl.load()
photo = model.fit(sl.sample("rocket"), 240)
over_photo = [
    sl.cam(model, photo, kind=kind).panels["cam"][..., -photo.shape[3] :] for kind in KINDS
]
sl.write(render.make_contact_sheet(torch.cat(over_photo), columns=4, gap=6), PICTURES / "cam.png")
