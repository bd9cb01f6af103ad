"""Inversion of features
=====================

Inversion by depth: what each layer retains of a photograph, by descent and by a generator.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import sightline as sl

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"

model = sl.load()
photo = model.fit(sl.sample("chelsea"), 128)
result = sl.inversion(model, photo, k=6, steps=200)
sl.write(result.panels["inversion"], PICTURES / "inversion.png")
sl.write(result.panels["depth"], PICTURES / "inversion_depth.png")
learned = sl.inversion(sl.load("sightnet_plain"), photo, kind="learned")
sl.write(learned.panels["inversion"], PICTURES / "inversion_learned.png")

# From the vectors that a scan stores. The photograph is shown beside the result, not used.
with TemporaryDirectory() as folder:
    sl.write(photo, Path(folder) / "chelsea.png")
    scan = sl.scan(
        model,
        folder,
        store=Path(folder) / "photos.scan",
        layers=["relu1"],
        vectors=("relu2_2", "relu3_2", "penultimate"),
        size=128,
    )
    stored = sl.inversion(model, photo, store=scan.path, kind="fourier", steps=100)
sl.write(stored.panels["inversion"], PICTURES / "inversion_store.png")
