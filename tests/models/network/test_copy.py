"""The private copy does what the network does, shares its parameters, and changes nothing of it."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_close
from network_snapshots import take_full_snapshot
from odd_networks import SIDE, Checkpointed, odd_networks
from torch import nn
from torch.nn.utils import parametrizations, prune

import sightline as sl
from sightline.models.network.copy import copy_network, make_private_network
from sightline.models.overrides.checkpointing import disable_checkpointing

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


class GoesOnInPlace(nn.Module):
    """Reads what a module wrote over its input, and by default throws away what it returns."""

    def __init__(self, *, reads_input: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.act = nn.LeakyReLU(0.1, inplace=True)
        self.head = nn.Linear(6, 4)
        self.reads_input = reads_input

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.norm(self.conv(x))
        activated = self.act(maps)
        return self.head((maps if self.reads_input else activated).mean((2, 3)))


@pytest.mark.parametrize("reads_input", [True, False])
@pytest.mark.parametrize("is_plain", [True, False])
def test_networks_that_go_on_by_what_was_written_in_place(
    reads_input: bool, is_plain: bool
) -> None:
    network = GoesOnInPlace(reads_input=reads_input).eval()
    model = sl.load(network, size=(12, 10))
    if is_plain:
        model.use_plain_layout()
    leaves = [IMAGE.clone().requires_grad_(), IMAGE.clone().requires_grad_()]
    logits = model.logits(leaves[0])
    expected = network(model.normalize(leaves[1]))
    assert_close(logits.detach(), expected.detach())
    gradients = [
        torch.autograd.grad(each[:, 1].sum(), leaf)[0]
        for each, leaf in zip((logits, expected), leaves, strict=True)
    ]
    assert_close(*gradients)
    assert model.findings.notes == ()
    # Where it makes no difference, features are kept.
    assert model.network.get_submodule("act").inplace is reads_input  # type: ignore[union-attr]
    assert network.act.inplace is True
    with torch.no_grad():
        maps = network.conv(model.normalize(IMAGE))
        assert_close(model.features(IMAGE, ["conv"])["conv"], maps)
        for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(copied.logits(IMAGE), model.logits(IMAGE))
        ablated = model.ablated({"conv": [1]})
        maps[:, 1] = 0
        activated = network.act(network.norm(maps))
        assert_close(ablated.logits(IMAGE), network.head(activated.mean((2, 3))))


def test_parameters_are_shared_and_buffers_are_not() -> None:
    network = make_network()
    private = make_private_network(network)
    copied = private.state_dict(keep_vars=True)
    assert list(copied) == list(network.state_dict())
    for name, value in network.state_dict(keep_vars=True).items():
        assert copied[name] is not value
        assert type(copied[name]) is type(value)
        is_parameter = isinstance(value, nn.Parameter)
        assert (copied[name].data_ptr() == value.data_ptr()) == is_parameter
        assert torch.equal(copied[name], value)
    with torch.no_grad():
        network[0].weight.add_(0.1)
    torch.testing.assert_close(private(IMAGE), network(IMAGE))


def test_a_copy_on_its_own_weights_shares_nothing() -> None:
    network = make_network()
    copied = copy_network(network, share_parameters=False)
    expected = network(IMAGE)
    pointers = {tensor.data_ptr() for tensor in network.state_dict().values()}
    for tensor in copied.state_dict().values():
        assert tensor.data_ptr() not in pointers
    assert not any(parameter.requires_grad for parameter in copied.parameters())
    torch.testing.assert_close(copied(IMAGE), expected)


def test_tied_weights_of_a_copy_stay_tied() -> None:
    network = odd_networks["tied_weights"]()
    copied: Any = copy_network(network, share_parameters=False)
    assert copied.again is copied.f
    assert copied.same_weight.weight is copied.f.weight
    assert copied.same_storage.weight.data_ptr() == copied.f.weight.data_ptr()
    assert copied.f.weight.data_ptr() != network.f.weight.data_ptr()  # type: ignore[union-attr]


ODD_IMAGE = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("share_parameters", [True, False])
@pytest.mark.parametrize("name", list(odd_networks))
def test_odd_networks_run_in_a_copy_and_stay_as_they_are(name: str, share_parameters: bool) -> None:
    network = odd_networks[name]()
    snapshot = take_full_snapshot(network)
    copied = copy_network(network, share_parameters=share_parameters).eval()
    output = copied(ODD_IMAGE)
    assert take_full_snapshot(network) == snapshot
    assert not {id(module) for module in copied.modules()} & {
        id(module) for module in network.modules()
    }
    # Runs last: it changes what the network keeps.
    torch.testing.assert_close(output, network(ODD_IMAGE))


@pytest.mark.parametrize("name", list(odd_networks))
def test_methods_leave_odd_networks_as_they_are(name: str) -> None:
    network = odd_networks[name]()
    snapshot = take_full_snapshot(network)
    model = sl.load(network, size=SIDE)
    sl.saliency(model, ODD_IMAGE[:1])
    sl.synthesis(model, sl.logit(1), steps=2)
    assert take_full_snapshot(network) == snapshot


@pytest.mark.parametrize(
    "name", ["hook_with_closure", "kept_activations", "parametrized", "tied_weights"]
)
def test_randomized_copies_leave_odd_networks_as_they_are(name: str) -> None:
    network = odd_networks[name]()
    snapshot = take_full_snapshot(network)
    sl.trust(sl.load(network, size=SIDE), ODD_IMAGE[:1], steps=2, samples=4, stages=2)
    assert take_full_snapshot(network) == snapshot


@pytest.mark.parametrize("share_parameters", [True, False])
def test_a_copy_that_draws_weights_leaves_the_generator(share_parameters: bool) -> None:
    class Drawn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def __deepcopy__(self, memo: dict[int, Any]) -> "Drawn":
            copied = Drawn()
            copied.load_state_dict(self.state_dict())
            return copied

    network = Drawn()
    state = torch.get_rng_state()
    copied = copy_network(network, share_parameters=share_parameters)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(copied.get_parameter("fc.weight"), network.fc.weight)


def test_a_copy_of_a_copy() -> None:
    network = odd_networks["hook_with_closure"]()
    first = make_private_network(network)
    second = copy_network(first, share_parameters=False)
    output = second(ODD_IMAGE)
    assert first.kept == {}
    torch.testing.assert_close(output, network(ODD_IMAGE))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointed_networks_have_gradients_in_the_copy(use_reentrant: bool) -> None:
    network = Checkpointed(use_reentrant)
    private = make_private_network(network)
    image = ODD_IMAGE.clone().requires_grad_()
    with disable_checkpointing():
        output = private(image)
    (gradient,) = torch.autograd.grad(output.square().sum(), image)
    network(image).square().sum().backward()
    assert image.grad is not None
    torch.testing.assert_close(gradient, image.grad)


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


def test_backward_hooks_do_not_run_and_stay_with_the_caller() -> None:
    def fail(*_: Any) -> None:
        raise AssertionError

    network = make_network()
    network[3].register_full_backward_hook(fail)
    network[4].register_full_backward_pre_hook(fail)
    hooks = list_hooks(network)
    image = IMAGE.clone().requires_grad_()
    private = make_private_network(network)
    private(image).sum().backward()
    assert list_hooks(private) == []
    assert list_hooks(network) == hooks
    assert len(hooks) == 2


def test_attributes_that_are_tensors_are_copied_out_of_the_graph() -> None:
    network: Any = make_network()
    network.scale = network[0].weight.mean((1, 2, 3)) * 2
    private: Any = make_private_network(network)
    assert private.scale.grad_fn is None
    assert private.scale.data_ptr() != network.scale.data_ptr()
    assert torch.equal(private.scale, network.scale)


def test_compiled_parts_run_as_they_are_written() -> None:
    network: Any = make_network()
    expected = network(IMAGE)
    network[0] = torch.compile(network[0])
    network[0].register_forward_hook(lambda _m, _i, o: o - 1)
    network[0].register_forward_pre_hook(lambda _m, a: a[0] * 1)
    network[5].forward = torch.compile(network[5].forward)
    network.compile()
    private: Any = make_private_network(network)
    assert type(private[0]) is nn.Conv2d
    private[0]._forward_hooks.popitem()
    torch.testing.assert_close(private(IMAGE), expected)


def test_hooks_of_wrappers_run_around_those_of_the_network() -> None:
    network = make_network()
    expected = network(IMAGE + 1) * 2 + 3
    network.register_forward_hook(lambda _m, _i, o: o * 2)
    network.register_forward_pre_hook(lambda _m, a: a[0] * 2 + 1)
    wrapped = nn.DataParallel(network)
    wrapped.register_forward_hook(lambda _m, _i, o: o + 3)
    wrapped.register_forward_pre_hook(lambda _m, a: a[0] / 2)
    torch.testing.assert_close(make_private_network(wrapped)(IMAGE), expected)


def test_parameters_of_inference_mode_can_be_differentiated_through() -> None:
    with torch.inference_mode():
        network = make_network()
    image = IMAGE.clone().requires_grad_()
    private = make_private_network(network)
    private(image).sum().backward()
    assert image.grad is not None


def test_a_copy_made_in_inference_mode_can_be_differentiated_through() -> None:
    network = make_network()
    with torch.inference_mode():
        private = make_private_network(network)
    image = IMAGE.clone().requires_grad_()
    private(image).sum().backward()
    assert image.grad is not None


def test_layers_that_change_weights_with_their_mode_change_their_own() -> None:
    """As LoRA's layers do, which add their low-rank weights for evaluation."""

    class Adapted(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 5)
            self.change = nn.Parameter(torch.ones(5, 4))

        def train(self, mode: bool = True) -> "Adapted":
            if self.training and not mode:
                self.weight.data += self.change
            return super().train(mode)

    network = make_network()
    network[5] = Adapted()
    network.train()
    snapshot = take_full_snapshot(network)
    private: Any = make_private_network(network)
    assert take_full_snapshot(network) == snapshot
    assert torch.equal(private[5].weight, network[5].weight + 1)


def test_exported_networks() -> None:
    network = make_network()
    exported = torch.export.export(network, (IMAGE,)).module()
    torch.testing.assert_close(make_private_network(exported)(IMAGE), network(IMAGE))
