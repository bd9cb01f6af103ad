"""Gradient ascent from nothing to a class, by a spectrum and by regularized pixels."""

from pathlib import Path

import sightline as sl

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"

model = sl.load()
sheet = sl.synthesis(model, layer="middle", units="0-8", size=64, steps=40)
sl.write(sheet.panels["synthesis"], PICTURES / "synthesis_sheet.png")
for start in ("fourier", "gray"):
    result = sl.synthesis(model, sl.logit("golf ball"), start=start, size=192)
    sl.write(result.panels["synthesis"], PICTURES / f"synthesis_{start}.png")
