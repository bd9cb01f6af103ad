"""Modules, tensors and threads are found wherever an object holds them."""

import functools
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from sightline.models.network.copying.held import (
    holds_module,
    holds_network_part,
    is_running,
    is_served_by_thread,
    iterate_held_values,
)


class Slotted:
    __slots__ = ("held",)

    def __init__(self, held: object) -> None:
        self.held = held


def make_closure(held: object) -> Callable[[], object]:
    return lambda: held


HOLDERS: dict[str, Callable[[Any], Any]] = {
    "itself": lambda held: held,
    "list in a dict": lambda held: {"a": [1, (held,)]},
    "dict key": lambda held: {held: 1},
    "slot": Slotted,
    "generator": lambda held: (held for _ in range(2)),
    "iterator": lambda held: iter([held]),
    "map": lambda held: map(print, [held]),
    "closure": make_closure,
    "default": lambda held: lambda x=held: x,
    "partial": lambda held: functools.partial(print, held),
    "thread": lambda held: threading.Thread(target=print, args=(held,)),
}


@pytest.mark.parametrize("kind", list(HOLDERS))
def test_what_objects_hold(kind: str) -> None:
    hold = HOLDERS[kind]
    layer = nn.ReLU()
    assert any(held is layer for held in iterate_held_values(hold(layer)))
    assert holds_module(hold(layer))
    assert not holds_module(hold(torch.ones(2)))
    assert holds_network_part(hold(torch.ones(2)))
    assert not holds_network_part(hold("text"))


def test_the_search_ends_in_circles_and_at_modules() -> None:
    layer = nn.Sequential(nn.ReLU())
    ring: list[Any] = [layer]
    ring.append(ring)
    held = list(iterate_held_values(ring))
    assert len(held) == 2
    assert layer in held


def test_objects_that_threads_serve() -> None:
    class Served:
        def __init__(self, held: object) -> None:
            self.held = held
            self.thread = threading.Thread(target=print)

    assert is_running(Served(None).thread)
    assert not is_running(Served(None))
    assert is_served_by_thread(Served([1]))
    assert not is_served_by_thread(Served([nn.ReLU()]))
    assert not is_served_by_thread(Slotted(1))
