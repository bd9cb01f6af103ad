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
    def spatial(self) -> bool:
        """Whether the output is channels × height × width with more than one position."""
        return len(self.shape) == 3 and self.shape[1] * self.shape[2] > 1


class Enough(Exception):  # noqa: N818 - not an error: it ends a forward pass once all wanted layers are seen
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
        wanted: Iterable[str],
        *,
        copied: Collection[str] = (),
        whole: bool = False,
        leaf: str | None = None,
        seen: Callable[[str, Tensor], object] | None = None,
    ) -> None:
        self.network, self.wanted, self.copied, self.whole, self.leaf, self.seen = network, set(wanted), copied, whole, leaf, seen
        self.found: dict[str, Tensor] = {}
        self.versions: dict[str, int] = {}
        self.calls: Counter[str] = Counter()

    def run(self, forward: Callable[[], Any]) -> Any:
        """What `forward` returns, or None if it was ended."""
        with ExitStack() as undo:
            for path in {name.split(":")[0] for name in self.wanted}:
                module = self.network.get_submodule(path)
                undo.callback(module.register_forward_pre_hook(self.before(path)).remove)
                undo.callback(module.register_forward_hook(self.after(path)).remove)
            try:
                return forward()
            except Enough:
                return None

    def before(self, path: str) -> Callable[..., None]:
        """The hook that sees a module's input."""

        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            if self.calls[path] == 0 and f"{path}:in" in self.wanted:
                self.keep(f"{path}:in", args)

        return hook

    def after(self, path: str) -> Callable[..., Tensor | None]:
        """The hook that sees a module's output, and may replace it by a copy."""

        def hook(_module: nn.Module, _args: Any, output: Any) -> Tensor | None:
            self.calls[path] += 1
            return self.keep(called(path, self.calls[path] - 1), output)

        return hook

    def keep(self, name: str, value: Any) -> Tensor | None:
        """Notes a wanted tensor; ends the pass with the last one."""
        tensor = first_tensor(value)
        if name not in self.wanted or tensor is None:
            return None
        begins = name == self.leaf and value is tensor
        if begins:
            tensor = tensor.detach().requires_grad_()
        self.found[name], self.versions[name] = tensor, tensor._version
        if self.seen:
            with core.DisableTorchFunction():  # modes are there for the network's operations
                self.seen(name, tensor)
        if len(self.found) == len(self.wanted) and not self.whole:
            raise Enough
        return tensor.clone() if begins or (name in self.copied and value is tensor) else None

    def overwritten(self) -> set[str]:
        """The wanted calls whose tensor was changed in place after it was seen."""
        return {name for name, version in self.versions.items() if self.found[name]._version != version}


def called(path: str, call: int) -> str:
    """Name of the n-th call of a module: `relu`, `relu:1`, …"""
    return path if call == 0 else f"{path}:{call}"


def first_tensor(value: Any) -> Tensor | None:
    """The tensor itself, or the first one in a tuple, list or dict."""
    if isinstance(value, Tensor):
        return value
    items: Iterable[Any] = value.values() if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else ()
    return next((item for item in items if isinstance(item, Tensor)), None)
