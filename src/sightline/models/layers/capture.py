"""One forward pass with the outputs of chosen module calls, stopped as soon as all are there."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sightline.errors import SightlineError
from sightline.models.layers.functional_steps import STEP_KINDS, FunctionalStepMode
from sightline.models.overrides.mode import ObservingMode, is_transformed, suspend_overrides
from sightline.process.locks import ForkSafeCleanup


@dataclass(frozen=True)
class Layer:
    """One module call or functional step that gives a tensor.

    `name` is the module's path, with `:1` for its second call. A functional step has the path of
    the module that makes it and the step's name: `layer1.0/relu`, `layer1.0/relu:1`, at the root
    `/relu`. `shape` is the output's without the batch, and `alias` a customary name such as
    conv1_2, or empty. `step` is the name of a functional step, and empty for a module. `batch` is
    the length of the output's first axis for one image.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    alias: str = ""
    step: str = ""
    batch: int = 1

    @property
    def is_spatial(self) -> bool:
        """Whether the output is channels × height × width with more than one position."""
        if len(self.shape) != 3:
            return False
        _, height, width = self.shape
        return height * width > 1


# How a network takes a gradient itself.
GRADIENT_FUNCTIONS = (torch.autograd.grad, torch.autograd.backward, Tensor.backward)


class StopForwardPass(Exception):  # noqa: N818 - not an error
    """Ends a forward pass once all wanted calls were seen."""


class Capture:
    """Records the tensors of chosen layers of a network in `tensors`.

    A call is named by the module's path: `relu`, `relu:1` for its second call, `fc:in` for its
    input, `fc:1:in` for that of its second call. Functional steps are named as in `Layer`.

    Args:
        network: the network that `run_forward_pass` runs.
        wanted_calls: the calls to record.
        copied_calls: calls whose output a later in-place operation overwrites; the network goes on
            with a copy.
        run_to_end: run the whole network, instead of stopping after the last wanted call.
        leaf: a wanted call whose output, if it is a single tensor, becomes a variable without a
            history; gradients don't reach further back. A network that takes a gradient itself
            would miss what lies before: the pass ends there, and `takes_gradient` says so.
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
        self.is_recording = False
        self.takes_gradient = False

    def run_forward_pass(self, forward: Callable[[], Any]) -> Any:
        """Returns what `forward` returns, or None if the pass was stopped."""
        with ExitStack() as contexts:
            has_steps = False
            for path, step in {split_call_name(self.network, name) for name in self.wanted_calls}:
                if step:
                    has_steps = True
                else:
                    self.add_module_hooks(path, contexts)
            if self.leaf is not None:
                contexts.enter_context(GradientWatch(self.stop_before_gradient))
            if has_steps:
                contexts.enter_context(FunctionalStepMode(self.network, self.run_step))
            try:
                return forward()
            except StopForwardPass:
                return None

    def stop_before_gradient(self) -> None:
        """Ends a pass with a leaf in which the network begins to take a gradient."""
        self.takes_gradient = True
        raise StopForwardPass

    def add_module_hooks(self, path: str, contexts: ExitStack) -> None:
        """Lets a module's calls be recorded until `contexts` are closed."""
        module = self.network.get_submodule(path)
        hooks = contexts.enter_context(ForkSafeCleanup())
        input_hook = module.register_forward_pre_hook(self.make_input_hook(path), with_kwargs=True)
        hooks.callback(input_hook.remove)
        output_hook = module.register_forward_hook(self.make_output_hook(path))
        hooks.callback(output_hook.remove)

    def make_input_hook(self, path: str) -> Callable[..., None]:
        """The hook that records the input of a module's calls."""

        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.record_input(path, [*args, *kwargs.values()])

        return hook

    def make_output_hook(self, path: str) -> Callable[..., Tensor | None]:
        """The hook that records a module's output and may replace it with a copy."""

        def hook(_module: nn.Module, _args: Any, output: Any) -> Tensor | None:
            return self.record_output(path, output)

        return hook

    def run_step(self, path: str, step: str, call: Callable[[], Any], inputs: Any) -> Any:
        """Runs and records a functional step of a module."""
        step_path = f"{path}/{step}"
        self.record_input(step_path, inputs)
        output = call()
        replacement = self.record_output(step_path, output)
        return output if replacement is None else replacement

    def record_input(self, path: str, inputs: list[Any]) -> None:
        """Records the first tensor that is given to the call that begins."""
        if self.is_recording:
            return
        name = f"{format_call_name(path, self.call_counts[path])}:in"
        if name in self.wanted_calls:
            self.record_alone(name, inputs)

    def record_output(self, path: str, output: Any) -> Tensor | None:
        """Records the output of the call that ends; returns what is to replace it, or None."""
        if self.is_recording:
            return None
        name = format_call_name(path, self.call_counts[path])
        self.call_counts[path] += 1
        return self.record_alone(name, output)

    def record_alone(self, name: str, value: Any) -> Tensor | None:
        """As `record_tensor`; a run of the network from within is not recorded.

        To find out how a layer's output is laid out may take one.
        """
        self.is_recording = True
        try:
            return self.record_tensor(name, value)
        finally:
            self.is_recording = False

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
        if tensor.is_quantized:
            tensor = tensor.dequantize()
        if tensor.is_inference():
            # Writes to it are not counted, so nothing would tell that it was overwritten.
            with torch.inference_mode(False):
                tensor = tensor.clone()
        recorded = tensor
        self.tensors[name] = tensor = make_plain_tensor(recorded)
        self.tensor_versions[name] = count_writes(tensor)
        if self.on_layer is not None:
            # The overrides are meant for the network's operations only.
            with suspend_overrides():
                self.on_layer(name, tensor)
        if not self.run_to_end and len(self.tensors) == len(self.wanted_calls):
            raise StopForwardPass
        # An in-place operation on a leaf would be an error, so the network goes on with a copy.
        if is_leaf or (is_replaceable and name in self.copied_calls):
            return restore_class(tensor.clone(), recorded)
        # Gradients for what is recorded need the network to go on with it.
        is_converted = tensor is not recorded
        return restore_class(tensor, recorded) if is_replaceable and is_converted else None

    def require_all_tensors(self, network_name: str) -> None:
        """Raises SightlineError for a wanted call that the network did not make for this image."""
        missing = self.wanted_calls - set(self.tensors)
        if missing:
            raise SightlineError(
                f"{network_name} does not run layer {min(missing)} for this image; "
                "choose a layer that every image passes"
            )

    def find_overwritten_calls(self) -> set[str]:
        """The recorded calls whose tensor was changed in place afterwards."""
        return {
            name
            for name, version in self.tensor_versions.items()
            if count_writes(self.tensors[name]) != version
        }


class GradientWatch(ObservingMode):
    """Context that calls a function before the network takes a gradient itself."""

    def __init__(self, notice: Callable[[], None]) -> None:
        super().__init__()
        self.notice = notice

    def run_function(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """The function's own result."""
        if func in GRADIENT_FUNCTIONS:
            self.notice()
        return func(*args, **kwargs)


def count_writes(tensor: Tensor) -> int:
    """How often a tensor was written to; 0 for one of inference mode, which does not count."""
    return 0 if tensor.is_inference() else tensor._version


def format_call_name(path: str, call_index: int) -> str:
    """Name of a call of a module, counted from 0: `relu`, `relu:1`, …"""
    return path if call_index == 0 else f"{path}:{call_index}"


def split_call_name(network: nn.Module, name: str) -> tuple[str, str]:
    """The path of the module that a layer's name begins with, and the functional step or "".

    `layer1.0/relu:1` → `layer1.0`, `relu`; `fc:in` → `fc`, "".
    """
    call_path = name.split(":", maxsplit=1)[0]
    path, slash, step = call_path.rpartition("/")
    # A module's own name may have a slash in it.
    if not slash or step not in STEP_KINDS or is_module_path(network, call_path):
        return call_path, ""
    return path, step


def is_module_path(network: nn.Module, path: str) -> bool:
    """Whether a network has a module of this path.

    Attributes are not looked at: a module's own `__getattr__` may have any name, or raise anything.
    """
    module: nn.Module | None = network
    for name in path.split("."):
        if name:
            module = vars(module)["_modules"].get(name)
        if module is None:
            return False
    return True


def find_first_tensor(value: Any) -> Tensor | None:
    """The tensor itself, or the first one in a tuple, list or dict.

    None inside a network's own `torch.vmap`, whose tensors can't be used outside. Nested tensors,
    which have no shape, don't count.
    """
    if is_transformed():
        return None
    if isinstance(value, Tensor):
        return None if value.is_nested else value
    items: Iterable[Any] = ()
    if isinstance(value, Mapping):
        items = value.values()
    elif isinstance(value, (tuple, list)):
        items = value
    return next((item for item in items if isinstance(item, Tensor) and not item.is_nested), None)


def make_plain_tensor(tensor: Tensor) -> Tensor:
    """A tensor of torch's own class with the same numbers and graph.

    Weights of a subclass make every feature one. Raises SightlineError for a subclass whose numbers
    are elsewhere, which can't be read.
    """
    kind = type(tensor)
    if kind in (Tensor, nn.Parameter, nn.Buffer):
        return tensor
    if not has_own_dispatch(tensor):
        return tensor.as_subclass(Tensor)
    gather: Callable[[], Tensor] | None = getattr(tensor, "full_tensor", None)
    if gather is not None:  # one that is distributed over devices
        return make_plain_tensor(gather())
    raise SightlineError(
        f"the network computes with tensors of the class {kind.__name__}, whose numbers can't be "
        "read; make its weights plain tensors"
    )


def restore_class(plain: Tensor, original: Tensor) -> Tensor:
    """A tensor from `make_plain_tensor` as one of the original's class, with its attributes.

    It stays a plain one where the class holds its numbers elsewhere.
    """
    if type(plain) is type(original) or has_own_dispatch(original):
        return plain
    restored = plain.as_subclass(type(original))
    vars(restored).update(vars(original))
    return restored


def has_own_dispatch(tensor: Tensor) -> bool:
    """Whether a tensor's class runs the operations on it, and may hold its numbers elsewhere."""
    tensor_classes: tuple[Any, ...] = (type(tensor), Tensor)
    own, original = (kind.__torch_dispatch__ for kind in tensor_classes)
    return own is not original
