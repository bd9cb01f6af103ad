"""Functions are rebuilt around copies of what they hold, or stay the same if they hold nothing."""

import functools
from typing import Any

import pytest
import torch
from odd_networks import SIDE, Plain
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.models.network.copy import copy_network
from sightline.models.network.copying.functions import (
    contains_global_assignment,
    list_global_names,
    needs_copy,
)

IMAGE = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))

# What hooks reach as they do in a script or a notebook: through global variables.
watched: dict[str, Tensor] = {}
global_network: Any = None
call_count = 0


def copy_shared(network: nn.Module) -> Any:
    return copy_network(network, share_parameters=True)


def watch_output(_module: Any, _args: Any, output: Tensor) -> None:
    watched["last"] = output


def watch_through_another(_module: Any, _args: Any, output: Tensor) -> None:
    watch_output(_module, _args, output)


def count_calls(*_: Any) -> None:
    global call_count  # noqa: PLW0603 - as hooks of notebooks do
    call_count += 1


class Watcher:
    """Watches by a method, or when it is called."""

    def __call__(self, _module: Any, _args: Any, output: Tensor) -> None:
        watched["last"] = output

    def watch(self, _module: Any, _args: Any, output: Tensor) -> None:
        watched["last"] = output


@pytest.mark.parametrize(
    "hook",
    [watch_output, watch_through_another, Watcher(), Watcher().watch, count_calls],
    ids=["function", "two functions", "object", "method", "counter"],
)
def test_global_variables_of_the_user_stay_as_they_are(hook: Any) -> None:
    network = Plain()
    network.a.register_forward_hook(hook)
    watched.clear()
    before = call_count
    torch.testing.assert_close(copy_shared(network)(IMAGE), Plain.forward(network, IMAGE) * 1)
    # The network itself ran once, for the comparison.
    assert call_count - before == (hook is count_calls)
    assert len(watched) == (hook is not count_calls)


def test_variables_of_an_outer_function_stay_as_they_are() -> None:
    count = 0
    outputs: list[Tensor] = []

    def watch(_module: Any, _args: Any, output: Tensor) -> None:
        nonlocal count
        count += 1
        outputs.append(output)

    network = Plain()
    network.a.register_forward_hook(watch)
    copy_shared(network)(IMAGE)
    assert (count, outputs) == (0, [])


def test_a_hook_that_reaches_the_network_as_a_global_acts_on_the_copy() -> None:
    global global_network  # noqa: PLW0603 - as a notebook does
    global_network = Plain()
    global_network.kept = {}
    global_network.a.register_forward_hook(lambda _m, _i, o: global_network.kept.update(a=o))
    copied = copy_shared(global_network)
    copied(IMAGE)
    assert global_network.kept == {}
    assert list(copied.kept) == ["a"]


def test_functions_share_their_variables_in_the_copy_as_well() -> None:
    def make_pair() -> tuple[Any, Any]:
        value = 1

        def set_value(number: int) -> None:
            nonlocal value
            value = number

        return set_value, lambda: value

    network: Any = Plain()
    network.set_value, network.get_value = make_pair()
    copied = copy_shared(network)
    copied.set_value(5)
    assert (network.get_value(), copied.get_value()) == (1, 5)


def test_recursive_functions() -> None:
    network: Any = Plain()

    def add_up(count: int) -> Tensor:
        return network.f.bias * 0 + (1 if count == 0 else 1 + add_up(count - 1))

    network.add_up = add_up
    copied = copy_shared(network)
    copied.f.bias = nn.Parameter(torch.zeros(3))
    assert copied.add_up(3).tolist() == [4.0, 4.0, 4.0]


def test_cached_methods_are_those_of_the_copy() -> None:
    network: Any = Plain()
    network.sum_bias = functools.lru_cache(maxsize=3)(lambda: network.f.bias.sum() * 1)
    network.sum_bias()
    copied = copy_shared(network)
    copied.f.bias = nn.Parameter(torch.ones(5))
    assert copied.sum_bias().item() == 5
    assert copied.sum_bias.cache_parameters()["maxsize"] == 3


def test_signatures_and_names_are_kept() -> None:
    network: Any = Plain()

    def scale(x: Tensor, factor: Tensor = network.f.bias, *, shift: float = 1) -> Tensor:
        """Scales."""
        return x * factor + shift

    scale.layers = [network.a]  # type: ignore[attr-defined]
    network.scale = scale
    copied = copy_shared(network)
    assert copied.scale is not scale
    assert copied.scale.__qualname__ == scale.__qualname__
    assert copied.scale.__doc__ == "Scales."
    assert copied.scale.__annotations__ == scale.__annotations__
    assert copied.scale.__defaults__ == (copied.f.bias,)
    assert copied.scale.__kwdefaults__ == {"shift": 1}
    assert copied.scale.layers == [copied.a]


def test_functions_without_values_of_their_own_stay_the_same() -> None:
    network: Any = Plain()
    network.functions = [F.relu, torch.relu, len, lambda x: x * SIDE]
    copied = copy_shared(network)
    assert [*map(id, copied.functions)] == [*map(id, network.functions)]


def test_builtin_methods_are_bound_to_the_copy() -> None:
    network: Any = Plain()
    network.kept = []
    network.keep = network.kept.append
    network.read = network.kept.__getitem__
    copied = copy_shared(network)
    copied.keep(3)
    assert network.kept == []
    assert copied.read(0) == 3


def test_what_needs_a_copy() -> None:
    container: list[int] = []
    number = 3
    assert needs_copy(lambda: container)
    assert needs_copy(lambda: number)
    assert needs_copy((1, (lambda: container,)))
    assert needs_copy(container.append)
    assert not needs_copy(lambda: SIDE)
    assert not needs_copy((1, "a", F.relu, torch.float32, nn.Linear))
    assert not needs_copy(torch.relu)


def test_names_in_code_are_found_in_inner_functions_too() -> None:
    def outer() -> Any:
        return lambda: watched

    assert "watched" in list_global_names(outer.__code__)
    assert "update" not in list_global_names((lambda: watched.update).__code__)
    assert contains_global_assignment(count_calls.__code__)
    assert not contains_global_assignment(outer.__code__)
