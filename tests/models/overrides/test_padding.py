"""What lies beyond an image's borders: periods, mirror images, and no frame of zeros."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sightline as sl
from sightline.models.overrides.average_pooling import AveragePoolingMode
from sightline.models.overrides.padding import BorderPaddingMode

pytestmark = pytest.mark.usefixtures("fast_or_portable")

UNPADDED = nn.Sequential(
    nn.Conv2d(3, 4, (7, 5), 2),
    nn.ReLU(),
    nn.MaxPool2d(3, 2, ceil_mode=True),
    nn.Conv2d(4, 5, 3, padding=1, dilation=(2, 1)),
)


def make_image(seed: int, height: int = 24, width: int = 32) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
@pytest.mark.parametrize("average", [False, True])
def test_circular_is_the_middle_of_the_picture_laid_side_by_side(
    tiny: sl.Model, average: bool
) -> None:
    image = make_image(2)
    layers = ["conv1", "pool1", "conv2", "relu3"]
    with AveragePoolingMode() if average else BorderPaddingMode("circular"):
        wide = tiny.features(image.repeat(1, 1, 3, 3), layers)
    with AveragePoolingMode(), BorderPaddingMode("circular"):
        averaged = tiny.features(image, layers)
    with BorderPaddingMode("circular"):
        plain = tiny.features(image, layers)
    features = averaged if average else plain
    for name in layers:
        rows, columns = features[name].shape[2:]
        middle = wide[name][..., rows : 2 * rows, columns : 2 * columns]
        torch.testing.assert_close(features[name], middle, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    "network", [UNPADDED, nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.AvgPool2d(2))]
)
def test_circular_features_roll_with_the_picture(network: nn.Sequential) -> None:
    image = make_image(3)
    with BorderPaddingMode("circular"):
        features = network(image)
        rolled = network(image.roll((4, 8), (2, 3)))
    assert features.shape[-2:] == (6, 8), "a position for every stride, with padding or without"
    expected = features.roll((1, 2), (2, 3))
    torch.testing.assert_close(rolled, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_reflected_borders_are_torchs_and_leave_no_frame(tiny: sl.Model) -> None:
    image = make_image(4)
    conv = tiny.module("conv1")
    assert isinstance(conv, nn.Conv2d)
    with BorderPaddingMode("reflect"):
        features = tiny.features(image, "conv1")["conv1"]
        flat = tiny.features(torch.full((1, 3, 24, 32), 0.8), "relu3")["relu3"]
    padded = F.pad(tiny.normalize(image), (1, 1, 1, 1), mode="reflect")
    expected = F.conv2d(padded, conv.weight, conv.bias)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    assert (flat - flat.mean((2, 3), keepdim=True)).abs().max() < 1e-5


@torch.no_grad()
@pytest.mark.parametrize(
    ("mode", "kernel", "expected"),
    [
        # Three pixels a b c: a reflection reaches two beyond the border, a period three.
        ("reflect", 5, [3.0, 2.0, 1.0, 2.0, 3.0, 2.0, 1.0]),
        ("reflect", 7, [1.0, 1.0, 1.0, 1.0, 2.0, 3.0, 3.0, 3.0, 3.0]),
        ("circular", 7, [1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 1.0, 2.0, 3.0]),
        ("circular", 9, [1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 3.0, 3.0, 3.0, 3.0, 3.0]),
    ],
)
def test_a_few_pixels_repeat_their_edge(mode: str, kernel: int, expected: list[float]) -> None:
    """Read off by one-hot kernels: each shows the padded row shifted by its tap."""
    row = torch.tensor([1.0, 2.0, 3.0]).view(1, 1, 1, 3).expand(1, 1, 3, 3)
    one_hot = torch.eye(kernel).view(kernel, 1, 1, kernel)
    weight = F.pad(one_hot, (0, 0, kernel // 2, kernel // 2))
    with BorderPaddingMode(mode):  # type: ignore[arg-type]
        taps = F.conv2d(row, weight)[0, :, 1]
    padded = torch.cat([taps[:, 0], taps[-1, 1:]])
    assert padded.tolist() == expected


@torch.no_grad()
def test_padding_by_name_stays_torchs() -> None:
    image = make_image(5)
    conv = nn.Conv2d(3, 4, 3, padding="same")
    expected = conv(image)
    with BorderPaddingMode("circular"):
        assert torch.equal(conv(image), expected)


@torch.no_grad()
def test_of_several_only_the_innermost_acts(tiny: sl.Model) -> None:
    image = make_image(6)
    layers = ["conv1", "pool1", "relu3"]
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
    image = make_image(5, height=16, width=24).requires_grad_()
    before = tiny.features(image, "relu3")["relu3"]
    with BorderPaddingMode("circular"):
        score = tiny.features(image, "relu3")["relu3"].square().sum()
    assert torch.equal(tiny.features(image, "relu3")["relu3"], before)
    (gradient,) = torch.autograd.grad(score, image)
    with BorderPaddingMode("circular"):
        wide = tiny.features(image.repeat(1, 1, 3, 3), "relu3")["relu3"]
    (expected,) = torch.autograd.grad(wide[..., 4:8, 6:12].square().sum(), image)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5)
