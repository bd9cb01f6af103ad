"""Makes the style images that the decoder for any style is trained on.

    python training/manners.py --paintings DIR --photos DIR --out DIR

The images are five paintings and scikit-image's pictures cut at several scales, photographs, and
photographs restyled by the shipped network; half of all have turned hues. There are few paintings,
so variation makes up for their number. The sixth painting, Matisse's, is left out, also of the
blends: it shows what the decoder makes of a painting it has not seen.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import sightline as sl
from sightline.generators.apply import restyle_images
from sightline.generators.checkpoint import read_fixed_style_network
from sightline.images.io import pictures as images
from sightline.images.transforms import resize_short_side

SIDE = 160

IMAGES_PER_KIND = 400

# Only one in so many rounds writes a sample: there are few of them.
SAMPLE_PERIOD = 4

UNSEEN_PAINTING = "matisse_woman_with_a_hat"
UNSEEN_STYLE = "woman_with_a_hat"

SAMPLES = ("brick", "grass", "gravel", "hubble_deep_field", "ihc", "retina", "coffee", "rocket")


def cut_square(picture: Tensor, rng: np.random.Generator) -> Tensor:
    """A random square of a picture whose short side was resized to one to three times that.

    Pictures are not enlarged for it.
    """
    largest_scale = min(3.0, max(1.0, min(picture.shape[-2:]) / SIDE))
    scaled = resize_short_side(picture, round(SIDE * rng.uniform(1, largest_scale)))
    height, width = scaled.shape[-2:]
    y = int(rng.integers(0, height - SIDE + 1))
    x = int(rng.integers(0, width - SIDE + 1))
    return scaled[..., y : y + SIDE, x : x + SIDE]


def turn_hues(picture: Tensor, rng: np.random.Generator) -> Tensor:
    """Half of the time turns the hues by a random angle, and sometimes exchanges light and dark."""
    if rng.random() < 0.5:
        return picture
    # Rotation of colours about the gray axis (1, 1, 1), by Rodrigues' formula.
    angle = rng.uniform(0, 2 * np.pi)
    diagonal = 1 / 3 + 2 / 3 * np.cos(angle)
    mean = 1 / 3 - np.cos(angle) / 3
    twist = np.sin(angle) / np.sqrt(3)
    rotation = torch.tensor(
        [
            [diagonal, mean - twist, mean + twist],
            [mean + twist, diagonal, mean - twist],
            [mean - twist, mean + twist, diagonal],
        ],
        dtype=torch.float32,
    )
    picture = torch.einsum("rc,nchw->nrhw", rotation, picture).clamp(0, 1)
    if rng.random() < 0.2:
        picture = 1 - picture
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--paintings", type=Path, required=True)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)

    painters = read_fixed_style_network("painters")
    style_names = [name for name in painters.names if name != UNSEEN_STYLE]
    painting_paths = sorted(options.paintings.glob("*.jpg"))
    paintings = [sl.read(path) for path in painting_paths if path.stem != UNSEEN_PAINTING]
    samples = [sl.sample(name) for name in SAMPLES]
    photo_paths = sorted(
        path for path in options.photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg")
    )

    for index in range(IMAGES_PER_KIND):
        photo, subject = (
            sl.read(photo_paths[int(rng.integers(len(photo_paths)))]) for _ in range(2)
        )
        blend_names = rng.choice(style_names, 2, replace=False).tolist()
        blend_weights = rng.dirichlet([1, 1]).tolist()
        mix = painters.make_mix(dict(zip(blend_names, blend_weights, strict=True)))
        pictures = {
            "painting": paintings[index % len(paintings)],
            "painted": restyle_images(painters, cut_square(subject, rng), mix),
            "photo": photo,
            "sample": samples[index % len(samples)],
        }
        for kind, picture in pictures.items():
            if kind == "sample" and index % SAMPLE_PERIOD:
                continue
            style_image = turn_hues(cut_square(picture, rng), rng)
            images.write(style_image, options.out / f"{kind}_{index:03}.png")


if __name__ == "__main__":
    main()
