"""Do maps find evidence that is known?

A small network learns images whose class depends on one planted patch and on nothing else.

python bench/truth.py [--images 40] [--layers]

With `--layers` the class activation maps of one layer are compared with those of several layers
(their mean, maximum, tanh-scaled maximum as Jiang 2021 has it, and product, RefineCAM), and with
those of a class's score minus that of the others (Finer-CAM, Zhang 2025).

Every image is smooth coloured noise with one 12×12 patch of stripes at a random place; the
direction of the stripes is the class. The network (3 convolutions, global average pooling) is
trained from a seed, in about ten seconds on one core. Printed for every map: the share of images on
which its maximum hits the patch (tolerance 0), and the share of its positive part inside.
"""

import argparse
import csv
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from scipy.stats import rankdata
from torch import Tensor, nn

import sightline as sl
from sightline.methods.attribution.occlusion import average_drops_per_pixel
from sightline.methods.evaluation.pointing import compute_energy_share, compute_hit_share

SIDE, PATCH, CLASSES = 48, 12, ("level", "upright", "falling", "rising")
CLEAR = 0.95  # a network right less often has not learned what is planted
METHODS = (
    "saliency", "saliency:gradient_input", "saliency:smoothgrad",
    "saliency:vargrad", "saliency:smoothgrad_squared", "saliency:integrated",
    "saliency:blur_ig", "saliency:expected", "rise", "gradcam",
    "cam:cam", "cam:gradcam++", "cam:hirescam", "cam:layercam",
    "cam:xgradcam", "cam:scorecam", "cam:eigencam", "cam:guided_gradcam",
    "segment:saliency", "segment:smoothgrad",
    "guided:gradient", "guided:deconvnet", "guided:guided",
)  # fmt: skip


def planted(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images count×3×48×48, their classes, and the top left corners of their patches count×2."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 8, 8, generator=generator)
    pictures = nn.functional.interpolate(
        coarse, size=(SIDE, SIDE), mode="bicubic", align_corners=False
    ).clamp(0, 1)
    labels = torch.randint(len(CLASSES), (count,), generator=generator)
    corners = torch.randint(SIDE - PATCH + 1, (count, 2), generator=generator)
    y, x = (
        torch.arange(PATCH)[:, None].expand(-1, PATCH),
        torch.arange(PATCH)[None].expand(PATCH, -1),
    )
    for picture, label, (top, left) in zip(
        pictures, labels.tolist(), corners.tolist(), strict=True
    ):
        stripes = ((y, x, y - x, y + x)[label] % 4 < 2).float()
        picture[:, top : top + PATCH, left : left + PATCH] = stripes
    return pictures, labels, corners


def trained(steps: int = 120) -> nn.Module:
    """The network, from its seed."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after, stride in ((3, 16, 1), (16, 24, 2), (24, 32, 1)):
        layers += [nn.Conv2d(before, after, 3, stride=stride, padding=1), nn.ReLU()]
    network = nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, len(CLASSES))
    )
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    for step in range(steps):
        images, labels, _ = planted(64, 1000 + step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(network((images - 0.5) / 0.25), labels).backward()
        optimizer.step()
    return network.eval()


def fill(folder: Path, count: int) -> None:
    """Puts images that the network has not seen into a folder, with boxes.csv."""
    images, labels, corners = planted(count, 7)
    with (folder / "boxes.csv").open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(("file", "label", "x0", "y0", "x1", "y1"))
        for number, (image, label, (top, left)) in enumerate(
            zip(images, labels.tolist(), corners.tolist(), strict=True)
        ):
            sl.write(image[None], folder / f"{number:03}.png")
            lines.writerow(
                (f"{number:03}.png", CLASSES[label], left, top, left + PATCH, top + PATCH)
            )


def occluded(model: sl.Model, image: Tensor, label: int) -> Tensor:
    """Mean drop of the score over the windows of 8 pixels, 4 apart, that cover each pixel, H×W."""
    drop = sl.occlusion(model, image, label=label, window=8, stride=4).tensors["drop"]
    places = [(y, x) for y in range(0, SIDE - 7, 4) for x in range(0, SIDE - 7, 4)]
    return average_drops_per_pixel(drop[:, None], places, 8, SIDE, SIDE).reshape(SIDE, SIDE)


def occlusion_row(model: sl.Model, count: int) -> dict[str, Any]:
    """The two measures of occlusion, whose windows are too far apart for such small images in the
    catalogue's map.
    """
    shares: list[Tensor] = []
    for image, label, (top, left) in zip(*planted(count, 7), strict=True):
        region = torch.zeros(SIDE, SIDE, dtype=torch.bool)
        region[top : top + PATCH, left : left + PATCH] = True
        map_ = occluded(model, image[None], int(label))
        shares.append(
            torch.stack([compute_hit_share(map_, region, 0), compute_energy_share(map_, region)])
        )
    pointing, inside = torch.stack(shares).mean(0).tolist()
    return {"method": "occlusion (window 8, stride 4)", "pointing": pointing, "energy": inside}


# ── class activation maps of one layer, of several, and of a difference of classes ──

CAM_LAYERS = ("1", "3", "5")  # the three ReLUs
CAM_KINDS = ("gradcam", "gradcam++", "layercam", "hirescam")
FINER_STRENGTHS = (0.6, 1.0)


def compute_auc(heatmap: Tensor, region: Tensor) -> float:
    """How likely a pixel of the region has a larger value than one outside; ties count half."""
    ranks = torch.from_numpy(rankdata(heatmap.flatten().double().numpy()))
    inside = region.flatten()
    count = int(inside.sum())
    pairs = count * (len(inside) - count)
    return float((ranks[inside].sum() - count * (count + 1) / 2) / pairs)


def measure_maps(maps: Tensor, regions: Tensor) -> tuple[float, float, float]:
    """Pointing game, energy in the patch and AUC of maps N×H×W."""
    pairs = list(zip(maps, regions, strict=True))
    hits = torch.stack([compute_hit_share(heatmap, region, 0) for heatmap, region in pairs])
    energies = torch.stack([compute_energy_share(heatmap, region) for heatmap, region in pairs])
    areas = [compute_auc(heatmap, region) for heatmap, region in pairs]
    return float(hits.mean()), float(energies.mean()), sum(areas) / len(areas)


def score_difference(label: int, strength: float) -> Callable[[Tensor], Tensor]:
    """Finer-CAM's question: the class's score minus a share of the other classes' mean."""

    def compute(scores: Tensor) -> Tensor:
        others = (scores.sum(1) - scores[:, label]) / (scores.shape[1] - 1)
        return scores[:, label] - strength * others

    return compute


def compute_cam_variants(model: sl.Model, kind: Any, count: int) -> dict[str, Tensor]:
    """Maps N×H×W of the planted images, by what was asked."""
    images, labels, _ = planted(count, 7)
    variants: dict[str, list[Tensor]] = {}
    for image, label in zip(images, labels.tolist(), strict=True):
        options: Any = {"kind": kind, "layers": CAM_LAYERS}
        result = sl.cam(model, image[None], label=label, **options)
        by_layer = result.tensors["by_layer"][0]
        scaled = by_layer / by_layer.amax((1, 2), keepdim=True).clamp_min(1e-30)
        maps = {f"layer {name}": by_layer[i] for i, name in enumerate(CAM_LAYERS)}
        maps["mean"] = result.tensors["map"][0]
        maps["maximum"] = scaled.amax(0)
        shallow = (2 * scaled[:-1]).tanh()
        maps["maximum, shallow layers by tanh"] = torch.cat([shallow, scaled[-1:]]).amax(0)
        product = sl.cam(model, image[None], label=label, fusion="product", **options)
        maps["product (RefineCAM)"] = product.tensors["map"][0]
        for strength in FINER_STRENGTHS:
            question = score_difference(label, strength)
            finer = sl.cam(model, image[None], target=question, kind=kind, layer=CAM_LAYERS[-1])
            name = f"layer {CAM_LAYERS[-1]}, minus {strength:g} × the other classes (Finer-CAM)"
            maps[name] = finer.tensors["map"][0]
        for name, heatmap in maps.items():
            variants.setdefault(name, []).append(heatmap)
    return {name: torch.stack(maps) for name, maps in variants.items()}


def compare_cams(model: sl.Model, count: int) -> None:
    """Prints the table of `--layers`."""
    regions = torch.zeros(count, SIDE, SIDE, dtype=torch.bool)
    for region, (top, left) in zip(regions, planted(count, 7)[2].tolist(), strict=True):
        region[top : top + PATCH, left : left + PATCH] = True
    print("\n| kind | of | pointing game | energy in the patch | AUC |\n|---|---|---|---|---|")
    for kind in CAM_KINDS:
        for name, maps in compute_cam_variants(model, kind, count).items():
            hits, energy, area = measure_maps(maps, regions)
            print(f"| {kind} | {name} | {hits:.1%} | {energy:.1%} | {area:.4f} |")


def main() -> None:
    """Trains, plays, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--layers", action="store_true")
    arguments = parser.parse_args()
    count = arguments.images
    torch.set_num_threads(1)
    began = time.process_time()
    network = trained()
    images, labels, _ = planted(500, 99)
    model = sl.load(network, mean=(0.5,) * 3, std=(0.25,) * 3, labels=CLASSES, size=SIDE)
    right = float((model.logits(images).argmax(1) == labels).float().mean())
    print(
        f"network ready after {time.process_time() - began:.0f} s of processor time; right on "
        f"{right:.1%} of 500 new images"
    )
    if right < CLEAR:
        raise SystemExit("the network has not learned the planted evidence")
    if arguments.layers:
        compare_cams(model, count)
        return
    with tempfile.TemporaryDirectory() as folder:
        fill(Path(folder), count)
        table: Any = sl.pointing(model, folder=folder, methods=METHODS, tolerance=0).values["table"]
    rows = [*table[:-2], occlusion_row(model, count), *table[-2:]]
    print("\n| map | pointing game | energy in the patch |\n|---|---|---|")
    for one in rows:
        print(f"| {one['method']} | {one['pointing']:.0%} | {one['energy']:.0%} |")
    print(f"\n{time.process_time() - began:.0f} s of processor time in all")


if __name__ == "__main__":
    main()
