"""Max pooling that averages, whoever calls it."""

from collections.abc import Callable

import pytest
import torch
from helpers import small_network
from torch import Tensor, nn
from torch.nn import functional as F

import sightline as sl
from sightline.models.overrides.average_pooling import AveragePoolingMode

IMAGE = torch.rand(2, 2, 7, 9, generator=torch.Generator().manual_seed(0))


def average_windows(
    x: Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: int,
    output_size: torch.Size,
) -> Tensor:
    """The mean of what each window sees of the image, written out in loops."""
    rows, columns = output_size
    means = torch.zeros(*x.shape[:2], rows, columns)
    for row in range(rows):
        for column in range(columns):
            top = row * stride[0] - padding
            left = column * stride[1] - padding
            window = x[:, :, max(top, 0) : top + kernel[0], max(left, 0) : left + kernel[1]]
            means[:, :, row, column] = window.mean((2, 3))
    return means


POOLINGS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, int], tuple[int, int], int]] = {
    "module": (nn.MaxPool2d(2), (2, 2), (2, 2), 0),
    "last window over the edge": (nn.MaxPool2d(3, 2, ceil_mode=True), (3, 3), (2, 2), 0),
    "padding": (nn.MaxPool2d(3, 1, padding=1), (3, 3), (1, 1), 1),
    "F": (lambda x: F.max_pool2d(x, 2), (2, 2), (2, 2), 0),
    "torch": (
        lambda x: torch.max_pool2d(x, kernel_size=(2, 3), stride=[2, 1]),
        (2, 3),
        (2, 1),
        0,
    ),
}


@pytest.mark.parametrize("spelling", POOLINGS)
def test_every_spelling_averages(spelling: str) -> None:
    pool, kernel, stride, padding = POOLINGS[spelling]
    maxima = pool(IMAGE)
    with AveragePoolingMode():
        means = pool(IMAGE)
    expected = average_windows(IMAGE, kernel, stride, padding, maxima.shape[2:])
    torch.testing.assert_close(means, expected)


def test_a_network_s_own_pooling_comes_back() -> None:
    model = sl.load(small_network(), mean=(0.5,) * 3, std=(0.25,) * 3, size=32)
    image = torch.rand(1, 3, 28, 36, generator=torch.Generator().manual_seed(1))
    before = model.features(image, "pool1")["pool1"]
    with AveragePoolingMode():
        inside = model.features(image, ["relu1", "pool1"])
    torch.testing.assert_close(inside["pool1"], F.avg_pool2d(inside["relu1"], 2))
    assert torch.equal(model.features(image, "pool1")["pool1"], before)
