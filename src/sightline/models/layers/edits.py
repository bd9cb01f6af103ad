"""Calls of a network whose output is replaced, whenever and however the network runs.

The hooks that do it belong to a private copy. They come before those of a `Capture`, which records
what the network goes on with. A functional step has no hook: `FunctionalStepMode` asks here.
"""

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, cast

from torch import Tensor, nn

Edit = Callable[[Tensor], Tensor]

# The path of a module or of a functional step (`layer1.0/relu`), and which of its calls, from 0.
CallKey = tuple[str, int]


class CallEdits:
    """The edits of a network's calls. It is a forward pre-hook of the network itself.

    A pass counts the calls of each module from the start. Two passes at the same time would count
    each other's, so a network with edits runs in one thread at a time, as `Model.lock` has it.

    Args:
        output_edits: what replaces the output of each call.
        input_edits: what replaces the first tensor that a module's call is given.
    """

    def __init__(
        self,
        output_edits: Mapping[CallKey, Edit],
        input_edits: Mapping[CallKey, Edit] | None = None,
    ) -> None:
        self.output_edits = dict(output_edits)
        self.input_edits = dict(input_edits or {})
        self.call_counts: Counter[str] = Counter()
        self.input_counts: Counter[str] = Counter()

    def attach(self, network: nn.Module) -> list[Any]:
        """Hooks the edits to a network. Returns the handles that remove the hooks again."""
        modules = dict(network.named_modules())
        handles = [network.register_forward_pre_hook(self, prepend=True)]
        for path in dict.fromkeys(path for path, _ in self.output_edits):
            if path in modules:
                hook = OutputEditHook(self, path)
                handles.append(modules[path].register_forward_hook(hook))
        for path in dict.fromkeys(path for path, _ in self.input_edits):
            hook = InputEditHook(self, path)
            handles.append(modules[path].register_forward_pre_hook(hook, with_kwargs=True))
        return handles

    def __call__(self, network: nn.Module, args: Any) -> None:
        """Begins to count: the network starts a pass."""
        self.call_counts.clear()
        self.input_counts.clear()

    def edit_output(self, path: str, output: Any) -> Any:
        """What the network goes on with after a call of this path."""
        key = (path, self.call_counts[path])
        self.call_counts[path] += 1
        edit = self.output_edits.get(key)
        return output if edit is None else replace_first_tensor(output, edit)

    def edit_input(
        self, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What a module's call is given in place of these arguments."""
        key = (path, self.input_counts[path])
        self.input_counts[path] += 1
        edit = self.input_edits.get(key)
        if edit is None:
            return args, kwargs
        if args:
            return cast("tuple[Any, ...]", replace_first_tensor(args, edit)), kwargs
        return args, cast("dict[str, Any]", replace_first_tensor(kwargs, edit))

    def has_edit_of(self, path: str) -> bool:
        """Whether some call of this path has its output edited."""
        return any(edited_path == path for edited_path, _ in self.output_edits)

    def has_step_edits(self, network: nn.Module) -> bool:
        """Whether some edits are of functional steps, which no module's hook reaches."""
        modules = dict(network.named_modules())
        return any(path not in modules for path, _ in self.output_edits)


class OutputEditHook:
    """The forward hook of a module whose output is edited."""

    def __init__(self, edits: CallEdits, path: str) -> None:
        self.edits = edits
        self.path = path

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        edited = self.edits.edit_output(self.path, output)
        is_in_place = getattr(module, "inplace", False) is True and bool(args)
        if is_in_place and output is args[0] and edited is not output:
            return output.copy_(edited)  # by which the network may go on
        return edited


class InputEditHook:
    """The forward pre-hook of a module whose input is edited."""

    def __init__(self, edits: CallEdits, path: str) -> None:
        self.edits = edits
        self.path = path

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.edits.edit_input(self.path, args, kwargs)


def find_call_edits(network: nn.Module) -> list[CallEdits]:
    """The edits that are attached to a network, the earliest first."""
    # `attach` puts each before those that were there.
    hooks = reversed(vars(network)["_forward_pre_hooks"].values())
    return [hook for hook in hooks if isinstance(hook, CallEdits)]


def edit_step_output(edits: list[CallEdits], step_path: str, output: Any) -> Any:
    """What the network goes on with after a functional step, such as `layer1.0/relu`."""
    for call_edits in edits:
        output = call_edits.edit_output(step_path, output)
    return output


def replace_first_tensor(value: Any, edit: Edit) -> Any:
    """The value with its first tensor edited: that itself, or one in a tuple, list or dict."""
    if isinstance(value, Tensor):
        return edit(value)
    if isinstance(value, Mapping):
        return _replace_in_mapping(cast("Mapping[Any, Any]", value), edit)
    if not isinstance(value, (tuple, list)):
        return value
    items = list(cast("list[Any]", value))
    for index, item in enumerate(items):
        if isinstance(item, Tensor):
            items[index] = edit(item)
            break
    if hasattr(value, "_fields"):  # a named tuple
        return type(value)(*items)
    return type(value)(items)


def _replace_in_mapping(value: Mapping[Any, Any], edit: Edit) -> Mapping[Any, Any]:
    """A copy of the same type, so that the outputs of libraries keep their attributes."""
    edited: Any = copy.copy(value)
    for key, item in value.items():
        if isinstance(item, Tensor):
            edited[key] = edit(item)
            break
    return edited
