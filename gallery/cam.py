"""Class activation maps
=====================

Class activation maps: eight kinds at the last convolution, and two that are finer.

cam.png, row by row: CAM, Grad-CAM, Grad-CAM++, HiResCAM; Layer-CAM, XGrad-CAM, Score-CAM,
Eigen-CAM. cam_fine.png: Layer-CAM of two layers and their product, and Guided Grad-CAM.
"""

from pathlib import Path

import torch

import sightline as sl
from sightline.images.plotting import maps as render

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"
KINDS = ("cam", "gradcam", "gradcam++", "hirescam", "layercam", "xgradcam", "scorecam", "eigencam")

model = sl.load()
photo = model.fit(sl.sample("golf_ball"), 240)
width = photo.shape[3]
overlays = [sl.cam(model, photo, kind=kind).panels["cam"][..., -width:] for kind in KINDS]
sheet = render.make_contact_sheet(torch.cat(overlays), columns=4, gap=6)
sl.write(sheet, PICTURES / "cam.png")

two_layers = sl.cam(
    model, photo, kind="layercam", layers=("relu4_2", "last_conv"), fusion="product"
)
guided = sl.cam(model, photo, kind="guided_gradcam")
fine = [two_layers.panels["cam"], guided.panels["cam"][..., width + 6 :]]
sl.write(render.arrange_in_row(*fine), PICTURES / "cam_fine.png")
