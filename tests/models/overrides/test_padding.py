"""What lies beyond an image's borders: periods, mirror images, and no frame of zeros."""

import pytest
import torch
from helpers import smooth
from torch import nn
from torch.nn import functional as F

import sightline as sl
from sightline.models.overrides.average_pooling import AveragePoolingMode
from sightline.models.overrides.padding import BorderPaddingMode

UNPADDED = nn.Sequential(
    nn.Conv2d(3, 4, 7, 2),
    nn.ReLU(),
    nn.MaxPool2d(3, 2, ceil_mode=True),
    nn.Conv2d(4, 5, 3, padding=1, dilation=2),
)


@torch.no_grad()
@pytest.mark.parametrize("average", [False, True])
def test_circular_is_the_middle_of_the_picture_laid_side_by_side(
    tiny: sl.Model, average: bool
) -> None:
    image, layers = smooth(side=32, seed=2), ["conv1", "pool1", "conv2", "relu3"]
    with AveragePoolingMode() if average else BorderPaddingMode("circular"):
        wide = tiny.features(image.repeat(1, 1, 3, 3), layers)
    with AveragePoolingMode(), BorderPaddingMode("circular"):
        averaged = tiny.features(image, layers)
    with BorderPaddingMode("circular"):
        plain = tiny.features(image, layers)
    found = averaged if average else plain
    for name in layers:
        side = found[name].shape[-1]
        torch.testing.assert_close(
            found[name], wide[name][..., side : 2 * side, side : 2 * side], rtol=1e-4, atol=1e-5
        )


@torch.no_grad()
@pytest.mark.parametrize(
    "network", [UNPADDED, nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.AvgPool2d(2))]
)
def test_circular_features_roll_with_the_picture(network: nn.Sequential) -> None:
    image = smooth(side=32, seed=3)
    with BorderPaddingMode("circular"):
        found, rolled = network(image), network(image.roll((4, 8), (2, 3)))
    assert found.shape[-2:] == (8, 8), "a place for every stride, with padding or without"
    torch.testing.assert_close(rolled, found.roll((1, 2), (2, 3)), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_reflected_borders_are_torchs_and_leave_no_frame(tiny: sl.Model) -> None:
    image, conv = smooth(side=32, seed=4), tiny.module("conv1")
    assert isinstance(conv, nn.Conv2d)
    with BorderPaddingMode("reflect"):
        found = tiny.features(image, "conv1")["conv1"]
        flat = tiny.features(torch.full((1, 3, 32, 32), 0.8), "relu3")["relu3"]
    expected = F.conv2d(
        F.pad(tiny.normalize(image), (1, 1, 1, 1), mode="reflect"), conv.weight, conv.bias
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (flat - flat.mean((2, 3), keepdim=True)).abs().max() < 1e-5


@torch.no_grad()
def test_of_several_only_the_innermost_acts(tiny: sl.Model) -> None:
    image, layers = smooth(side=32, seed=6), ["conv1", "pool1", "relu3"]
    with BorderPaddingMode("reflect"):
        alone = tiny.features(image, layers)
    with BorderPaddingMode("circular"):
        before = tiny.features(image, layers)
        with BorderPaddingMode("reflect"):
            nested = tiny.features(image, layers)
        after = tiny.features(image, layers)
    for name in layers:
        assert torch.equal(nested[name], alone[name])
        assert torch.equal(after[name], before[name])
        assert not torch.equal(before[name], alone[name])


def test_outside_nothing_changes_and_the_gradient_is_the_definition_s(tiny: sl.Model) -> None:
    image = (0.1 + 0.8 * smooth(side=16, seed=5)).requires_grad_()
    before = tiny.features(image, "relu3")["relu3"]
    with BorderPaddingMode("circular"):
        score = tiny.features(image, "relu3")["relu3"].square().sum()
    assert torch.equal(tiny.features(image, "relu3")["relu3"], before)
    (slope,) = torch.autograd.grad(score, image)
    with BorderPaddingMode("circular"):
        wide = tiny.features(image.repeat(1, 1, 3, 3), "relu3")["relu3"]
    (expected,) = torch.autograd.grad(wide[..., 4:8, 4:8].square().sum(), image)
    torch.testing.assert_close(slope, expected, rtol=1e-3, atol=1e-5)
