"""Networks and images that the tests share, small enough for any test."""

import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sightline as sl
from sightline.models.model import Model
from sightline.models.zoo.builders import find_network_builder

ROOT = Path(__file__).parents[1]
# Pictures, textures and network weights that tests use where they are there.
DATA = Path(os.environ.get("SIGHTLINE_DATA") or ROOT.parent / "shared" / "data")
LABELS = ("ant", "bee", "cat", "dog", "elk")
COUNT = 44  # files in the folder of `folder_of`, one of them broken

IS_PORTABLE = os.environ.get("SIGHTLINE_PORTABLE") == "1"
# Of tests about torch's fast operations themselves.
needs_fast_operations = pytest.mark.skipif(
    IS_PORTABLE, reason="SIGHTLINE_PORTABLE=1 turns the fast operations off that this test is about"
)
needs_onednn = pytest.mark.skipif(
    IS_PORTABLE or not torch.backends.mkldnn.is_available(),
    reason="torch is built without oneDNN, or SIGHTLINE_PORTABLE=1 turns its operations off",
)


def small_network() -> nn.Sequential:
    """Three convolutions with ReLU (one in place), two poolings, five classes; its answers to
    different images differ.
    """
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


# ── of the objectives ──

OBJECTIVE_LABELS = ("goose", "tabby cat", "tiger cat", "crane (bird), heron", "it's a dog")


class ObjectiveNet(nn.Module):
    """Two convolutions and two linear layers, without modules for its activations."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 6, 3, stride=2)
        self.hidden = nn.Linear(6, 8)
        self.head = nn.Linear(8, len(OBJECTIVE_LABELS))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.conv2(torch.relu(self.conv1(x))))
        return self.head(torch.relu(self.hidden(x.mean((2, 3)))))


# ── of what replaces operations ──


def make_input(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def assert_close(output: Tensor, expected: Tensor) -> None:
    """Equal but for rounding."""
    assert output.shape == expected.shape
    scale = max(1e-3, float(expected.abs().max()))
    assert float((output - expected).abs().max()) <= 1e-5 * scale


def differentiate_twice(
    function: Callable[[Tensor], Tensor], x: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """A function's output, the gradient of a curved score, and that of the gradient's norm."""
    leaf = x.clone().requires_grad_()
    output = function(leaf)
    (gradient,) = torch.autograd.grad(output.square().sum(), leaf, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), leaf)
    return output.detach(), gradient.detach(), second


def load_without_weights(name: str) -> Model:
    """A network by name on the device meta: its shapes and layers, without the cost of weights."""
    with torch.device("meta"):
        built = find_network_builder(name)(name, "random", {})
        settings: dict[str, Any] = {**built.settings}
        return Model(built.network, name=name, device="meta", **settings)
