"""Synthesis by gradient ascent
============================

From noise: units of a layer on one sheet, and a class by spectrum and by pixels.
"""

from pathlib import Path

import sightline as sl

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"

model = sl.load()
units = sl.synthesis(model, layer="middle", units="0-8", size=64, steps=40)
sl.write(units.panels["synthesis"], PICTURES / "synthesis_sheet.png")
for start in ("fourier", "gray"):
    result = sl.synthesis(model, sl.logit("golf ball"), start=start, size=128)
    sl.write(result.panels["synthesis"], PICTURES / f"synthesis_{start}.png")
