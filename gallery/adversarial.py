"""A change too small to see that makes the network say something else, and how the answer gives way as it may grow."""

from pathlib import Path

import sightline as sl

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"

model = sl.load()
photo = model.fit(sl.sample("rocket"), 224)
result = sl.adversarial(model, photo, target="English springer", eps=4 / 255, early=False, curve=7)
sl.write(result.panels["adversarial"], PICTURES / "adversarial.png")
sl.write(result.panels["curve"], PICTURES / "adversarial_curve.png")
