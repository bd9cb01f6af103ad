"""Inversion by depth: what each layer still knows of a photograph, by descent and by the generator."""

from pathlib import Path
from tempfile import TemporaryDirectory

import sightline as sl

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"

model = sl.load()
photo = model.fit(sl.sample("chelsea"), 128)
result = sl.inversion(model, photo, k=6, steps=200)
sl.write(result.panels["inversion"], PICTURES / "inversion.png")
sl.write(result.panels["depth"], PICTURES / "inversion_depth.png")
learned = sl.inversion(model, photo, kind="learned")
sl.write(learned.panels["inversion"], PICTURES / "inversion_learned.png")

# From the vectors alone that a scan keeps: the photograph stands beside, and is not used.
with TemporaryDirectory() as folder:
    sl.write(photo, Path(folder) / "chelsea.png")
    kept = sl.scan(
        model,
        folder,
        store=Path(folder) / "kept.scan",
        layers=["relu1"],
        vectors=("relu2_2", "relu3_2", "penultimate"),
        size=128,
    )
    stored = sl.inversion(model, photo, store=kept.path, kind="fourier", steps=100)
sl.write(stored.panels["inversion"], PICTURES / "inversion_store.png")
