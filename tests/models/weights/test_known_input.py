"""A network that is fed something else than its known weights were trained on is refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import small_network
from torch import Tensor, nn

import sightline as sl
from sightline.errors import SightlineError
from sightline.models.weights.known_input import measure_color_transform
from sightline.models.weights.published import KNOWN_PUBLISHED_WEIGHTS, PublishedWeights

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CAFFE = {"mean": (123.68 / 255, 116.779 / 255, 103.939 / 255), "std": (1 / 255,) * 3}
RAW = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255,) * 3}
CAFFE_VGG16, TORCHVISION_VGG16 = KNOWN_PUBLISHED_WEIGHTS[1], KNOWN_PUBLISHED_WEIGHTS[2]


class Preprocessing(nn.Module):
    """Preprocessing as people write it into their network."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, image: Tensor) -> Tensor:
        return self.function(image)


FLIP = Preprocessing(lambda x: x.flip(1))
CAFFE_MEAN_BGR = torch.tensor([104.0, 117, 124]).view(3, 1, 1)


def make_network(
    published: PublishedWeights, *before: nn.Module, flipped: bool = False
) -> nn.Sequential:
    """A first convolution with published filters, what stands before it, and five classes."""
    network = nn.Sequential(
        *before,
        nn.Conv2d(3, 64, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 5),
    )
    weight = torch.randn(64, 3, 3, 3, generator=torch.Generator().manual_seed(0)) / 5
    weight[published.filter_index] = published.parse_filter() * 3e-4
    network[len(before)].weight.data = weight.flip(1) if flipped else weight
    return network


@pytest.mark.parametrize(
    ("network", "settings"),
    [
        pytest.param(make_network(TORCHVISION_VGG16), IMAGENET, id="torchvision"),
        pytest.param(
            make_network(TORCHVISION_VGG16),
            {"mean": (0.449,) * 3, "std": (0.226,) * 3},
            id="one deviation",
        ),
        pytest.param(make_network(CAFFE_VGG16, flipped=True), CAFFE, id="flipped"),
        pytest.param(
            make_network(CAFFE_VGG16, flipped=True),
            {"mean": (0.5,) * 3, "std": (1 / 256,) * 3},
            id="about",
        ),
        pytest.param(make_network(CAFFE_VGG16, FLIP), CAFFE, id="flipped within"),
        pytest.param(
            make_network(CAFFE_VGG16, Preprocessing(lambda x: x.flip(1) * 255 - CAFFE_MEAN_BGR)),
            {"mean": (0,) * 3, "std": (1,) * 3},
            id="all within",
        ),
        # What this is fed does not show in its response to plain colors.
        pytest.param(
            make_network(CAFFE_VGG16, nn.InstanceNorm2d(3)), IMAGENET, id="normalized by the image"
        ),
        pytest.param(small_network(), RAW, id="unknown"),
    ],
)
def test_what_fits_is_accepted(network: nn.Module, settings: dict[str, Any]) -> None:
    model = sl.load(network, size=32, **settings)
    assert model.probabilities(torch.rand(2, 3, 32, 40)).shape == (2, 5)


@pytest.mark.parametrize(
    ("network", "settings", "expected", "actual"),
    [
        pytest.param(
            make_network(TORCHVISION_VGG16),
            RAW,
            "RGB from -2.12 to 2.64",
            "RGB from 0 to 255",
            id="0 to 255",
        ),
        pytest.param(
            make_network(TORCHVISION_VGG16),
            {"mean": (0.5,) * 3, "std": (0.5,) * 3},
            "RGB from -2.12 to 2.64",
            "RGB from -1 to 1",
            id="-1 to 1",
        ),
        pytest.param(
            make_network(TORCHVISION_VGG16, FLIP),
            IMAGENET,
            "RGB from -2.12 to 2.64",
            "BGR from -2.12 to 2.64",
            id="flipped",
        ),
        pytest.param(
            make_network(CAFFE_VGG16),
            IMAGENET,
            "BGR from -124 to 151",
            "RGB from -2.12 to 2.64",
            id="torchvision's",
        ),
        pytest.param(
            make_network(CAFFE_VGG16),
            CAFFE,
            "BGR from -124 to 151",
            "RGB from -124 to 151",
            id="not flipped",
        ),
        pytest.param(
            make_network(CAFFE_VGG16, flipped=True),
            IMAGENET,
            "RGB from -124 to 151",
            "RGB from -2.12 to 2.64",
            id="flipped, torchvision's",
        ),
        pytest.param(
            make_network(CAFFE_VGG16, FLIP),
            RAW,
            "BGR from -124 to 151",
            "BGR from 0 to 255",
            id="no mean",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    network: nn.Module, settings: dict[str, Any], expected: str, actual: str
) -> None:
    with pytest.raises(SightlineError) as caught:
        sl.load(network, size=32, **settings)
    assert f"trained on {expected}, but its first layer is fed {actual}; " in str(caught.value)
    assert "let sl.load('vgg16', weights=FILE) choose mean and std" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_measured_transform_is_the_one_that_was_made() -> None:
    matrix = torch.tensor([[2.0, -1.0, 0.5], [0.3, 4.0, 0.0], [1.0, 0.25, -3.0]])
    offset = torch.tensor([0.5, -2.0, 7.0])

    def transform(x: Tensor) -> Tensor:
        return torch.einsum("ij,njhw->nihw", matrix, x) + offset.view(3, 1, 1)

    network = nn.Sequential(Preprocessing(transform), nn.Conv2d(3, 2, 3))
    measured = measure_color_transform(network, lambda x: x, 16, "1")
    assert measured is not None
    torch.testing.assert_close(measured.matrix, matrix)
    torch.testing.assert_close(measured.offset, offset)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.square(),
        lambda x: x.mean(1, keepdim=True).expand(-1, 3, -1, -1),
        lambda x: x.repeat(2, 1, 1, 1),
        lambda x: x[:, :, : x.shape[2] // 0],
    ],
    ids=["not affine", "luminance", "another batch", "an error"],
)
def test_other_transforms_are_not_measured(function: Callable[[Tensor], Tensor]) -> None:
    network = nn.Sequential(Preprocessing(function), nn.Conv2d(3, 2, 3))
    assert measure_color_transform(network, lambda x: x, 16, "1") is None


def test_a_network_that_fails_is_left_to_the_first_run() -> None:
    network = make_network(CAFFE_VGG16, Preprocessing(lambda x: x[:, :, : x.shape[2] // 0]))
    assert sl.load(network, size=32).name == "Sequential"


def test_a_network_that_sees_luminance_is_not_checked() -> None:
    network = make_network(TORCHVISION_VGG16, Preprocessing(lambda x: x.expand(-1, 3, -1, -1)))
    assert sl.load(network, size=32, mean=(0.449,), std=(0.226,)).size == 32


@pytest.mark.parametrize(
    "settings", [{"mean": (0, 0, 0)}, {"std": (1, 1, 1)}, {"mean": (0.449,), "std": (0.226,)}]
)
def test_a_librarys_own_weights_keep_their_normalization(settings: dict[str, Any]) -> None:
    with pytest.raises(
        SightlineError,
        match=(
            r"^sightnet's own weights were trained with (mean|std) "
            r"\(0\.\d+, 0\.\d+, 0\.\d+\); given was \("
        ),
    ):
        sl.load("sightnet", device="cpu", **settings)
    assert sl.load("sightnet", device="cpu", mean=(0.48, 0.46, 0.41)).size == 160
    assert sl.load("sightnet", weights="random", device="cpu", **settings).size == 160
