"""Networks that write to their own weights leave the user's as they are."""

from collections.abc import Callable
from types import MethodType

import pytest
import torch
from torch import Tensor, nn

import sightline as sl
from sightline.models.network.copying.weight_writes import may_write_weights

IMAGE = torch.rand(2, 3, 24, 32, generator=torch.Generator().manual_seed(5))


class Writing(nn.Module):
    """Does something to itself before each pass; its first convolution is there by two names."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv2d(3, 6, 3)
        self.tied = nn.Conv2d(3, 6, 3)
        self.tied.weight = nn.Parameter(self.conv.weight.data)
        self.scale = nn.Parameter(torch.tensor(1.7))
        self.fc = nn.Linear(6, 5)

    def write(self) -> None:
        """Changes no weight here."""

    def forward(self, x: Tensor) -> Tensor:
        self.write()
        maps = (self.conv(x) + self.tied(x)).relu() * self.scale
        return self.fc(maps.mean((2, 3)))


class ByFunction(Writing):
    """Clips, as quantizers do."""

    def write(self) -> None:
        self.scale.data.clamp_(0, 1)


class ByDivision(Writing):
    """Scales weights to length 1, in two functions."""

    @torch.no_grad()
    def write(self) -> None:
        def divide(weight: Tensor) -> None:
            weight.div_(weight.norm(dim=1, keepdim=True))

        divide(self.fc.weight)
        divide(self.conv.weight.flatten(1))


class ByAssignment(Writing):
    """Writes by an operator."""

    def write(self) -> None:
        with torch.no_grad():
            self.scale *= 0.5


class ByIndex(Writing):
    """Writes to a part."""

    def write(self) -> None:
        with torch.no_grad():
            weight = self.fc.weight
            weight[1] *= 0.5


def make_hooked() -> Writing:
    """A network with a hook that clips a weight."""
    network = Writing()

    def clip(module: nn.Module, _inputs: object) -> None:
        module.weight.data.clamp_(-0.1, 0.1)  # type: ignore[union-attr]

    network.fc.register_forward_pre_hook(clip)
    return network


def make_replaced() -> Writing:
    """A network with another forward than its class has."""
    network = Writing()

    def forward(self: Writing, x: Tensor) -> Tensor:
        self.scale.data.clamp_(0, 1)
        return Writing.forward(self, x)

    network.forward = MethodType(forward, network)  # type: ignore[method-assign]
    return network


KINDS = (ByFunction, ByDivision, ByAssignment, ByIndex, make_hooked, make_replaced)


def take_weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: values.clone() for name, values in network.state_dict().items()}


@pytest.mark.parametrize("kind", KINDS)
def test_the_users_weights_are_unchanged(kind: Callable[[], Writing]) -> None:
    network = kind()
    weights = take_weights(network)
    versions = [parameter._version for parameter in network.parameters()]
    model = sl.load(network, size=(24, 32), device="cpu")
    gradient = sl.saliency(model, IMAGE, label=2).values["gradient"]
    sl.occlusion(model, IMAGE[:1], label=2)
    for name, values in network.state_dict().items():
        assert torch.equal(values, weights[name]), name
    if kind in (ByFunction, make_hooked, make_replaced):  # which write to `data`
        assert [parameter._version for parameter in network.parameters()] == versions
    # The weights of the network itself change with each of its passes, or with the first.
    if kind not in (ByAssignment, ByIndex):
        leaf = IMAGE.clone().requires_grad_()
        network(model.normalize(leaf))[:, 2].sum().backward()
        torch.testing.assert_close(gradient, leaf.grad)


def test_weights_in_one_memory_stay_so() -> None:
    model = sl.load(ByDivision(), size=(24, 32), device="cpu")
    assert model.layers
    assert model.network.conv.weight.data_ptr() == model.network.tied.weight.data_ptr()


class AddsInPlace(Writing):
    """Writes to its features only."""

    def forward(self, x: Tensor) -> Tensor:
        maps = self.conv(x)
        maps += self.tied(x)
        maps.relu_()
        return self.fc(maps.mean((2, 3)))


class Counts(Writing):
    """Writes to a number."""

    calls = 0

    def write(self) -> None:
        self.calls += 1


@pytest.mark.parametrize("kind", [Writing, AddsInPlace, Counts])
def test_other_networks_share_their_weights(kind: Callable[[], Writing]) -> None:
    network = kind()
    model = sl.load(network, size=(24, 32), device="cpu")
    before = model.logits(IMAGE)
    assert model.network.fc.weight.data_ptr() == network.fc.weight.data_ptr()
    with torch.no_grad():
        network.fc.bias += 1
    torch.testing.assert_close(model.logits(IMAGE), before + 1)


def test_which_code_may_write() -> None:
    assert all(may_write_weights(kind()) for kind in (*KINDS, AddsInPlace))
    assert not may_write_weights(Writing())
    assert not may_write_weights(Counts())
    assert not may_write_weights(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True)))
