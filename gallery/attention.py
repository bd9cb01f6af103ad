"""Attention
=========

Attention rollout and relevance of a small transformer.

Its weights are random, so the picture shows how the method works and nothing learned. It is
written to out/, not to the documentation.
"""

from pathlib import Path

import torch
from torchvision.models import VisionTransformer

import sightline as sl
from sightline.images.plotting import maps as render

PICTURES = Path(__file__).parent.parent / "out"

torch.manual_seed(0)
network = VisionTransformer(
    image_size=160,
    patch_size=16,
    num_layers=4,
    num_heads=4,
    hidden_dim=64,
    mlp_dim=128,
    num_classes=10,
)
# torchvision initializes the head to zero, with which every relevance is zero.
torch.nn.init.normal_(network.heads.head.weight)
model = sl.load(network, size=160)
photo = model.fit(sl.sample("rocket"))
kinds = ("rollout", "relevance")
rows = [sl.attention(model, photo, kind=kind).panels["attention"] for kind in kinds]
sheet = render.make_contact_sheet(torch.cat(rows), columns=1, gap=6)
sl.write(sheet, PICTURES / "attention.png")
