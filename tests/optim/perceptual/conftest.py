"""Networks whose layers see beyond a tile, and images of any size."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from helpers import small_network
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import squeezenet1_0, vgg11

import sightline as sl


@dataclass(frozen=True)
class NetworkCase:
    """A network, and the layers that style and content are read from."""

    model: sl.Model
    style: tuple[str, ...]
    content: tuple[str, ...]


def load_random(build: Callable[[], nn.Module], size: int) -> sl.Model:
    """A network with random weights that are the same in every run."""
    state = torch.get_rng_state()
    torch.manual_seed(0)
    network = build()
    torch.set_rng_state(state)
    return sl.load(network, mean=(0.5,) * 3, std=(0.25,) * 3, size=size)


# SqueezeNet has pooling with ceil_mode, strides without padding and a layer of odd stride.
NETWORK_CASES: dict[str, Callable[[], NetworkCase]] = {
    "small": lambda: NetworkCase(
        load_random(small_network, 32), ("relu1", "relu2", "relu3"), ("relu2",)
    ),
    "squeezenet": lambda: NetworkCase(
        load_random(lambda: squeezenet1_0(num_classes=4), 64),
        ("features.1", "features.3", "features.7"),
        ("features.4",),
    ),
    "vgg11": lambda: NetworkCase(
        load_random(lambda: vgg11(num_classes=4), 64),
        ("features.1", "features.4", "features.9"),
        ("features.12",),
    ),
}


@pytest.fixture(scope="session", params=NETWORK_CASES)
def case(request: pytest.FixtureRequest) -> NetworkCase:
    return NETWORK_CASES[request.param]()


@pytest.fixture(scope="session")
def make_picture() -> Callable[..., Tensor]:
    """Makes smooth colours with grain, 1×3×height×width, of a height, a width and a seed.

    In a flat patch, rounding would decide which of equal values a max pooling takes.
    """

    def make(height: int, width: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.rand(1, 3, 12, 14, generator=generator)
        smooth_colors = F.interpolate(coarse, size=(height, width), mode="bilinear")
        grain = torch.rand(1, 3, height, width, generator=generator)
        return 0.8 * smooth_colors + 0.2 * grain

    return make
