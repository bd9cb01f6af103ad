"""Copies a network with everything that its modules hold, in the manner of `copy.deepcopy`.

`copy.deepcopy` keeps functions as they are, so that a hook of the network would act on the
original, and it refuses tensors of a graph, locks, files, generators. This copier treats each of
them on its own. It does follow the same protocols: `__deepcopy__` and `__reduce_ex__`.
"""

import copyreg
from collections import OrderedDict, deque
from collections.abc import Callable
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized
from torch.utils.data import DataLoader, Dataset

from sightline.errors import SightlineError, get_first_error_line
from sightline.models.network.copying.checks import make_scripted_module_error
from sightline.models.network.copying.containers import find_copy_function
from sightline.models.network.copying.held import (
    holds_module,
    is_running,
    is_served_by_thread,
    iterate_held_values,
)
from sightline.models.network.copying.hooks import (
    BACKWARD_HOOKS,
    FORWARD_HOOKS,
    HOOK_FLAGS,
    add_wrapper_hooks,
    describe_hook,
)
from sightline.models.network.copying.tensors import copy_parameter, copy_values
from sightline.models.network.copying.values import is_dataset, is_immutable

PARALLEL_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


class UncopyableError(Exception):
    """A value that holds modules of the network and can't be copied."""


# What passes through the copies of the objects around it.
_FINAL_ERRORS = (SightlineError, UncopyableError, MemoryError, torch.OutOfMemoryError)


class NetworkCopier:
    """Makes one copy of a network. What occurs several times in it is copied once.

    Args:
        network: the network, as messages name its modules.
        share_parameters: whether the copy's parameters are on the same storage.
    """

    def __init__(self, network: nn.Module, *, share_parameters: bool) -> None:
        self.title = type(network).__name__
        self.share_parameters = share_parameters
        self.paths = {id(module): path for path, module in network.named_modules()}
        # As `copy.deepcopy` keeps it: the id of an original → its copy, and under the memo's own id
        # the originals, whose ids must not be given to others.
        self.originals: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.memo[id(self.memo)] = self.originals
        self.own_copy_started: set[int] = set()
        # Hooks come last: most hold the network, which can then be had whole.
        self.pending_hooks: deque[Callable[[], None]] = deque()
        self.copied_globals: dict[int, dict[str, Any]] = {}

    def copy_value(self, value: Any) -> Any:
        """The copy of any value, or the value itself where that is as good."""
        if is_immutable(value):
            return value
        if id(value) in self.memo:
            return self.memo[id(value)]
        copied = self._make_copy(value)
        return self.remember_copy(value, copied)

    def remember_copy(self, original: Any, copied: Any) -> Any:
        """Notes which copy an original has, and returns the copy."""
        self.memo[id(original)] = copied
        self.originals.append(original)
        return copied

    def _make_copy(self, value: Any) -> Any:
        # A weak proxy of a module passes for a module, but its own type is known.
        copy_known_type = find_copy_function(value)
        if copy_known_type is not None:
            return copy_known_type(value, self)
        if isinstance(value, nn.Module):
            return self._copy_module(value)
        if isinstance(value, Tensor):
            return self._copy_tensor(value)
        if self._is_foreign_dataset(value) or is_served_by_thread(value):
            return value
        if is_running(value):
            return share_uncopyable(value, "it runs on its own")
        try:
            return self._copy_object(value)
        except _FINAL_ERRORS:
            raise
        except Exception as error:  # noqa: BLE001 - the object's own code may raise anything
            return share_uncopyable(value, get_first_error_line(error))

    def _is_foreign_dataset(self, value: object) -> bool:
        """Whether a value is data that the network reads, and no container of its modules."""
        if isinstance(value, (Dataset, DataLoader)):
            return True
        if not is_dataset(value):
            return False
        return not any(id(held) in self.paths for held in iterate_held_values(value))

    # ── modules ──

    def copy_network(self, network: nn.Module) -> nn.Module:
        """A copy of the network inside wrappers for several devices and for torch.compile."""
        copied = self._copy_unwrapped(network)
        while self.pending_hooks:
            copy_next_hooks = self.pending_hooks.popleft()
            copy_next_hooks()
        return copied

    def _copy_unwrapped(self, network: nn.Module) -> nn.Module:
        inside = find_wrapped_module(network)
        if inside is None:
            return self.copy_value(network)
        return self._replace_wrapper(network, self._copy_unwrapped(inside))

    def _replace_wrapper(self, wrapper: nn.Module, copied: nn.Module) -> nn.Module:
        """The copy of the module inside a wrapper, for the wrapper; it gets the wrapper's hooks."""
        hooks = {
            attribute: self._copy_attribute(wrapper, attribute, getattr(wrapper, attribute))
            for attribute in (*FORWARD_HOOKS, *HOOK_FLAGS)
        }
        self.pending_hooks.append(partial(add_wrapper_hooks, copied, hooks))
        return self.remember_copy(wrapper, copied)

    def _copy_module(self, module: nn.Module) -> nn.Module:
        if isinstance(module, torch.jit.ScriptModule):
            raise make_scripted_module_error()
        # A network may use `.module` of a DataParallel, which can run on one device as it is.
        inside = find_wrapped_module(module)
        if inside is not None and not isinstance(module, nn.DataParallel):
            return self._replace_wrapper(module, self.copy_value(inside))
        try:
            if isinstance(module, torch.fx.GraphModule) or is_parametrized(module):
                copied = self._copy_plain_module(module)
            elif hasattr(type(module), "__deepcopy__"):
                copied = self._copy_module_its_own_way(module)
            else:
                copied = self._copy_by_reduction(module)
        except _FINAL_ERRORS:
            raise
        except Exception as error:  # the module's own code may raise anything
            raise SightlineError(
                f"{self._describe_module(module)} can't be copied ({get_first_error_line(error)}); "
                "give a network that copy.deepcopy takes"
            ) from error
        if isinstance(copied, nn.DataParallel):
            copied.device_ids = []
        return copied

    def _copy_plain_module(self, module: nn.Module) -> nn.Module:
        """A copy of modules that refuse pickle, and whose `__deepcopy__` loses hooks."""
        copied = self.remember_copy(module, object.__new__(type(module)))
        vars(copied).update(self._copy_state(module, nn.Module.__getstate__(module)))
        return copied

    def _copy_module_its_own_way(self, module: Any) -> nn.Module:
        """A copy by the module's `__deepcopy__`, which gets the copies of all its attributes."""
        if id(module) not in self.own_copy_started:
            self.own_copy_started.add(id(module))
            for name, value in list(vars(module).items()):
                self._copy_attribute(module, name, value)
            if id(module) in self.memo:
                # One of the attributes holds the module.
                return self.memo[id(module)]
        copied = module.__deepcopy__(self.memo)
        if copied is module or not isinstance(copied, nn.Module):
            return self._copy_by_reduction(module)
        for attribute in (*FORWARD_HOOKS, *HOOK_FLAGS, *BACKWARD_HOOKS):
            vars(copied)[attribute] = self.copy_value(vars(module)[attribute])
        for name, parameter in module._parameters.items():
            if parameter is not None and copied._parameters.get(name) is not None:  # pyright: ignore
                copied._parameters[name] = self.copy_value(parameter)  # pyright: ignore
        # Compiled code of the original.
        vars(copied).pop("_compiled_call_impl", None)
        return copied

    def _copy_attribute(self, module: nn.Module, name: str, value: Any) -> Any:
        """The copy of a module's attribute. Raises SightlineError with its name."""
        if name in BACKWARD_HOOKS and id(value) not in self.memo:
            return self.remember_copy(value, OrderedDict())
        if name in FORWARD_HOOKS and id(value) not in self.memo:
            copied_hooks = self.remember_copy(value, OrderedDict())
            self.pending_hooks.append(
                partial(self._copy_hooks, module, FORWARD_HOOKS[name], value, copied_hooks)
            )
            return copied_hooks
        try:
            return self.copy_value(value)
        except UncopyableError as error:
            path = self.paths.get(id(module), type(module).__name__)
            attribute = ".".join(filter(None, ("net", path, name)))
            raise SightlineError(
                f"{self.title} can't be copied: {attribute} holds a module in {error}; remove it"
            ) from error

    def _copy_hooks(
        self, module: nn.Module, kind: str, hooks: dict[int, Any], copied_hooks: dict[int, Any]
    ) -> None:
        """Fills the dict of a copy's hooks. Raises SightlineError with the name of the hook."""
        for key, hook in hooks.items():
            try:
                copied_hooks[key] = self._copy_hook(hook)
            except UncopyableError as error:
                raise SightlineError(
                    f"{self.title} can't be copied: the {kind} {describe_hook(hook)} of "
                    f"{self._describe_module(module)} holds a module in {error}; remove the hook"
                ) from error

    def _copy_hook(self, hook: Any) -> Any:
        copied = self.copy_value(hook)
        call: Any = getattr(type(hook), "__call__", None)  # noqa: B004 - the method itself
        if not isinstance(call, FunctionType):
            return copied
        # The code of a hook's class may fill variables of the user's, as a function's may.
        copied_call = self.copy_value(call)
        return copied if copied_call is call else MethodType(copied_call, copied)

    def _describe_module(self, module: nn.Module) -> str:
        path = self.paths.get(id(module))
        return f"layer {path}" if path else type(module).__name__

    # ── tensors ──

    def _copy_tensor(self, tensor: Tensor) -> Tensor:
        if is_lazy(tensor):
            raise SightlineError(
                f"{self.title} holds a lazy weight without values; run it once on a batch first"
            )
        if isinstance(tensor, nn.Parameter):
            copied: Tensor = copy_parameter(tensor, self.memo, share_values=self.share_parameters)
        else:
            copied = copy_values(tensor, self.memo)
        self.remember_copy(tensor, copied)
        for name, value in vars(tensor).items():
            setattr(copied, name, self.copy_value(value))
        return copied

    # ── other objects ──

    def _copy_object(self, value: Any) -> Any:
        """A copy by the protocols of `copy.deepcopy`."""
        # Looked up in the class: an object with a `__getattr__` may have every attribute.
        if hasattr(type(value), "__deepcopy__"):
            return self._copy_object_its_own_way(value)
        return self._copy_by_reduction(value)

    def _copy_by_reduction(self, value: Any) -> Any:
        """A copy by the protocol of pickle: how to make the object, and its state."""
        reduce_type = copyreg.dispatch_table.get(type(value))
        reduced = reduce_type(value) if reduce_type is not None else value.__reduce_ex__(4)
        if isinstance(reduced, str):
            return value
        return self._rebuild_object(value, reduced)

    def _copy_object_its_own_way(self, value: Any) -> Any:
        """A copy by the object's `__deepcopy__`, which gets the copies of modules and tensors."""
        if id(value) not in self.own_copy_started:
            self.own_copy_started.add(id(value))
            for held in iterate_held_values(value):
                if isinstance(held, (nn.Module, Tensor, FunctionType)):
                    self.copy_value(held)
            if id(value) in self.memo:
                return self.memo[id(value)]
        return value.__deepcopy__(self.memo)

    def _rebuild_object(self, original: Any, reduced: tuple[Any, ...]) -> Any:
        """A new object by what the original's `__reduce_ex__` tells."""
        make, arguments = reduced[:2]
        state, items, pairs = (*reduced[2:], None, None, None)[:3]
        copied = make(*[self.copy_value(argument) for argument in arguments])
        self.remember_copy(original, copied)
        if state is not None:
            set_object_state(copied, self._copy_state(original, state))
        for item in items or ():
            copied.append(self.copy_value(item))
        for key, item in pairs or ():
            copied[self.copy_value(key)] = self.copy_value(item)
        return copied

    def _copy_state(self, original: Any, state: Any) -> Any:
        if not isinstance(original, nn.Module) or type(state) is not dict:
            return self.copy_value(state)
        attributes: dict[str, Any] = state
        return {
            name: self._copy_attribute(original, name, value) for name, value in attributes.items()
        }


def find_wrapped_module(module: nn.Module) -> nn.Module | None:
    """The module inside a wrapper for several devices or for torch.compile, None for any other."""
    if isinstance(module, PARALLEL_WRAPPERS):
        return module.module
    # A module that stands for another one in its `__getattr__` has no such child.
    return dict(module.named_children()).get("_orig_mod")


def unwrap_network(network: nn.Module) -> nn.Module:
    """The network inside any number of wrappers."""
    while (inside := find_wrapped_module(network)) is not None:
        network = inside
    return network


def set_object_state(value: Any, state: Any) -> None:
    """Gives a new object the state that `__reduce_ex__` told of another one."""
    if hasattr(type(value), "__setstate__"):
        value.__setstate__(state)
        return
    slots: dict[str, Any] | None = None
    if isinstance(state, tuple) and len(state) == 2:
        state, slots = state
    if state is not None:
        vars(value).update(state)
    for name, item in (slots or {}).items():
        setattr(value, name, item)


def share_uncopyable(value: Any, reason: str) -> Any:
    """A value that can't be copied, for the copy as well.

    Raises UncopyableError if it holds a module: the copy would act on the original's.
    """
    if holds_module(value):
        raise UncopyableError(f"{name_type(value)}, which can't be copied ({reason})")
    return value


def name_type(value: object) -> str:
    """A value's type with its article."""
    name = type(value).__name__
    article = "an" if name[0].lower() in "aeiou" else "a"
    return f"{article} {name}"
