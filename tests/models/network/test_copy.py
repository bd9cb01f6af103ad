"""The private copy shares the caller's weights, and nothing else of the caller's."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from sightline.errors import SightlineError
from sightline.models.network.copy import make_private_network

IMAGE = torch.rand(2, 3, 12, 10, generator=torch.Generator().manual_seed(0))


def make_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    ).eval()


def list_hooks(network: nn.Module) -> list[object]:
    hooks: list[object] = []
    for module in network.modules():
        hooks += module._forward_hooks.values()
        hooks += module._forward_pre_hooks.values()
        hooks += module._backward_hooks.values()
        hooks += module._backward_pre_hooks.values()
    return hooks


def test_the_copy_is_frozen_in_evaluation_mode_and_not_in_place() -> None:
    network = make_network().train()
    private = make_private_network(network)
    assert not any(module.training for module in private.modules())
    assert not any(parameter.requires_grad for parameter in private.parameters())
    assert private[2].inplace is False  # type: ignore[index]
    assert all(module.training for module in network.modules())
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert network[2].inplace is True


def test_weights_and_buffers_are_shared() -> None:
    network = make_network()
    private = make_private_network(network)
    shared = private.state_dict(keep_vars=True)
    assert list(shared) == list(network.state_dict())
    for name, value in network.state_dict(keep_vars=True).items():
        assert shared[name] is not value
        assert type(shared[name]) is type(value)
        assert shared[name].data_ptr() == value.data_ptr()
    with torch.no_grad():
        network[0].weight.add_(0.1)
        network[1].running_mean.add_(1)  # type: ignore[operator, union-attr]
    torch.testing.assert_close(private(IMAGE), network(IMAGE))


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        torch.compile,
        lambda network: nn.DataParallel(torch.compile(network)),
        lambda network: torch.compile(nn.DataParallel(network)),
    ],
)
def test_wrappers_are_looked_through(wrap: Callable[[nn.Module], nn.Module]) -> None:
    network = make_network()
    private = make_private_network(wrap(network))
    assert [path for path, _ in private.named_modules()] == ["", "0", "1", "2", "3", "4", "5"]
    torch.testing.assert_close(private(IMAGE), network(IMAGE))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script", "ignore:.*torch.jit.trace")
@pytest.mark.parametrize(
    "make_scripted",
    [
        torch.jit.script,
        lambda network: torch.jit.trace(network, IMAGE),
        lambda network: nn.Sequential(torch.jit.script(network[0])),
    ],
)
def test_scripted_modules_are_refused(make_scripted: Callable[[nn.Module], nn.Module]) -> None:
    with pytest.raises(
        SightlineError,
        match=r"^a scripted module can't be looked into; give the eager nn\.Module it was made",
    ):
        make_private_network(make_scripted(make_network()))


def test_networks_that_can_not_be_copied_are_refused() -> None:
    class Stubborn(nn.Module):
        def __deepcopy__(self, memo: dict[int, Any]) -> None:
            raise TypeError("no copies")

    with pytest.raises(SightlineError, match=r"^Stubborn can't be copied \(no copies\); give a "):
        make_private_network(Stubborn())


@pytest.mark.filterwarnings("ignore:.*weight_norm", "ignore:.*spectral_norm")
@pytest.mark.parametrize(
    "change",
    [
        lambda network: parametrizations.weight_norm(network[0]),
        lambda network: parametrizations.spectral_norm(network[5]),
        lambda network: parametrizations.orthogonal(network[5]),
        lambda network: nn.utils.weight_norm(network[0]),
        lambda network: nn.utils.spectral_norm(network[0]),
        lambda network: prune.l1_unstructured(network[0], "weight", 0.5),
    ],
)
def test_weights_that_are_computed(change: Callable[[nn.Sequential], Any]) -> None:
    network = make_network()
    change(network)
    network.eval()
    private = make_private_network(network)
    torch.testing.assert_close(private(IMAGE), network(IMAGE))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.5)
    torch.testing.assert_close(private(IMAGE), network(IMAGE))


def test_hooks_of_the_caller_do_not_run_and_stay_with_the_caller() -> None:
    def fail(*_: Any) -> None:
        raise AssertionError

    network = make_network()
    network[0].register_forward_hook(fail)
    network[1].register_forward_pre_hook(fail)
    network[3].register_full_backward_hook(fail)
    network[4].register_full_backward_pre_hook(fail)
    network.register_forward_hook(fail)
    hooks = list_hooks(network)
    image = IMAGE.clone().requires_grad_()
    private = make_private_network(network)
    private(image).sum().backward()
    assert list_hooks(private) == []
    assert list_hooks(network) == hooks
    assert len(hooks) == 5


@pytest.mark.parametrize(
    ("path", "value"),
    [("0.weight", torch.nan), ("5.bias", torch.inf), ("1.running_var", -torch.inf)],
)
def test_weights_that_are_not_numbers_are_refused(path: str, value: float) -> None:
    network = make_network()
    network.state_dict()[path].view(-1)[1] = value
    with pytest.raises(
        SightlineError, match=f"^Sequential is refused: {path} holds NaN or infinite weights$"
    ):
        make_private_network(network)


def test_several_broken_weights_are_counted() -> None:
    network = make_network()
    for path in ("0.weight", "1.running_mean", "5.bias"):
        network.state_dict()[path].view(-1)[0] = torch.nan
    with pytest.raises(SightlineError, match=r"0\.weight holds NaN .* weights, and 2 more$"):
        make_private_network(network)


def test_large_weights_and_infinite_masks_are_fine() -> None:
    """The sum of the weights overflows, and an attention mask is infinite on purpose."""
    network = make_network()
    network[5].weight.data.fill_(3e38)
    network.register_buffer("mask", torch.full((3, 3), -torch.inf))
    private = make_private_network(network)
    assert private.get_buffer("mask").isinf().all()


def test_attributes_that_are_tensors_are_shared_too() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.tensor([2.0, 3.0, 4.0]).view(3, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale

    network = Scaled()
    private = make_private_network(network)
    network.scale.mul_(2)
    torch.testing.assert_close(private(IMAGE), network(IMAGE))
