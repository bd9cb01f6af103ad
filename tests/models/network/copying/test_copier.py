"""What a network holds in its attributes is copied, shared or refused by name."""

import logging
import socket
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from odd_networks import Plain, make_plain
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sightline.errors import SightlineError
from sightline.models.network.copy import copy_network


def copy_shared(network: nn.Module) -> Any:
    return copy_network(network, share_parameters=True)


def make_nested() -> Any:
    return nn.ModuleDict({"blocks": nn.Sequential(*(make_plain() for _ in range(3)))})


class Uncopyable:
    """Refuses to be copied, and holds a value."""

    def __init__(self, held: object) -> None:
        self.held = held

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("never\nas the second line says")

    def __call__(self, *_: Any) -> None:
        pass


# ── refusals ──


def test_an_attribute_that_can_not_be_copied_and_holds_a_module_is_named() -> None:
    network = make_nested()
    network.blocks[2].cache = [iter(layer for layer in list(network.blocks[2]))]
    next(network.blocks[2].cache[0])
    with pytest.raises(
        SightlineError,
        match=r"^ModuleDict can't be copied: net\.blocks\.2\.cache holds a module in a generator, "
        r"which can't be copied \(.*\); remove it$",
    ):
        copy_shared(network)


@pytest.mark.parametrize("kind", ["forward hook", "forward pre-hook"])
def test_a_hook_that_can_not_be_copied_is_named_with_its_layer(kind: str) -> None:
    network = make_nested()
    held = Uncopyable(network)

    def look_at(*_: Any) -> None:
        assert held

    layer = network.blocks[1][3]
    if kind == "forward hook":
        layer.register_forward_hook(look_at)
    else:
        layer.register_forward_pre_hook(look_at)
    with pytest.raises(
        SightlineError,
        match=rf"^ModuleDict can't be copied: the {kind} look_at of layer blocks\.1\.3 holds a "
        r"module in an Uncopyable, which can't be copied \(never\); remove the hook$",
    ):
        copy_shared(network)


def test_modules_that_can_not_be_copied_are_refused() -> None:
    class Stubborn(nn.Module):
        def __deepcopy__(self, memo: dict[int, Any]) -> None:
            raise TypeError("no copies")

    with pytest.raises(SightlineError, match=r"^Stubborn can't be copied \(no copies\); give a "):
        copy_shared(Stubborn())
    with pytest.raises(SightlineError, match=r"^layer 0\.1 can't be copied \(no copies\); give a"):
        copy_shared(nn.Sequential(nn.Sequential(nn.ReLU(), Stubborn())))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_scripted_modules_are_refused_wherever_they_are() -> None:
    network: Any = Plain()
    network.spare = {"layers": [torch.jit.script(nn.Linear(2, 2))]}
    with pytest.raises(SightlineError, match=r"^a scripted module can't be looked into; give the"):
        copy_shared(network)


# ── what stays the same ──


def test_what_can_not_be_copied_and_holds_no_module_is_shared() -> None:
    network: Any = Plain()
    network.refusing = Uncopyable(torch.ones(2))
    network.generator = (number for number in range(3))
    network.logger = logging.getLogger("odd network")
    network.thread = threading.Thread(target=print)
    hook = Uncopyable(None)
    network.a.register_forward_hook(hook)
    with open(__file__) as file, socket.socket() as connection, ThreadPoolExecutor(1) as pool:
        network.held = [file, connection, pool]
        copied = copy_shared(network)
    assert copied.refusing is network.refusing
    assert copied.generator is network.generator
    assert copied.logger is network.logger
    assert copied.thread is network.thread
    assert copied.held is not network.held
    assert [*map(id, copied.held)] == [*map(id, network.held)]
    assert list(copied.a._forward_hooks.values()) == [hook]


def test_an_object_that_a_thread_serves_is_shared_as_a_whole() -> None:
    class Writer:
        def __init__(self) -> None:
            self.lines: list[str] = []
            self.thread = threading.Thread(target=self.lines.clear)

    network: Any = Plain()
    network.writer = Writer()
    assert copy_shared(network).writer is network.writer


class Pictures:
    """Data of its own kind."""

    def __init__(self, held: object) -> None:
        self.held = held

    def __getitem__(self, index: int) -> int:
        return index

    def __len__(self) -> int:
        return 3


def test_data_sets_are_shared() -> None:
    network: Any = Plain()
    dataset = TensorDataset(torch.rand(3, 2))
    network.data = [dataset, DataLoader(dataset), Pictures(nn.Identity())]
    copied = copy_shared(network)
    assert [*map(id, copied.data)] == [*map(id, network.data)]


def test_a_sequence_of_the_networks_own_layers_is_no_data() -> None:
    network: Any = Plain()
    network.layers = Pictures([network.a])
    copied = copy_shared(network)
    assert copied.layers.held == [copied.a]


# ── what is copied ──


def test_modules_outside_of_the_tree_are_copied() -> None:
    network: Any = Plain()
    network.spare = [nn.Linear(2, 3)]
    copied = copy_shared(network)
    assert copied.spare[0] is not network.spare[0]
    assert copied.spare[0].weight.data_ptr() == network.spare[0].weight.data_ptr()
    assert not copied.spare[0].weight.requires_grad


def test_attributes_of_parameters_are_copied() -> None:
    class Marked(nn.Parameter):
        pass

    network: Any = Plain()
    network.f.weight = Marked(torch.ones(5, 4))
    network.f.weight.groups = [[1, 2]]
    weight = copy_shared(network).f.weight
    assert type(weight) is Marked
    assert weight.groups == [[1, 2]]
    assert weight.groups is not network.f.weight.groups
    assert weight.data_ptr() == network.f.weight.data_ptr()


def test_objects_with_any_attribute_are_copied() -> None:
    class Settings(dict[str, Any]):
        __getattr__ = dict.get

    class Delegating(nn.Module):
        def __init__(self, inside: nn.Module) -> None:
            super().__init__()
            self.inside = inside
            self.settings = Settings(layers=[inside])

        def __getattr__(self, name: str) -> Any:
            if name in ("inside", "_modules"):
                return super().__getattr__(name)
            return getattr(super().__getattr__("inside"), name)

    copied = copy_shared(Delegating(torch.compile(Plain())))  # type: ignore[arg-type]
    assert type(copied) is Delegating
    assert type(copied.inside) is Plain
    assert copied.settings == {"layers": [copied.inside]}


def test_slots_and_state_methods() -> None:
    class Slotted:
        __slots__ = ("layer", "name")

        def __init__(self, layer: nn.Module) -> None:
            self.layer = layer
            self.name = "first"

    class Counted:
        def __init__(self) -> None:
            self.count = 1

        def __setstate__(self, state: dict[str, int]) -> None:
            self.count = state["count"] + 1

    network: Any = Plain()
    network.slotted = Slotted(network.a)
    network.counted = Counted()
    copied = copy_shared(network)
    assert copied.slotted.layer is copied.a
    assert copied.slotted.name == "first"
    assert copied.counted.count == 2


def test_an_object_with_its_own_deepcopy_gets_the_copied_modules() -> None:
    class Holder:
        def __init__(self, layer: nn.Module) -> None:
            self.layer = layer
            self.owner = weakref.ref(layer)

        def __deepcopy__(self, memo: dict[int, Any]) -> "Holder":
            return Holder(memo[id(self.layer)])

    network: Any = Plain()
    network.holder = Holder(network.a)
    copied = copy_shared(network)
    assert copied.holder.layer is copied.a
