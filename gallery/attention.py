"""Attention rollout and relevance of a small transformer. Its weights are random, so the picture shows the mechanics and nothing learned;
it is not one to share and stays in out/."""

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
torch.nn.init.normal_(
    network.heads.head.weight
)  # torchvision starts it at zero, where every relevance is
model = sl.load(network, size=160)
photo = model.fit(sl.sample("rocket"))
rows = [
    sl.attention(model, photo, kind=kind).panels["attention"] for kind in ("rollout", "relevance")
]
sl.write(render.make_contact_sheet(torch.cat(rows), columns=1, gap=6), PICTURES / "attention.png")
