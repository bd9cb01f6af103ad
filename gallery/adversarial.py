"""Adversarial example
===================

A change too small to see that changes the predicted class of the network that was trained plainly,
and its answer as the change grows.
"""

from pathlib import Path

import sightline as sl

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"

model = sl.load("sightnet_plain")
photo = model.fit(sl.sample("golf_ball"), 224)
result = sl.adversarial(model, photo, target="English springer", eps=4 / 255, early=False, curve=7)
sl.write(result.panels["adversarial"], PICTURES / "adversarial.png")
sl.write(result.panels["curve"], PICTURES / "adversarial_curve.png")
