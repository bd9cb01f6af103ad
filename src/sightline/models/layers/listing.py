"""The list of a network's layers, from one forward pass, and how they are asked for."""

from collections.abc import Callable, Collection, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from sightline.errors import MAX_LISTED_NAMES, SightlineError
from sightline.models.layers.capture import Capture, Layer, find_first_tensor, split_call_name
from sightline.models.layers.functional_steps import STEP_KINDS, FunctionalStepMode
from sightline.process.locks import ForkSafeCleanup

WILDCARDS = "*?["


class LayerListing(Capture):
    """A forward pass that lists every layer that gives features, in order, in `layers`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network, ())
        self.layers: dict[str, Layer] = {}
        self.modules = {
            path: module
            for path, module in network.named_modules()
            if path and not computes_weights(path)
        }

    def run_forward_pass(self, forward: Callable[[], Any]) -> Any:
        """Returns what `forward` returns."""
        with ForkSafeCleanup() as hooks, FunctionalStepMode(self.network, self.run_step):
            for path, module in self.modules.items():
                hook = module.register_forward_hook(self.make_output_hook(path))
                hooks.callback(hook.remove)
            return forward()

    def record_tensor(self, name: str, value: Any) -> None:
        """Adds the layer whose output this is; the network goes on with it."""
        tensor = find_first_tensor(value)
        if tensor is None:
            return
        size = tensor.size()  # asked for once: here the function mode sees every such question
        if len(size) < 2 or tensor.dtype.is_complex:
            return  # methods order features by their size, and sum them
        call_path = name.split(":", maxsplit=1)[0]
        module = self.modules.get(call_path)
        kind = type(module).__name__
        step = ""
        if module is None:
            path, step = split_call_name(self.network, name)
            if not step or computes_weights(path):
                return
            kind = STEP_KINDS[step]
        self.layers[name] = Layer(name, kind, tuple(size[1:]), step=step, batch=size[0])


def is_layer_pattern(name: object) -> bool:
    """Whether a layer is asked for by a pattern with wildcards, such as `features.*.conv`."""
    return isinstance(name, str) and any(wildcard in name for wildcard in WILDCARDS)


def match_layer_names(pattern: str, names: Collection[str]) -> list[str]:
    """The names that a pattern matches, in order. Raises SightlineError for none."""
    matches = [name for name in names if fnmatchcase(name, pattern)]
    if not matches:
        raise SightlineError(f"layer is {pattern!r}; it matches none of the {len(names)} layers")
    return matches


def match_one_layer(pattern: str, names: Collection[str]) -> str:
    """The only name that a pattern matches. Raises SightlineError with the matches otherwise."""
    matches = match_layer_names(pattern, names)
    if len(matches) == 1:
        return matches[0]
    listed = ", ".join(matches[:MAX_LISTED_NAMES])
    more = ", …" if len(matches) > MAX_LISTED_NAMES else ""
    raise SightlineError(
        f"layer is {pattern!r}; it matches {len(matches)} layers: give one of {listed}{more}"
    )


def find_layer_by_index(index: int, names: Sequence[str]) -> str:
    """The layer of an index in the order of the forward pass, from 0; negative from the end.

    Raises SightlineError for an index out of range.
    """
    if -len(names) <= index < len(names):
        return names[index]
    raise SightlineError(
        f"layer is {index}; there are {len(names)} layers: give an index from {-len(names)} to "
        f"{len(names) - 1}, or a name"
    )


def computes_weights(path: str) -> bool:
    """Whether a module computes weights, not features: a parametrization or their quantization."""
    segments = path.split(".")
    return "parametrizations" in segments or "weight_fake_quant" in segments
