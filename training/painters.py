"""Trains the style network that comes with Sightline: `python training/painters.py --paintings DIR --photos DIR --loss FILE --out DIR`.

The paintings' files are those of jcjohnson's neural-style and fast-neural-style; the photographs Imagenette's training part,
the loss network SqueezeNet 1.0. Stopped at any moment, the same command goes on. At the end the network is written to the
package's assets under the styles' short names, and so are the paintings, with 256 pixels on the short side.
"""

import argparse
import io
from pathlib import Path

import torch
from lightning_fabric import Fabric
from PIL import Image

import sightline as sl
from sightline.generators.checkpoint import (
    SHIPPED_STYLE_NETWORKS,
    read_fixed_style_network,
    write_fixed_style_network,
)
from sightline.generators.training.dataset import decode_photo_folder
from sightline.generators.training.fixed_styles import TrainingPlan, read_style_image
from sightline.generators.training.train import TrainingStep, train_stylizer
from sightline.images.library import PAINTINGS_FOLDER

NAMES = {
    "van_gogh_starry_night": "starry_night",
    "munch_the_scream": "scream",
    "hokusai_great_wave": "great_wave",
    "kandinsky_composition_vii": "composition_vii",
    "matisse_woman_with_a_hat": "woman_with_a_hat",
    "turner_shipwreck_of_the_minotaur": "minotaur",
}


def shown(step: TrainingStep) -> None:
    if step.index % 50 == 0:
        print(
            step.index, {name: round(value, 3) for name, value in step.losses.items()}, flush=True
        )


def publish(made: Path, paintings: Path) -> None:
    """Writes network and paintings to the assets."""
    found = read_fixed_style_network(made)
    write_fixed_style_network(
        found.network,
        [NAMES[name] for name in found.names],
        SHIPPED_STYLE_NETWORKS["painters"],
        found.metadata,
    )
    PAINTINGS_FOLDER.mkdir(parents=True, exist_ok=True)
    for file, name in NAMES.items():
        pixels = (
            read_style_image(paintings / f"{file}.jpg", 256)[0]
            .permute(1, 2, 0)
            .mul(255)
            .round()
            .byte()
            .numpy()
        )
        encoded = io.BytesIO()
        Image.fromarray(pixels).save(encoded, "JPEG", quality=85)
        (PAINTINGS_FOLDER / f"{name}.jpg").write_bytes(encoded.getvalue())
    print(
        f"{SHIPPED_STYLE_NETWORKS['painters']}: {SHIPPED_STYLE_NETWORKS['painters'].stat().st_size / 1e6:.2f} MB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--paintings", type=Path, required=True)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument(
        "--loss", type=Path, required=True, help="weights of torchvision's squeezenet1_0"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4250)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    photos = decode_photo_folder(asked.photos, 160, asked.out)
    plan = TrainingPlan(
        tuple(asked.paintings / f"{name}.jpg" for name in NAMES), asked.out, steps=asked.steps
    )
    publish(
        train_stylizer(plan, photos, sl.load("squeezenet1_0", weights=asked.loss), fabric, shown),
        asked.paintings,
    )


if __name__ == "__main__":
    main()
