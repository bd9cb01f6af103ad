"""What the tests of scans and stores share: photographs and maps that are not square."""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import LABELS, smooth
from torch import nn

import sightline as sl

PHOTO_COUNT = 44  # of `write_photos`, one of them broken


@pytest.fixture(scope="session")
def write_photos() -> Callable[..., Path]:
    """Writes JPEG files of 40×56 pixels in two folders, one of them broken."""

    def write(root: Path, count: int = PHOTO_COUNT) -> Path:
        photos = smooth(count, side=56)[:, :, :40]
        for number, photo in enumerate(photos):
            folder = root / ("even" if number % 2 == 0 else "odd")
            folder.mkdir(parents=True, exist_ok=True)
            sl.write(photo, folder / f"{number:03}.jpg")
        (root / "even" / "004.jpg").write_bytes(b"This is no photograph.\n")
        return root

    return write


@pytest.fixture(scope="session")
def photos(write_photos: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of photographs. Nobody may change it."""
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="session")
def wide() -> sl.Model:
    """A network whose maps are not square: 16 rows × 32 columns, then 8 × 10."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(3, 6, 3, stride=(2, 1), padding=1),
        relu1=nn.ReLU(),
        conv2=nn.Conv2d(6, 10, 3, stride=(2, 3), padding=(1, 0)),
        relu2=nn.ReLU(inplace=True),
        gap=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        fc=nn.Linear(10, len(LABELS)),
    )
    network = nn.Sequential(layers)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return sl.load(network, mean=(0.5, 0.4, 0.6), std=(0.25, 0.2, 0.3), labels=LABELS, size=32)
