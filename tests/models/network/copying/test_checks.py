"""Networks without usable weights are refused with one line that names the first one."""

from collections.abc import Callable

import pytest
import torch
from odd_networks import SIDE, Plain, make_plain
from torch import nn

from sightline.errors import SightlineError
from sightline.models.network.copy import make_private_network

IMAGE = torch.rand(2, 3, SIDE, SIDE - 2, generator=torch.Generator().manual_seed(0))


def make_network() -> nn.Sequential:
    return make_plain().eval()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script", "ignore:.*torch.jit.trace")
@pytest.mark.parametrize(
    "make_scripted",
    [
        torch.jit.script,
        lambda network: torch.jit.trace(network, IMAGE),
    ],
)
def test_scripted_modules_are_refused(make_scripted: Callable[[nn.Module], nn.Module]) -> None:
    with pytest.raises(
        SightlineError,
        match=r"^a scripted module can't be looked into; give the eager nn\.Module it was made",
    ):
        make_private_network(make_scripted(make_network()))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script", "ignore:.*torch.jit.trace")
@pytest.mark.parametrize("name", ["1", "1.0"])
def test_a_scripted_part_is_named(name: str) -> None:
    scripted: nn.Module = torch.jit.script(nn.Linear(3, 2))
    network = nn.Sequential(nn.ReLU(), nn.Sequential(scripted) if "." in name else scripted)
    with pytest.raises(
        SightlineError,
        match=rf"^layer {name} is a scripted module, which can't be looked into; put the eager nn",
    ):
        make_private_network(network)


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_lazy_networks_are_refused_until_they_are_run() -> None:
    network = nn.Sequential(nn.Identity(), nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d())
    with pytest.raises(
        SightlineError, match=r"^Sequential has no weights yet in its lazy layer 1; run it once on"
    ):
        make_private_network(network)
    network(IMAGE)
    network.eval()
    torch.testing.assert_close(make_private_network(network)(IMAGE), network(IMAGE))


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_lazy_modules_that_are_not_registered_are_refused() -> None:
    network = Plain()
    network.spare = [nn.LazyLinear(3)]  # type: ignore[assignment]
    with pytest.raises(SightlineError, match=r"^Plain holds a lazy weight without values; run it"):
        make_private_network(network)


def test_weights_on_the_meta_device_are_refused() -> None:
    network = Plain()
    network.f = nn.Linear(4, 5, device="meta")
    for allow_meta in (True, False):
        with pytest.raises(
            SightlineError,
            match=r"^Plain has no weights: f\.weight is on the meta device, and 1 more; load",
        ):
            make_private_network(network, allow_meta=allow_meta)


def test_a_network_on_the_meta_device_as_a_whole_can_be_allowed() -> None:
    network = Plain().to("meta")
    assert next(make_private_network(network, allow_meta=True).parameters()).is_meta
    with pytest.raises(SightlineError, match=r"^Plain has no weights: a\.weight is on the meta"):
        make_private_network(network, allow_meta=False)


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
