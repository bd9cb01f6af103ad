"""A change too small to see that makes the network say something else."""

from pathlib import Path

import sightline as sl

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"

model = sl.load()
photo = model.fit(sl.sample("rocket"), 256)
result = sl.adversarial(model, photo, target="English springer", eps=4 / 255)
sl.write(result.panels["adversarial"], PICTURES / "adversarial.png")
