"""Max pooling that averages, whoever calls it."""

import pytest
import torch
from helpers import small_network, smooth
from torch import nn
from torch.nn import functional as F

import sightline as sl
from sightline.models.overrides.average_pooling import AveragePoolingMode


@pytest.mark.parametrize(
    "pool",
    [
        nn.MaxPool2d(2),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.MaxPool2d(3, 1, padding=1),
        lambda x: F.max_pool2d(x, 2),
        lambda x: torch.max_pool2d(x, kernel_size=(2, 3), stride=[2, 2]),
    ],
)
def test_every_spelling_averages(pool: object) -> None:
    image = torch.rand(1, 2, 7, 7, generator=torch.Generator().manual_seed(0))
    most = pool(image)  # type: ignore[operator]
    with AveragePoolingMode():
        mean = pool(image)  # type: ignore[operator]
    assert mean.shape == most.shape
    assert bool((mean < most).all())
    constant = torch.full((1, 2, 7, 7), 0.25)
    with AveragePoolingMode():
        torch.testing.assert_close(pool(constant), torch.full_like(most, 0.25))  # type: ignore[operator]


def test_a_network_s_own_pooling_comes_back() -> None:
    model = sl.load(small_network(), mean=(0.5,) * 3, std=(0.25,) * 3, size=32)
    before = model.features(smooth(), "pool1")["pool1"]
    with AveragePoolingMode():
        inside = model.features(smooth(), ["relu1", "pool1"])
    torch.testing.assert_close(inside["pool1"], F.avg_pool2d(inside["relu1"], 2))
    assert torch.equal(model.features(smooth(), "pool1")["pool1"], before)
