"""Gradient ascent from nothing: a class by spectrum and by pixels, a sheet of units, transparency, natural images beside it, three networks, and
a generator's code."""

import tempfile
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

import sightline as sl
from sightline.images.plotting import maps as render

ROOT = Path(__file__).parent.parent
PICTURES, DATA = ROOT / "docs" / "pictures", ROOT.parent / "shared" / "data"
NETS, VALIDATION = DATA / "nets", DATA / "imagenette" / "imagenette160-val.tar"
# The ten classes that the generator knows, by their numbers in ImageNet, and ten that it does not.
KNOWN, UNKNOWN = "0,217,482,491,497,566,569,571,574,701", "1,130,980,291,340,817,387,949,985,22"
SEEN, LARGE = ("golf ball", "church", "tench"), ("goldfish", "flamingo", "volcano")


def row(model: sl.Model, classes: tuple[str, ...], layer: str, unit: int, size: int) -> Tensor:
    """Three classes and one unit of a network, 4×3×128×128."""
    goals = (sl.logit(classes), sl.channel(layer, unit))
    made = torch.cat([sl.synthesis(model, goal, size=size).values["image"] for goal in goals])
    return F.interpolate(made, size=(128, 128), mode="bilinear", antialias=True)


def beside_nature(model: sl.Model, store: Path) -> None:
    """Classes beside their natural images, and four facets of a unit."""
    sl.scan(model, VALIDATION, store=store, layers=("middle", "logits"), k=100)
    classes = sl.synthesis(model, sl.logit(SEEN), size=128, store=store)
    sl.write(classes.panels["natural"], PICTURES / "synthesis_natural.jpg")
    facets = sl.synthesis(
        model, layer="middle", units="5,5,5,5", start="facets", size=128, store=store
    )
    sl.write(facets.panels["natural"], PICTURES / "synthesis_facets.jpg")


def painted(model: sl.Model, units: str) -> Tensor:
    """Ten classes by the generator's code."""
    return sl.synthesis(model, layer="logits", units=units, start="generator", size=96).values[
        "image"
    ]


def main() -> None:
    model = sl.load()
    sheet = sl.synthesis(model, layer="middle", units="0-8", size=64, steps=40)
    sl.write(sheet.panels["synthesis"], PICTURES / "synthesis_sheet.png")
    for start in ("fourier", "gray"):
        result = sl.synthesis(model, sl.logit("golf ball"), start=start, size=128)
        sl.write(result.panels["synthesis"], PICTURES / f"synthesis_{start}.png")
    clear = [sl.synthesis(model, sl.logit(SEEN), focus="alpha", size=128).panels["synthesis"]]
    if VALIDATION.is_file():
        with tempfile.TemporaryDirectory() as folder:
            beside_nature(model, Path(folder) / "nature.scan")
    rows = [row(model, SEEN, "middle", 5, 128)]
    if NETS.is_dir():
        squeezenet = sl.load("squeezenet1_0", weights=NETS / "squeezenet1_0.safetensors")
        mobilenet = sl.load(
            "mobilenetv2_100", weights=NETS / "mobilenetv2_100_same.safetensors", pad_type="same"
        )
        clear.append(
            sl.synthesis(mobilenet, sl.logit(LARGE), focus="alpha", size=128).panels["synthesis"]
        )
        rows += [
            row(squeezenet, LARGE, "features.9", 7, 128),
            row(mobilenet, LARGE, "blocks.4.1", 7, 160),
        ]
        sl.write(
            render.make_contact_sheet(torch.cat(rows), columns=4),
            PICTURES / "synthesis_networks.jpg",
        )
        rows = [
            painted(model, "0-9"),
            painted(squeezenet, KNOWN),
            painted(mobilenet, KNOWN),
            painted(squeezenet, UNKNOWN),
        ]
        sl.write(
            render.make_contact_sheet(torch.cat(rows), columns=10),
            PICTURES / "synthesis_generator.jpg",
        )
    sl.write(render.arrange_in_row(*clear), PICTURES / "synthesis_alpha.png")


if __name__ == "__main__":
    main()
