"""Universal perturbation
======================

One small change that changes the predicted class of most images, unseen ones included.
"""

from pathlib import Path

import torch

import sightline as sl

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"

model = sl.load()
photos = torch.cat([model.fit(sl.sample(name)) for name in ("rocket", "chelsea")])
result = sl.universal(model, photos, eps=10 / 255, steps=60)
sl.write(result.panels["universal"], PICTURES / "universal.jpg")
