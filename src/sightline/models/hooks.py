"""One forward pass, watched: the outputs of chosen module calls, and an end as soon as all are seen."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

core: Any = torch._C


@dataclass(frozen=True)
class Layer:
    """One module call that gives a tensor: its path (`:1` for a second call), its kind, its output's shape without the batch, a human name."""

    name: str
    kind: str
    shape: tuple[int, ...]
    alias: str = ""

    @property
    def is_spatial(self) -> bool:
        """Whether the output is channels × height × width with more than one position."""
        return len(self.shape) == 3 and self.shape[1] * self.shape[2] > 1


class StopForwardPass(Exception):  # noqa: N818 - not an error: it ends a forward pass once all wanted layers are seen
    """Ends a truncated forward pass."""


class Capture:
    """Watches the module calls `wanted` (`relu`, `relu:1` for a second call, `fc:in` for an input) of a network.

    `copied` are those whose output a later in-place operation overwrites: there the network goes on with a copy.
    With `whole` the pass runs to its end, else it ends with the last wanted call. `found` holds the tensors. The output of the wanted
    call `leaf`, if it is a single tensor, becomes a variable without a history, for gradients that need not reach further back.
    `seen` is told each tensor when it is there, before the network goes on.
    """

    def __init__(
        self,
        network: nn.Module,
        wanted_calls: Iterable[str],
        *,
        copied_calls: Collection[str] = (),
        run_to_end: bool = False,
        leaf: str | None = None,
        on_layer: Callable[[str, Tensor], object] | None = None,
    ) -> None:
        (
            self.network,
            self.wanted_calls,
            self.copied_calls,
            self.run_to_end,
            self.leaf,
            self.on_layer,
        ) = (
            network,
            set(wanted_calls),
            copied_calls,
            run_to_end,
            leaf,
            on_layer,
        )
        self.tensors: dict[str, Tensor] = {}
        self.tensor_versions: dict[str, int] = {}
        self.call_counts: Counter[str] = Counter()

    def run_forward_pass(self, forward: Callable[[], Any]) -> Any:
        """What `forward` returns, or None if it was ended."""
        with ExitStack() as undo:
            for path in {name.split(":")[0] for name in self.wanted_calls}:
                module = self.network.get_submodule(path)
                undo.callback(module.register_forward_pre_hook(self.make_input_hook(path)).remove)
                undo.callback(module.register_forward_hook(self.make_output_hook(path)).remove)
            try:
                return forward()
            except StopForwardPass:
                return None

    def make_input_hook(self, path: str) -> Callable[..., None]:
        """The hook that sees a module's input."""

        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            if self.call_counts[path] == 0 and f"{path}:in" in self.wanted_calls:
                self.record_tensor(f"{path}:in", args)

        return hook

    def make_output_hook(self, path: str) -> Callable[..., Tensor | None]:
        """The hook that sees a module's output, and may replace it by a copy."""

        def hook(_module: nn.Module, _args: Any, output: Any) -> Tensor | None:
            self.call_counts[path] += 1
            return self.record_tensor(format_call_name(path, self.call_counts[path] - 1), output)

        return hook

    def record_tensor(self, name: str, value: Any) -> Tensor | None:
        """Notes a wanted tensor; ends the pass with the last one."""
        tensor = find_first_tensor(value)
        if name not in self.wanted_calls or tensor is None:
            return None
        begins = name == self.leaf and value is tensor
        if begins:
            tensor = tensor.detach().requires_grad_()
        self.tensors[name], self.tensor_versions[name] = tensor, tensor._version
        if self.on_layer:
            with core.DisableTorchFunction():  # modes are there for the network's operations
                self.on_layer(name, tensor)
        if len(self.tensors) == len(self.wanted_calls) and not self.run_to_end:
            raise StopForwardPass
        return tensor.clone() if begins or (name in self.copied_calls and value is tensor) else None

    def find_overwritten_calls(self) -> set[str]:
        """The wanted calls whose tensor was changed in place after it was seen."""
        return {
            name
            for name, version in self.tensor_versions.items()
            if self.tensors[name]._version != version
        }


def format_call_name(path: str, call_index: int) -> str:
    """Name of the n-th call of a module: `relu`, `relu:1`, …"""
    return path if call_index == 0 else f"{path}:{call_index}"


def find_first_tensor(value: Any) -> Tensor | None:
    """The tensor itself, or the first one in a tuple, list or dict."""
    if isinstance(value, Tensor):
        return value
    items: Iterable[Any] = (
        value.values()
        if isinstance(value, Mapping)
        else value
        if isinstance(value, (tuple, list))
        else ()
    )
    return next((item for item in items if isinstance(item, Tensor)), None)
