"""Inversion by depth: what each layer still knows of a photograph, by descent and by the generator."""

from pathlib import Path

import sightline as sl

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"

model = sl.load()
photo = model.fit(sl.sample("chelsea"), 128)
result = sl.inversion(model, photo, k=6, steps=200)
sl.write(result.panels["inversion"], PICTURES / "inversion.png")
sl.write(result.panels["depth"], PICTURES / "inversion_depth.png")
learned = sl.inversion(model, photo, layer="relu4_2", kind="learned")
sl.write(learned.panels["inversion"], PICTURES / "inversion_learned.png")
