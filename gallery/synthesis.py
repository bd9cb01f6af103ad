"""Gradient ascent from nothing to a class, by a spectrum and by regularized pixels."""

from pathlib import Path

import sightline as sl

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"

model = sl.load()
for start in ("fourier", "gray"):
    result = sl.synthesis(model, sl.logit("golf ball"), start=start, size=192)
    sl.write(result.panels["synthesis"], PICTURES / f"synthesis_{start}.png")
