"""Trains the shipped style network.

    python training/painters.py --paintings DIR --photos DIR --loss FILE --out DIR

The paintings are files of jcjohnson's neural-style and fast-neural-style, the photographs
Imagenette's training part, the loss network SqueezeNet 1.0. Stopped at any moment, the same command
resumes. At the end the network is written to the package's assets under the styles' short names,
and the paintings with 256 pixels on the short side.
"""

import argparse
import io
from pathlib import Path

import torch
from journal import run_script
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
from sightline.images.io.library import PAINTINGS_FOLDER

# The paintings' files, and the names of their styles.
STYLE_NAMES = {
    "van_gogh_starry_night": "starry_night",
    "munch_the_scream": "scream",
    "hokusai_great_wave": "great_wave",
    "kandinsky_composition_vii": "composition_vii",
    "matisse_woman_with_a_hat": "woman_with_a_hat",
    "turner_shipwreck_of_the_minotaur": "minotaur",
}

PHOTO_SIDE = 160

PAINTING_SIDE = 256


def print_losses(step: TrainingStep) -> None:
    if step.index % 50 == 0:
        losses = {name: round(value, 3) for name, value in step.losses.items()}
        print(step.index, losses, flush=True)


def publish(network_path: Path, paintings: Path) -> None:
    """Writes network and paintings to the assets."""
    style_network = read_fixed_style_network(network_path)
    names = [STYLE_NAMES[name] for name in style_network.names]
    target = SHIPPED_STYLE_NETWORKS["painters"]
    write_fixed_style_network(style_network.network, names, target, style_network.metadata)

    PAINTINGS_FOLDER.mkdir(parents=True, exist_ok=True)
    for file, name in STYLE_NAMES.items():
        painting = read_style_image(paintings / f"{file}.jpg", PAINTING_SIDE)[0]
        pixels = painting.permute(1, 2, 0).mul(255).round().byte().numpy()
        encoded = io.BytesIO()
        Image.fromarray(pixels).save(encoded, "JPEG", quality=85)
        (PAINTINGS_FOLDER / f"{name}.jpg").write_bytes(encoded.getvalue())
    print(f"{target}: {target.stat().st_size / 1e6:.2f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--paintings", type=Path, required=True)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument(
        "--loss", type=Path, required=True, help="weights of torchvision's squeezenet1_0"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4250)
    options = parser.parse_args()
    torch.set_num_threads(1)

    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    photos = decode_photo_folder(options.photos, PHOTO_SIDE, options.out)
    paintings = tuple(options.paintings / f"{name}.jpg" for name in STYLE_NAMES)
    plan = TrainingPlan(paintings, options.out, steps=options.steps)
    loss_network = sl.load("squeezenet1_0", weights=options.loss)
    network_path = train_stylizer(plan, photos, loss_network, fabric, print_losses)
    publish(network_path, options.paintings)


if __name__ == "__main__":
    run_script(main)
