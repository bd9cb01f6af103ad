"""Makes the folder of style images that the decoder for any style was trained on: `python training/manners.py --paintings DIR --photos DIR --out DIR`.

Five paintings and scikit-image's pictures cut at several scales, photographs, and photographs restyled by the network that comes
with Sightline, half of them all with turned hues: few paintings, so what they lack in number is made up by variation. The sixth
painting, Matisse's, is left out, also of the blends: it shows what the decoder makes of a painting it has not seen.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import sightline as sl
from sightline.generators.apply import restyle_images
from sightline.generators.checkpoint import read_fixed_style_network
from sightline.images import io as images

SIDE, EACH = 160, 400
UNSEEN = "matisse_woman_with_a_hat"
SAMPLES = ("brick", "grass", "gravel", "hubble_deep_field", "ihc", "retina", "coffee", "rocket")


def cut(picture: Tensor, rng: np.random.Generator) -> Tensor:
    """A square of a picture of which the short side was brought to once, or up to three times, that."""
    scaled = images.resize_short_side(
        picture, round(SIDE * rng.uniform(1, min(3.0, max(1.0, min(picture.shape[-2:]) / SIDE))))
    )
    y, x = (int(rng.integers(0, side - SIDE + 1)) for side in scaled.shape[-2:])
    return scaled[..., y : y + SIDE, x : x + SIDE]


def turned(picture: Tensor, rng: np.random.Generator) -> Tensor:
    """Half of the time the hues turned about the gray axis by any angle, and now and then light and dark exchanged."""
    if rng.random() < 0.5:
        return picture
    angle, third = rng.uniform(0, 2 * np.pi), 1 / 3
    one, two = np.cos(angle) * 2 * third, np.sin(angle) / np.sqrt(3)
    side, other = third - one / 2 - two, third - one / 2 + two
    rows = torch.tensor(
        [[third + one, side, other], [other, third + one, side], [side, other, third + one]],
        dtype=torch.float32,
    )
    picture = torch.einsum("rc,nchw->nrhw", rows, picture).clamp(0, 1)
    return 1 - picture if rng.random() < 0.2 else picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--paintings", type=Path, required=True)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rng, painters = np.random.default_rng(0), read_fixed_style_network("painters")
    names = [name for name in painters.names if name != "woman_with_a_hat"]
    paintings = [
        sl.read(path) for path in sorted(asked.paintings.glob("*.jpg")) if path.stem != UNSEEN
    ]
    others = [sl.sample(name) for name in SAMPLES]
    photos = sorted(
        path for path in asked.photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg")
    )
    for index in range(EACH):
        photo, subject = (sl.read(photos[int(rng.integers(len(photos)))]) for _ in range(2))
        blend = dict(
            zip(
                rng.choice(names, 2, replace=False).tolist(),
                rng.dirichlet([1, 1]).tolist(),
                strict=True,
            )
        )
        made = {
            "painting": paintings[index % len(paintings)],
            "painted": restyle_images(painters, cut(subject, rng), painters.make_mix(blend)),
            "photo": photo,
            "sample": others[index % len(others)],
        }
        for kind, picture in made.items():
            if kind != "sample" or index % 4 == 0:
                images.write(turned(cut(picture, rng), rng), asked.out / f"{kind}_{index:03}.png")


if __name__ == "__main__":
    main()
