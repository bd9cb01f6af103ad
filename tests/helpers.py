"""Networks and images that the tests share, small enough for any test."""

import os
from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn

import sightline as sl

ROOT = Path(__file__).parents[1]
# Pictures, textures and network weights that tests use where they are there.
DATA = Path(os.environ.get("SIGHTLINE_DATA") or ROOT.parent / "shared" / "data")
LABELS = ("ant", "bee", "cat", "dog", "elk")
COUNT = 44  # files in the folder of `folder_of`, one of them broken


def small_network() -> nn.Sequential:
    """Three convolutions with ReLU (one in place), two poolings, five classes; its answers to different images differ."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(3, 8, 3, padding=1),
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(8, 12, 3, padding=1),
        relu2=nn.ReLU(inplace=True),
        pool2=nn.MaxPool2d(2),
        conv3=nn.Conv2d(12, 16, 3, padding=1),
        relu3=nn.ReLU(),
        gap=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        fc=nn.Linear(16, len(LABELS)),
    )
    network, generator = nn.Sequential(layers), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            spread = (2 / parameter[0].numel()) ** 0.5 if parameter.ndim > 1 else 0.1
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
        network.get_submodule("fc").weight *= 4  # type: ignore[operator]
    return network


def smooth(count: int = 1, side: int = 32, seed: int = 0) -> Tensor:
    """Random colours that change slowly: count×3×side×side."""
    coarse = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(
        coarse, size=(side, side), mode="bicubic", align_corners=False
    ).clamp(0, 1)


def folder_of(root: Path, count: int = COUNT) -> Path:
    """Small JPEG files in two folders, one of them broken."""
    pictures = smooth(count, side=40)
    for number in range(count):
        place = root / ("even" if number % 2 == 0 else "odd") / f"{number:03}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        sl.write(pictures[number], place)
    (root / "even" / "004.jpg").write_bytes(b"This is no photograph.\n")
    return root
