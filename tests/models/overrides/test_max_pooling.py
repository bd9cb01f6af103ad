"""Max pooling that keeps less gives what torch's own gives, to the bit, forward, backward and twice backward."""

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sightline as sl
from sightline.models.overrides import max_pooling as frugal
from sightline.models.overrides import onednn as packed
from sightline.models.overrides import relu as rules
from sightline.models.overrides.average_pooling import AveragePoolingMode


@pytest.fixture(autouse=True)
def every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frugal, "MIN_COMPACT_POOL_ELEMENTS", 1)


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def derivatives(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    found = module(leaf.sin())
    (first,) = torch.autograd.grad(found.square().sum(), leaf, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), leaf)
    return found.detach(), first.detach(), second


class Both(nn.Module):
    """A ReLU's maps, pooled and as they are."""

    def forward(self, x: Tensor) -> Tensor:
        maps = nn.functional.relu(x)
        return torch.cat([nn.functional.max_pool2d(maps, 2).flatten(1), maps.flatten(1)], 1)


MODULES = [
    nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)),
    nn.Sequential(nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, padding=1)),
    nn.Sequential(nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True)),
    nn.Sequential(nn.ReLU(), nn.MaxPool2d((2, 3), (1, 2), dilation=2)),
    nn.MaxPool2d(2),
    nn.Sequential(nn.MaxPool2d(2), nn.ReLU()),
    nn.Sequential(nn.Tanh(), nn.MaxPool2d(3, 1)),
    Both(),
]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module).replace("\n", ""))
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_as_torch_has_it(module: nn.Module, order: torch.memory_format) -> None:
    x = drawn(2, 3, 11, 10).contiguous(memory_format=order)
    plain = derivatives(module, x)
    with packed.use_packed_weights():
        found = derivatives(module, x)
    for one, other in zip(found, plain, strict=True):
        assert torch.equal(one, other)


def test_a_number_that_is_none_comes_through() -> None:
    x = torch.full((1, 1, 2, 2), torch.nan, requires_grad=True)
    with packed.use_packed_weights():
        found = nn.functional.max_pool2d(nn.functional.relu(x), 2)
    found.sum().backward()
    assert found.isnan().all()
    assert x.grad is not None
    assert float(x.grad.sum()) == 1


def test_nothing_is_kept_of_maps_that_are_pooled() -> None:
    leaf, seen = drawn(1, 3, 8, 8).requires_grad_(), list[Any]()
    with packed.use_packed_weights():
        maps = nn.functional.relu(leaf * 1)
        seen.append(weakref.ref(maps.untyped_storage()))
        found = nn.functional.max_pool2d(maps, 2)
    del maps
    gc.collect()
    assert seen[0]() is None
    node: Any = found.grad_fn
    assert node.places.dtype == torch.int32


def test_other_rules_see_every_relu_and_every_pooling() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 2, 3), nn.ReLU()
    ).requires_grad_(False)
    model, image = (
        sl.load(network, size=12, device="cpu"),
        torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(1)),
    )

    def gradients() -> list[Tensor]:
        found: list[Tensor] = []
        for context in (
            rules.backward("guided"),
            rules.backward("deconvnet"),
            AveragePoolingMode(),
        ):
            leaf = image.clone().requires_grad_()
            with context:
                maps = model.run(leaf, ["4"])["4"]
            found.append(torch.autograd.grad(maps.sum(), leaf)[0])
        return found

    ours = gradients()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frugal, "MIN_COMPACT_POOL_ELEMENTS", 10**9)
        plain = gradients()
    for one, other in zip(ours, plain, strict=True):
        assert torch.equal(one, other)
        assert one.any()


def test_indices_that_are_asked_for_are_torchs() -> None:
    x = drawn(1, 2, 6, 6).requires_grad_()
    with packed.use_packed_weights():
        found, places = nn.functional.max_pool2d(x, 2, return_indices=True)
    plain, expected = nn.functional.max_pool2d(x, 2, return_indices=True)
    assert torch.equal(found, plain)
    assert torch.equal(places, expected)
