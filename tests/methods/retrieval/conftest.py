"""A scan of fourteen images of two classes."""

from pathlib import Path

import pytest
import torch
from helpers import LABELS, smooth
from torch import Tensor

import sightline as sl
from sightline.data.store.reader import Scan

IMAGE_COUNT = 14


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of 36×40 pixels, in turn in two folders."""
    root = tmp_path_factory.mktemp("photos")
    for number in range(IMAGE_COUNT):
        path = root / LABELS[number % 2] / f"{number:02}.png"
        path.parent.mkdir(exist_ok=True)
        sl.write(smooth(seed=number, side=40)[:, :, :36], path)
    return root


@pytest.fixture(scope="package")
def stored(tiny: sl.Model, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Scan:
    """The scan of these images by the small network."""
    return sl.scan(tiny, folder, store=tmp_path_factory.mktemp("stores") / "tiny.scan")


@pytest.fixture
def stored_images(stored: Scan) -> Tensor:
    """All images as the network saw them, 14×3×32×32."""
    return torch.cat([stored.image(image_id) for image_id in range(stored.images)])


@pytest.fixture
def photos() -> Tensor:
    """Two images that are not in the scan, 2×3×32×40."""
    return torch.cat([smooth(seed=seed, side=40)[:, :, 4:36] for seed in (50, 51)])
