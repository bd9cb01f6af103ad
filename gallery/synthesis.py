"""Gradient ascent from nothing to a class, by a spectrum and by regularized pixels."""

from pathlib import Path

import sightline as sl

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"

model = sl.load()
for start in ("fourier", "gray"):
    result = sl.synthesis(model, sl.logit("church"), start=start, size=224)
    sl.write(result.panels["synthesis"], PICTURES / f"synthesis_{start}.png")
