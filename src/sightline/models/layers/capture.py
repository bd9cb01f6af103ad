"""One forward pass with the outputs of chosen module calls, stopped as soon as all are there."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sightline.models.overrides.mode import suspend_overrides


@dataclass(frozen=True)
class Layer:
    """One module call that gives a tensor.

    `name` is the module's path, with `:1` for its second call. `shape` is the output's without the
    batch, and `alias` a customary name such as conv1_2, or empty.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    alias: str = ""

    @property
    def is_spatial(self) -> bool:
        """Whether the output is channels × height × width with more than one position."""
        if len(self.shape) != 3:
            return False
        _, height, width = self.shape
        return height * width > 1


class StopForwardPass(Exception):  # noqa: N818 - not an error
    """Ends a forward pass once all wanted calls were seen."""


class Capture:
    """Records the tensors of chosen module calls of a network in `tensors`.

    A call is named by the module's path: `relu`, `relu:1` for its second call, `fc:in` for its
    input.

    Args:
        network: the network that `run_forward_pass` runs.
        wanted_calls: the calls to record.
        copied_calls: calls whose output a later in-place operation overwrites; the network goes on
            with a copy.
        run_to_end: run the whole network, instead of stopping after the last wanted call.
        leaf: a wanted call whose output, if it is a single tensor, becomes a variable without a
            history; gradients don't reach further back.
        on_layer: called with the name and tensor of each call before the network goes on.
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
        self.network = network
        self.wanted_calls = set(wanted_calls)
        self.copied_calls = copied_calls
        self.run_to_end = run_to_end
        self.leaf = leaf
        self.on_layer = on_layer
        self.tensors: dict[str, Tensor] = {}
        self.tensor_versions: dict[str, int] = {}
        self.call_counts: Counter[str] = Counter()

    def run_forward_pass(self, forward: Callable[[], Any]) -> Any:
        """Returns what `forward` returns, or None if the pass was stopped."""
        paths = {name.split(":")[0] for name in self.wanted_calls}
        with ExitStack() as hooks:
            for path in paths:
                module = self.network.get_submodule(path)
                input_hook = module.register_forward_pre_hook(self.make_input_hook(path))
                hooks.callback(input_hook.remove)
                output_hook = module.register_forward_hook(self.make_output_hook(path))
                hooks.callback(output_hook.remove)
            try:
                return forward()
            except StopForwardPass:
                return None

    def make_input_hook(self, path: str) -> Callable[..., None]:
        """The hook that records the input of a module's first call."""

        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            if self.call_counts[path] == 0 and f"{path}:in" in self.wanted_calls:
                self.record_tensor(f"{path}:in", args)

        return hook

    def make_output_hook(self, path: str) -> Callable[..., Tensor | None]:
        """The hook that records a module's output and may replace it with a copy."""

        def hook(_module: nn.Module, _args: Any, output: Any) -> Tensor | None:
            name = format_call_name(path, self.call_counts[path])
            self.call_counts[path] += 1
            return self.record_tensor(name, output)

        return hook

    def record_tensor(self, name: str, value: Any) -> Tensor | None:
        """Records the first tensor of a wanted call's value.

        Returns what the network has to go on with in its place, or None. Raises StopForwardPass
        after the last wanted call.
        """
        tensor = find_first_tensor(value)
        if name not in self.wanted_calls or tensor is None:
            return None
        is_replaceable = value is tensor
        is_leaf = is_replaceable and name == self.leaf
        if is_leaf:
            tensor = tensor.detach().requires_grad_()
        self.tensors[name] = tensor
        self.tensor_versions[name] = tensor._version
        if self.on_layer is not None:
            # The overrides are meant for the network's operations only.
            with suspend_overrides():
                self.on_layer(name, tensor)
        if not self.run_to_end and len(self.tensors) == len(self.wanted_calls):
            raise StopForwardPass
        # An in-place operation on a leaf would be an error, so the network goes on with a copy.
        if is_leaf or (is_replaceable and name in self.copied_calls):
            return tensor.clone()
        return None

    def find_overwritten_calls(self) -> set[str]:
        """The recorded calls whose tensor was changed in place afterwards."""
        return {
            name
            for name, version in self.tensor_versions.items()
            if self.tensors[name]._version != version
        }


def format_call_name(path: str, call_index: int) -> str:
    """Name of a call of a module, counted from 0: `relu`, `relu:1`, …"""
    return path if call_index == 0 else f"{path}:{call_index}"


def find_first_tensor(value: Any) -> Tensor | None:
    """The tensor itself, or the first one in a tuple, list or dict."""
    if isinstance(value, Tensor):
        return value
    items: Iterable[Any] = ()
    if isinstance(value, Mapping):
        items = value.values()
    elif isinstance(value, (tuple, list)):
        items = value
    return next((item for item in items if isinstance(item, Tensor)), None)
