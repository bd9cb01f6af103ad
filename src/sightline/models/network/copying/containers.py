"""Copies of Python's own containers and references, and of what `copy.deepcopy` can't copy."""

import functools
import threading
import weakref
from collections.abc import Callable
from types import (
    BuiltinMethodType,
    CellType,
    FunctionType,
    MappingProxyType,
    MethodType,
    MethodWrapperType,
)
from typing import Any

import torch

from sightline.models.network.copying.functions import (
    copy_bound_builtin,
    copy_cached_function,
    copy_cell,
    copy_function,
    copy_method,
)
from sightline.models.network.copying.tensors import copy_generator
from sightline.models.network.copying.values import Copier

CopyFunction = Callable[[Any, Copier], Any]


def find_copy_function(value: object) -> CopyFunction | None:
    """The function that copies values of exactly this type, or None for any other type."""
    return _COPY_FUNCTIONS.get(type(value))


def copy_dict(value: dict[Any, Any], copier: Copier) -> dict[Any, Any]:
    """A dict of copies, keys as well: they may be modules."""
    copied = copier.remember_copy(value, {})
    for key, item in list(value.items()):
        copied[copier.copy_value(key)] = copier.copy_value(item)
    return copied


def copy_list(value: list[Any], copier: Copier) -> list[Any]:
    """A list of copies."""
    copied = copier.remember_copy(value, [])
    for item in list(value):
        copied.append(copier.copy_value(item))
    return copied


def copy_tuple(value: tuple[Any, ...], copier: Copier) -> tuple[Any, ...]:
    """A tuple of copies, or the same one where all items are the same."""
    items = [copier.copy_value(item) for item in value]
    if id(value) in copier.memo:
        # One of the items holds the tuple.
        return copier.memo[id(value)]
    if all(item is original for item, original in zip(items, value, strict=True)):
        return value
    return tuple(items)


def copy_read_only_dict(value: MappingProxyType[Any, Any], copier: Copier) -> Any:
    """A read-only view of a dict of copies."""
    return MappingProxyType(copy_dict(dict(value), copier))


def copy_weak_reference(reference: Any, copier: Copier) -> Any:
    """A weak reference to the copy, or the same one where nothing is left."""
    referent = reference()
    if referent is None:
        return reference
    return type(reference)(copier.copy_value(referent))


def copy_weak_proxy(proxy: Any, copier: Copier) -> Any:
    """A weak proxy of the copy."""
    # There is no other way to what a proxy stands for than a method bound to it.
    referent = proxy.__repr__.__self__
    return weakref.proxy(copier.copy_value(referent))


def copy_weak_dict(value: Any, copier: Copier) -> Any:
    """A dict with weak keys or values, of copies."""
    return type(value)(copy_dict(dict(value), copier))


def copy_weak_set(value: Any, copier: Copier) -> Any:
    """A set that holds copies weakly."""
    return type(value)(copy_list(list(value), copier))


def copy_thread_local(value: threading.local, copier: Copier) -> threading.local:
    """A thread-local object with copies of this thread's attributes."""
    copied = copier.remember_copy(value, threading.local())
    vars(copied).update(copier.copy_value(vars(value)))
    return copied


_COPY_FUNCTIONS: dict[type, CopyFunction] = {
    dict: copy_dict,
    list: copy_list,
    tuple: copy_tuple,
    MappingProxyType: copy_read_only_dict,
    FunctionType: copy_function,
    CellType: copy_cell,
    MethodType: copy_method,
    BuiltinMethodType: copy_bound_builtin,
    MethodWrapperType: copy_bound_builtin,
    type(functools.lru_cache(len)): copy_cached_function,
    weakref.ref: copy_weak_reference,
    weakref.WeakMethod: copy_weak_reference,
    weakref.ProxyType: copy_weak_proxy,
    weakref.CallableProxyType: copy_weak_proxy,
    weakref.WeakKeyDictionary: copy_weak_dict,
    weakref.WeakValueDictionary: copy_weak_dict,
    weakref.WeakSet: copy_weak_set,
    threading.local: copy_thread_local,
    # A lock that somebody holds just now must not be held for ever in the copy.
    type(threading.Lock()): lambda _lock, _copier: threading.Lock(),
    type(threading.RLock()): lambda _lock, _copier: threading.RLock(),
    torch.Generator: lambda generator, _copier: copy_generator(generator),
}
