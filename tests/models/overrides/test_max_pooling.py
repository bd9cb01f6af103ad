"""Compact max pooling gives what torch's own gives, to the bit, also twice differentiated."""

import gc
import weakref
from typing import Any

import pytest
import torch
from helpers import needs_fast_operations
from torch import Tensor, nn
from torch.nn import functional as F

import sightline as sl
from sightline.models.overrides import max_pooling
from sightline.models.overrides.average_pooling import AveragePoolingMode
from sightline.models.overrides.onednn import use_packed_weights
from sightline.models.overrides.relu import backward


@pytest.fixture(autouse=True)
def every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tensors count as large."""
    monkeypatch.setattr(max_pooling, "MIN_COMPACT_POOL_ELEMENTS", 1)


def make_input(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def differentiate_twice(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A module's output, the gradient of a curved score of it, and that of the gradient's norm."""
    leaf = x.clone().requires_grad_()
    output = module(leaf.sin())
    # Also an output of 0 has a gradient.
    score = (output - 0.3).square().sum()
    (gradient,) = torch.autograd.grad(score, leaf, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), leaf)
    return output.detach(), gradient.detach(), second


class PooledAndWhole(nn.Module):
    """The output of a ReLU, both pooled and as it is."""

    def forward(self, x: Tensor) -> Tensor:
        rectified = F.relu(x)
        return torch.cat([F.max_pool2d(rectified, 2).flatten(1), rectified.flatten(1)], 1)


MODULES = [
    nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)),
    nn.Sequential(nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, padding=1)),
    nn.Sequential(nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True)),
    nn.Sequential(nn.ReLU(), nn.MaxPool2d((2, 3), (1, 2), dilation=2)),
    nn.MaxPool2d(2),
    nn.Sequential(nn.MaxPool2d(2), nn.ReLU()),
    nn.Sequential(nn.Tanh(), nn.MaxPool2d(3, 1)),
    PooledAndWhole(),
]


@pytest.mark.usefixtures("fast_or_portable")
@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module).replace("\n", ""))
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_numbers_are_torchs(module: nn.Module, memory_format: torch.memory_format) -> None:
    x = make_input(2, 3, 11, 10).contiguous(memory_format=memory_format)
    expected = differentiate_twice(module, x)
    with use_packed_weights():
        derivatives = differentiate_twice(module, x)
    for derivative, expected_derivative in zip(derivatives, expected, strict=True):
        assert torch.equal(derivative, expected_derivative)


@pytest.mark.usefixtures("fast_or_portable")
def test_nan_comes_through() -> None:
    x = torch.full((1, 1, 2, 2), torch.nan, requires_grad=True)
    with use_packed_weights():
        output = F.max_pool2d(F.relu(x), 2)
    output.sum().backward()
    assert output.isnan().all()
    assert x.grad is not None
    assert float(x.grad.sum()) == 1


@needs_fast_operations
def test_nothing_is_kept_of_a_relu_that_is_pooled() -> None:
    leaf = make_input(1, 3, 8, 10).requires_grad_()
    with use_packed_weights():
        rectified = F.relu(leaf * 1)
        storage = weakref.ref(rectified.untyped_storage())
        output = F.max_pool2d(rectified, 2)
    del rectified
    gc.collect()
    assert storage() is None
    node: Any = output.grad_fn
    assert node.indices.dtype == torch.int32


@needs_fast_operations
@pytest.mark.parametrize(
    ("x", "is_large"),
    [
        (make_input(2, 3, 4, 5), True),
        (make_input(2, 3, 4, 4), False),
        (make_input(2, 3, 20), False),
        (make_input(2, 3, 4, 5).to("meta"), False),
    ],
)
def test_only_large_batches_on_the_cpu_are_worth_it(
    x: Tensor, is_large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(max_pooling, "MIN_COMPACT_POOL_ELEMENTS", 120)
    assert not max_pooling.is_large_differentiable_batch(x)
    leaf = x.requires_grad_() * 1
    assert max_pooling.is_large_differentiable_batch(leaf) == is_large
    with torch.no_grad():
        assert not max_pooling.is_large_differentiable_batch(leaf)


def test_other_rules_see_every_relu_and_every_pooling() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 2, 3), nn.ReLU()
    ).requires_grad_(False)
    model = sl.load(network, size=12, device="cpu")
    image = torch.rand(2, 3, 12, 14, generator=torch.Generator().manual_seed(1))

    def compute_gradients() -> list[Tensor]:
        gradients: list[Tensor] = []
        for context in (backward("guided"), backward("deconvnet"), AveragePoolingMode()):
            leaf = image.clone().requires_grad_()
            with context:
                features = model.run(leaf, ["4"])["4"]
            gradients += torch.autograd.grad(features.sum(), leaf)
        return gradients

    gradients = compute_gradients()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(max_pooling, "MIN_COMPACT_POOL_ELEMENTS", 10**9)
        expected = compute_gradients()
    for gradient, expected_gradient in zip(gradients, expected, strict=True):
        assert torch.equal(gradient, expected_gradient)
        assert gradient.any()


def test_indices_that_are_asked_for_are_torchs() -> None:
    x = make_input(1, 2, 6, 8).requires_grad_()
    with use_packed_weights():
        output, indices = F.max_pool2d(x, 2, return_indices=True)
    expected, expected_indices = F.max_pool2d(x, 2, return_indices=True)
    assert torch.equal(output, expected)
    assert torch.equal(indices, expected_indices)
