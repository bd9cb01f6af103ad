"""Steps of a forward pass that are no modules: activations, pooling, sums and concatenations.

`F.relu(x)` gives the same features as `nn.ReLU()(x)`, but no hook sees it. A function mode does,
and hooks on all modules tell which module's forward pass makes the call.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from threading import get_ident, local
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.models.layers.edits import CallEdits, edit_step_output, find_call_edits
from sightline.models.overrides.mode import ObservingMode
from sightline.process.locks import ForkSafeCleanup

# The name of a step, and the module class that does the same.
STEP_KINDS = {
    "relu": "ReLU",
    "relu6": "ReLU6",
    "leaky_relu": "LeakyReLU",
    "prelu": "PReLU",
    "elu": "ELU",
    "selu": "SELU",
    "celu": "CELU",
    "gelu": "GELU",
    "silu": "SiLU",
    "mish": "Mish",
    "hardswish": "Hardswish",
    "max_pool2d": "MaxPool2d",
    "avg_pool2d": "AvgPool2d",
    "adaptive_max_pool2d": "AdaptiveMaxPool2d",
    "adaptive_avg_pool2d": "AdaptiveAvgPool2d",
    "add": "Add",
    "cat": "Cat",
}

_STEP_BY_FUNCTION: dict[Any, str] = {
    F.relu: "relu",
    F.relu_: "relu",
    torch.relu: "relu",
    torch.relu_: "relu",
    Tensor.relu: "relu",
    Tensor.relu_: "relu",
    F.relu6: "relu6",
    F.leaky_relu: "leaky_relu",
    F.leaky_relu_: "leaky_relu",
    F.prelu: "prelu",
    torch.prelu: "prelu",
    Tensor.prelu: "prelu",
    F.elu: "elu",
    F.elu_: "elu",
    F.selu: "selu",
    F.selu_: "selu",
    torch.selu: "selu",
    F.celu: "celu",
    torch.celu: "celu",
    F.gelu: "gelu",
    F.silu: "silu",
    F.mish: "mish",
    F.hardswish: "hardswish",
    F.max_pool2d: "max_pool2d",
    F.max_pool2d_with_indices: "max_pool2d",
    torch.max_pool2d: "max_pool2d",
    F.avg_pool2d: "avg_pool2d",
    F.adaptive_max_pool2d: "adaptive_max_pool2d",
    F.adaptive_max_pool2d_with_indices: "adaptive_max_pool2d",
    F.adaptive_avg_pool2d: "adaptive_avg_pool2d",
    torch.add: "add",
    Tensor.add: "add",
    Tensor.add_: "add",
    torch.cat: "cat",
    torch.concat: "cat",
    torch.concatenate: "cat",
}

# The batch is one of the first two axes of a tensor, whichever layout it has.
_BATCH_AXES = 2


class StepHandler(Protocol):
    """Runs a step, given the module's path, the step's name, and the call; returns its result."""

    def __call__(self, path: str, step: str, call: Callable[[], Any], inputs: Any) -> Any: ...


class _ActiveModes(local):
    """The modes that are entered now, the outermost first; none at the start of every thread."""

    def __init__(self) -> None:
        self.modes: list[FunctionalStepMode] = []


class FunctionalStepMode(ObservingMode):
    """Context in which `handle_step` runs the functional steps of a network.

    A step belongs to the innermost module whose forward pass makes it. Those of torch's own layers
    are left alone: the layer itself stands for them. So are those of threads that the network
    starts, where no function mode sees them.

    Where the network has edits of its steps, the outermost mode of a pass makes them: what it hands
    to `handle_step` gives the edited output.
    """

    def __init__(self, network: nn.Module, handle_step: StepHandler) -> None:
        super().__init__()
        self.network = network
        self.handle_step = handle_step
        self.running_modules: list[tuple[str, nn.Module]] = []
        self.thread = get_ident()
        self.hooks = ForkSafeCleanup()
        self.edits: list[CallEdits] = []

    def __enter__(self) -> Self:
        self.running_modules.clear()
        self.thread = get_ident()
        is_outermost = not any(mode.observes(self.network) for mode in _ACTIVE.modes)
        self.edits = find_call_edits(self.network) if is_outermost else []
        _ACTIVE.modes.append(self)
        for path, module in self.network.named_modules():
            start_hook = module.register_forward_pre_hook(self.make_start_hook(path))
            self.hooks.callback(start_hook.remove)
            # Also after an error that the network catches.
            end_hook = module.register_forward_hook(self.end_module, always_call=True)
            self.hooks.callback(end_hook.remove)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        _ACTIVE.modes.remove(self)
        self.hooks.close()
        super().__exit__(*error)

    def observes(self, network: nn.Module) -> bool:
        """Whether the steps of this network come here now."""
        return self.network is network and not self.is_suspended()

    def make_start_hook(self, path: str) -> Callable[[nn.Module, Any], None]:
        """The hook that notes that a module's forward pass begins."""

        def start_module(module: nn.Module, _args: Any) -> None:
            if get_ident() == self.thread:
                self.running_modules.append((path, module))

        return start_module

    def end_module(self, module: nn.Module, _args: Any, _output: Any) -> None:
        """The hook that notes that a module's forward pass is over, with all inside it."""
        if get_ident() != self.thread:
            return
        for index in reversed(range(len(self.running_modules))):
            if self.running_modules[index][1] is module:
                del self.running_modules[index:]
                return

    def run_function(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """The step's result by `handle_step`; any other call is left alone."""
        step = _STEP_BY_FUNCTION.get(func)
        if step is None or not self.running_modules:
            return func(*args, **kwargs)
        path, module = self.running_modules[-1]
        inputs = [*args, *kwargs.values()]
        if is_torch_layer(module) or not is_feature_step(step, inputs):
            return func(*args, **kwargs)

        def call() -> Any:
            step_path = f"{path}/{step}"
            if any(call_edits.has_edit_of(step_path) for call_edits in self.edits):
                return self.run_edited(step_path, func, args, kwargs)
            return func(*args, **kwargs)

        return self.handle_step(path, step, call, inputs)

    def run_edited(
        self,
        step_path: str,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """The edited result of a step. A step in place writes that, too, over what it is given."""
        target = args[0] if args else kwargs.get("input")
        if not isinstance(target, Tensor):
            return edit_step_output(self.edits, step_path, func(*args, **kwargs))
        # The gradient of the step may need what it writes itself, so it writes to a copy.
        copied = target.clone()
        version = copied._version
        if args:
            args = (copied, *args[1:])
        else:
            kwargs = kwargs | {"input": copied}
        edited = edit_step_output(self.edits, step_path, func(*args, **kwargs))
        return edited if copied._version == version else target.copy_(edited)


_ACTIVE = _ActiveModes()


def edit_functional_steps(network: nn.Module) -> AbstractContextManager[Any]:
    """Context in which a network's edits of functional steps are made, where it has any."""
    edits = find_call_edits(network)
    if not any(call_edits.has_step_edits(network) for call_edits in edits):
        return nullcontext()
    return FunctionalStepMode(network, run_step_unchanged)


def run_step_unchanged(path: str, step: str, call: Callable[[], Any], inputs: Any) -> Any:
    """Runs a step as it is."""
    return call()


def is_torch_layer(module: nn.Module) -> bool:
    """Whether a module is one of torch.nn's own without modules inside."""
    has_children = next(module.children(), None) is not None
    return type(module).__module__.startswith("torch.nn.") and not has_children


def is_feature_step(step: str, inputs: list[Any]) -> bool:
    """Whether a step's inputs are features. The answer is the same for every size of the batch."""
    tensors = [value for value in inputs if isinstance(value, Tensor)]
    if step == "cat":
        tensors = list(inputs[0])
    has_features = all(tensor.is_floating_point() and tensor.ndim > 1 for tensor in tensors)
    if step != "add":
        return bool(tensors) and (has_features or step == "prelu")
    if len(tensors) != 2 or not has_features:
        return False
    return have_same_positions(tensors[0], tensors[1])


def have_same_positions(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors have the same shape but for the batch.

    The sum is then one of features, such as a residual connection, and adds no mere bias.
    """
    if first.ndim != second.ndim:
        return False
    for axis, (length, other_length) in enumerate(zip(first.shape, second.shape, strict=True)):
        is_broadcast_batch = axis < _BATCH_AXES and 1 in (length, other_length)
        if length != other_length and not is_broadcast_batch:
            return False
    return True
