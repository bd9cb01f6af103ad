"""Containers, references and locks of the copy are its own, with the same structure."""

import threading
import weakref
from collections import OrderedDict, UserDict, defaultdict, deque, namedtuple
from types import MappingProxyType
from typing import Any

import torch
from odd_networks import Plain

from sightline.models.network.copy import copy_network

Pair = namedtuple("Pair", ["layer", "values"])


def copy_attribute(network: Any, value: Any) -> tuple[Any, Any]:
    """The copy of a network, and of a value that is its attribute."""
    network.__dict__["value"] = value
    copied: Any = copy_network(network, share_parameters=True)
    assert copied.value is not value
    return copied, copied.value


def test_containers_keep_their_type_and_hold_copies() -> None:
    network = Plain()
    a = network.a
    values = [
        {a: [1], "a": a},
        [a, [a]],
        (a, 1),
        {a},
        frozenset({a}),
        deque([a], maxlen=2),
        OrderedDict(a=a),
        defaultdict(list, {1: [a]}),
        UserDict(a=a),
        Pair(a, [a]),
        MappingProxyType({"a": [a]}),
    ]
    copied, copies = copy_attribute(network, values)
    b = copied.a
    expected = [
        {b: [1], "a": b},
        [b, [b]],
        (b, 1),
        {b},
        frozenset({b}),
        deque([b], maxlen=2),
        OrderedDict(a=b),
        defaultdict(list, {1: [b]}),
        UserDict(a=b),
        Pair(b, [b]),
        MappingProxyType({"a": [b]}),
    ]
    assert copies == expected
    assert [*map(type, copies)] == [*map(type, values)]
    assert copies[5].maxlen == 2
    assert copies[7].default_factory is list


def test_a_tuple_of_immutable_values_is_the_same() -> None:
    network: Any = Plain()
    network.sizes = (3, (4, "a"))
    copied: Any = copy_network(network, share_parameters=True)
    assert copied.sizes is network.sizes


def test_containers_in_each_other() -> None:
    ring: list[Any] = []
    ring.append(({"ring": ring},))
    _, copied = copy_attribute(Plain(), ring)
    assert copied[0][0]["ring"] is copied


def test_weak_references_are_to_the_copy() -> None:
    network = Plain()
    references = [
        weakref.ref(network.a),
        weakref.WeakMethod(network.a.forward),
        weakref.WeakValueDictionary({"a": network.a}),
        weakref.WeakKeyDictionary({network.a: 1}),
        weakref.WeakSet([network.a]),
        weakref.proxy(network.a),
    ]
    copied, copies = copy_attribute(network, references)
    reference, method, values, keys, members, proxy = copies
    assert reference() is copied.a
    assert method().__self__ is copied.a
    assert values["a"] is copied.a
    assert list(keys) == [copied.a]
    assert list(members) == [copied.a]
    assert proxy.weight is copied.a.weight


def test_a_dead_weak_reference_stays_dead() -> None:
    reference = weakref.ref(Plain())
    network: Any = Plain()
    network.reference = reference
    copied: Any = copy_network(network, share_parameters=True)
    assert copied.reference() is None


def test_locks_are_new_and_free() -> None:
    lock = threading.Lock()
    reentrant = threading.RLock()
    condition = threading.Condition()
    with lock, reentrant, condition:
        _, copies = copy_attribute(Plain(), [lock, reentrant, condition, threading.Event()])
        assert copies[0].acquire(blocking=False)
        assert copies[1].acquire(blocking=False)
        assert copies[2].acquire(blocking=False)
        copies[2].release()
        copies[3].set()
    assert lock.acquire(blocking=False)


def test_what_a_thread_keeps_is_copied() -> None:
    network = Plain()
    kept = threading.local()
    kept.layer = network.a
    copied, copied_kept = copy_attribute(network, kept)
    assert copied_kept.layer is copied.a


def test_generators_go_on_with_the_same_numbers() -> None:
    generator = torch.Generator().manual_seed(4)
    torch.rand(3, generator=generator)
    _, copied = copy_attribute(Plain(), generator)
    numbers = torch.rand(3, generator=copied)
    assert torch.equal(numbers, torch.rand(3, generator=generator))
