"""One small change that fools the network on most images, also on ones it was not made from."""

from pathlib import Path

import torch

import sightline as sl

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"

model = sl.load()
photos = torch.cat([model.fit(sl.sample(name)) for name in ("rocket", "chelsea")])
result = sl.universal(model, photos, eps=10 / 255, steps=60)
sl.write(result.panels["universal"], PICTURES / "universal.jpg")
