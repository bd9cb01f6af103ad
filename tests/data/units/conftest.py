"""A scan of a network whose units are dead, alike, constant, and of another scale."""

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from helpers import LABELS
from torch import nn

import sightline as sl


def make_odd_network() -> nn.Sequential:
    """Six filters, of which 2 is dead, 4 is 1 and a bit of noise, and 5 is constant; then ten."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(3, 6, 3, stride=(2, 1), padding=1),
        relu1=nn.ReLU(),
        conv2=nn.Conv2d(6, 10, 3, stride=(2, 3), padding=(1, 0)),
        relu2=nn.ReLU(),
        gap=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        fc=nn.Linear(10, len(LABELS)),
    )
    network = nn.Sequential(layers)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
        weight = network.get_parameter("conv1.weight")
        bias = network.get_parameter("conv1.bias")
        bias[2] = -100.0
        weight[4] = weight[1] * 3 + 0.02 * weight[0]
        weight[5] = 0.0
        bias[5] = 0.75
    return network


@pytest.fixture(scope="session")
def odd_model() -> sl.Model:
    """The network of `make_odd_network`."""
    return sl.load(
        make_odd_network(), mean=(0.5, 0.4, 0.6), std=(0.25, 0.2, 0.3), labels=LABELS, size=32
    )


@pytest.fixture(scope="session")
def odd(odd_model: sl.Model, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> sl.Scan:
    """A complete scan with it, of 43 images in two classes. Nobody may change it."""
    path = tmp_path_factory.mktemp("stores") / "odd.scan"
    layers = ("conv1", "relu1", "conv2")
    return sl.scan(odd_model, photos, store=path, batch=8, k=5, layers=layers)
