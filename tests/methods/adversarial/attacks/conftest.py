"""A linear and a convolutional network for the attacks, and images, neither square."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sightline as sl
from sightline.methods.adversarial.attacks.goal import AttackGoal

LINEAR_SIZE = (5, 7)
CONV_SIZE = (11, 14)


class Linear(nn.Module):
    """Four classes, separated by planes."""

    def __init__(self) -> None:
        super().__init__()
        height, width = LINEAR_SIZE
        self.head = nn.Linear(3 * height * width, 4)

    def forward(self, x: Tensor) -> Tensor:
        # Images of the networks' own size stay as they are; it is asked for squares when loaded.
        return self.head(F.adaptive_avg_pool2d(x, LINEAR_SIZE).flatten(1))


class Conv(nn.Module):
    """Two smooth convolutional layers and six classes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3, padding=1)
        self.second = nn.Conv2d(12, 16, 3, stride=2)
        self.head = nn.Linear(16 * 4, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.second(F.silu(self.first(x))))
        return self.head(F.adaptive_avg_pool2d(x, 2).flatten(1))


def make_images(count: int, size: tuple[int, int]) -> Tensor:
    """Images far from black and white, where [0, 1] limits no attack."""
    noise = torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(2))
    return 0.5 + 0.1 * noise.clamp(-2, 2)


def load_seeded(network: nn.Module, image: Tensor, spread: float) -> sl.Model:
    """The network with seeded weights; all classes are among its predictions for the images."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            weights = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(weights * spread / fan_in**0.5)
        network.head.bias -= network((image - 0.5) / 0.25).mean(0)
    size = image.shape[-2]
    return sl.load(network, mean=(0.5,) * 3, std=(0.25,) * 3, size=size, device="cpu")


@pytest.fixture(scope="session")
def linear_images() -> Tensor:
    return make_images(8, LINEAR_SIZE)


@pytest.fixture(scope="session")
def linear(linear_images: Tensor) -> sl.Model:
    return load_seeded(Linear(), linear_images, 0.6)


@pytest.fixture(scope="session")
def linear_goal(linear: sl.Model, linear_images: Tensor) -> AttackGoal:
    """To leave the predicted classes."""
    return AttackGoal(linear.logits(linear_images).argmax(1))


@pytest.fixture(scope="session")
def conv_images() -> Tensor:
    return make_images(30, CONV_SIZE)


@pytest.fixture(scope="session")
def conv(conv_images: Tensor) -> sl.Model:
    return load_seeded(Conv(), conv_images, 2.0)


@pytest.fixture(scope="session")
def conv_goal(conv: sl.Model, conv_images: Tensor) -> AttackGoal:
    """To leave the predicted classes."""
    return AttackGoal(conv.logits(conv_images).argmax(1))


@pytest.fixture(scope="session")
def conv_targets(conv: sl.Model, conv_images: Tensor) -> AttackGoal:
    """To reach the least likely classes."""
    logits = conv.logits(conv_images)
    return AttackGoal(logits.argmax(1), logits.argmin(1))
