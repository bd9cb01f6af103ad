"""The hooks of a module: which ones its private copy has, and what they are called in messages."""

from collections import OrderedDict
from functools import partial
from typing import Any

from torch import nn

FORWARD_HOOKS = {"_forward_pre_hooks": "forward pre-hook", "_forward_hooks": "forward hook"}

# A network's function is its forward pass, and Sightline shows the gradients of that function. What
# a backward hook does is part of training (it clips, reverses, records), so the copy has none:
# otherwise a gradient would be another one than that of the score, and what the user records during
# training would be mixed with Sightline's own passes.
BACKWARD_HOOKS = ("_backward_pre_hooks", "_backward_hooks")

HOOK_FLAGS = (
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
)


def add_wrapper_hooks(module: nn.Module, hooks: dict[str, OrderedDict[int, Any]]) -> None:
    """Adds the hooks of a wrapper to the module that was inside, in the order of the wrapper's.

    `hooks` are the wrapper's forward hooks and flags by attribute, already copied.
    """
    for attribute, wrapper_hooks in hooks.items():
        module_hooks: OrderedDict[int, Any] = getattr(module, attribute)
        module_hooks.update(wrapper_hooks)
        if attribute == "_forward_pre_hooks":
            # A wrapper's are called before those of the module inside.
            for key in reversed(wrapper_hooks):
                module_hooks.move_to_end(key, last=False)


def describe_hook(hook: Any) -> str:
    """A hook's name: that of its function or its class."""
    while isinstance(hook, partial):
        hook = hook.func
    name = getattr(hook, "__qualname__", type(hook).__qualname__)
    return name.rpartition("<locals>.")[2]
