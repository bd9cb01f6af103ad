"""Synthesis by other networks
===========================

Three networks, the code of a generator, natural images beside the synthesized ones, transparency.

The embedded network is `sightnet_plain`, whose classes the generator was trained on.

Needs the data folder (SIGHTLINE_DATA, or ../shared/data beside the project); without it only the
embedded network's classes with transparency are made.
"""

import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

import sightline as sl
from sightline.images.plotting import maps as render

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "docs" / "pictures"
DATA = Path(os.environ.get("SIGHTLINE_DATA") or ROOT.parent / "shared" / "data")
NETWORKS = DATA / "nets"
VALIDATION = DATA / "imagenette" / "imagenette160-val.tar"

# ImageNet's numbers of the ten classes that the generator was trained on, and of ten others.
TRAINED_CLASSES = "0,217,482,491,497,566,569,571,574,701"
OTHER_CLASSES = "1,130,980,291,340,817,387,949,985,22"
SMALL_NETWORK_LABELS = ("golf ball", "church", "tench")
IMAGENET_LABELS = ("goldfish", "flamingo", "volcano")


def synthesize_row(
    model: sl.Model, labels: tuple[str, ...], layer: str, unit: int, size: int
) -> Tensor:
    """Three classes and one unit of a network, 4×3×128×128."""
    objectives = (sl.logit(labels), sl.channel(layer, unit))
    images = [sl.synthesis(model, objective, size=size).values["image"] for objective in objectives]
    return F.interpolate(torch.cat(images), size=(128, 128), mode="bilinear", antialias=True)


def synthesize_transparent(model: sl.Model, labels: tuple[str, ...]) -> Tensor:
    """Classes with transparency, as one panel."""
    result = sl.synthesis(model, sl.logit(labels), focus="alpha", size=128)
    return result.panels["synthesis"]


def synthesize_by_generator(model: sl.Model, units: str) -> Tensor:
    """Ten classes by the code of the generator."""
    result = sl.synthesis(model, layer="logits", units=units, start="generator", size=96)
    return result.values["image"]


def write_natural_images(model: sl.Model, store: Path) -> None:
    """Classes beside their strongest natural images, and four facets of a unit."""
    sl.scan(model, VALIDATION, store=store, layers=("middle", "logits"), k=100)
    classes = sl.synthesis(model, sl.logit(SMALL_NETWORK_LABELS), size=128, store=store)
    sl.write(classes.panels["natural"], PICTURES / "synthesis_natural.jpg")
    facets = sl.synthesis(
        model, layer="middle", units="5,5,5,5", start="facets", size=128, store=store
    )
    sl.write(facets.panels["natural"], PICTURES / "synthesis_facets.jpg")


def write_networks(model: sl.Model, squeezenet: sl.Model, mobilenet: sl.Model) -> None:
    """The same questions to three networks."""
    rows = [
        synthesize_row(model, SMALL_NETWORK_LABELS, "middle", 5, 128),
        synthesize_row(squeezenet, IMAGENET_LABELS, "features.9", 7, 128),
        synthesize_row(mobilenet, IMAGENET_LABELS, "blocks.4.1", 7, 160),
    ]
    sheet = render.make_contact_sheet(torch.cat(rows), columns=4)
    sl.write(sheet, PICTURES / "synthesis_networks.jpg")

    rows = [
        synthesize_by_generator(model, "0-9"),
        synthesize_by_generator(squeezenet, TRAINED_CLASSES),
        synthesize_by_generator(mobilenet, TRAINED_CLASSES),
        synthesize_by_generator(squeezenet, OTHER_CLASSES),
    ]
    sheet = render.make_contact_sheet(torch.cat(rows), columns=10)
    sl.write(sheet, PICTURES / "synthesis_generator.jpg")


def main() -> None:
    model = sl.load("sightnet_plain")
    transparent = [synthesize_transparent(model, SMALL_NETWORK_LABELS)]
    if VALIDATION.is_file():
        with tempfile.TemporaryDirectory() as folder:
            write_natural_images(model, Path(folder) / "nature.scan")
    if NETWORKS.is_dir():
        squeezenet = sl.load("squeezenet1_0", weights=NETWORKS / "squeezenet1_0.safetensors")
        weights = NETWORKS / "mobilenetv2_100_same.safetensors"
        mobilenet = sl.load("mobilenetv2_100", weights=weights, pad_type="same")
        transparent.append(synthesize_transparent(mobilenet, IMAGENET_LABELS))
        write_networks(model, squeezenet, mobilenet)
    sl.write(render.arrange_in_row(*transparent), PICTURES / "synthesis_alpha.png")


if __name__ == "__main__":
    main()
