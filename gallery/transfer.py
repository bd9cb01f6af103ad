"""Transfer
========

Adversarial images of one network on another: the embedded one, and the same trained plainly.
"""

from pathlib import Path

import torch

import sightline as sl

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"

model = sl.load()
photos = torch.cat(
    [model.fit(sl.sample(name)) for name in ("rocket", "chelsea", "coffee", "astronaut")]
)
result = sl.transfer(model, photos, others=("sightnet_plain",), eps=8 / 255, steps=10)
sl.write(result.panels["transfer"], PICTURES / "transfer.png")
