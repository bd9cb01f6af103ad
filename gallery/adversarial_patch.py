"""Adversarial patch
=================

A patch that the network classifies as a golf ball wherever it is placed.
"""

from pathlib import Path

import torch

import sightline as sl

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"

model = sl.load()
photos = torch.cat(
    [model.fit(sl.sample(name)) for name in ("rocket", "chelsea", "coffee", "astronaut")]
)
result = sl.adversarial_patch(model, photos, target="golf ball", steps=40)
sl.write(result.panels["patch"], PICTURES / "adversarial_patch.jpg")
