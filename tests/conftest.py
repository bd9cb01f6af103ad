"""What the tests share: the pictures and networks of the data folder where there is one, and a network and an image small enough for any test."""

import os
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sightline as sl

# On tensors as small as the tests', two threads wait for each other longer than they work.
torch.set_num_threads(1)

LABELS = ("ant", "bee", "cat", "dog", "elk")


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of test pictures, textures and network weights."""
    folder = Path(os.environ.get("SIGHTLINE_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no test data in {folder}; SIGHTLINE_DATA names another folder")
    return folder


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache for each test process: two that scan the same images into one store refuse each other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


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
    return nn.functional.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=False).clamp(0, 1)


@pytest.fixture(scope="session")
def tiny() -> sl.Model:
    """A small network as a Model."""
    return sl.load(small_network(), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), labels=LABELS, size=32)


@pytest.fixture(scope="session")
def photo() -> Tensor:
    """A smooth random image, 1×3×32×32. Nobody may change it."""
    return smooth()
