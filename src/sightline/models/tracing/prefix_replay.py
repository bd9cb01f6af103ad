"""What comes after a layer, run many times for one batch of images.

The pass that is recorded keeps the outputs of the modules that were over when the layer's output
was there. A replay is a pass of the same network in which these modules return what is kept instead
of running; what the modules around the layer do between them (sums, concatenations) runs again.
The layer's output is then another one, and what follows runs as ever.

Memory: of the modules that were over, the outermost, and in a `Sequential` the last one only.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sightline.models.ablation import split_layer_name
from sightline.models.layers.edits import CallEdits
from sightline.models.model import Model
from sightline.models.tracing.receptive_rules import iterate_nested_tensors

# A module's call: which module, and which of its calls, from 0.
ModuleCall = tuple[int, int]

# Logits of a replay equal those of the recorded pass to this share of their largest magnitude.
MAX_REPLAY_ERROR = 1e-4


class ReplayUnsupported(RuntimeError):  # noqa: N818 - not an error: whole passes take over
    """A replay of this network gives other logits; its modules are no functions of their input."""


@dataclass
class KeptCall:
    """What a call gave, and the versions of its tensors then."""

    output: Any
    versions: list[int]

    def was_overwritten(self) -> bool:
        """Whether a later operation wrote to one of the tensors."""
        tensors = iterate_nested_tensors(self.output)
        pairs = zip(tensors, self.versions, strict=True)
        return any(tensor._version != version for tensor, version in pairs)


@dataclass(eq=False)
class RunningModule:
    """A module whose forward pass runs, and the calls inside it that are over."""

    module: nn.Module
    calls: dict[ModuleCall, Any] = field(default_factory=dict[ModuleCall, Any])


class PrefixReplay:
    """Passes of a network from one layer's output on. A context: it is open while it is used.

    `layer` is the layer's own name. Gradients are not computed. The model's lock is held.
    """

    def __init__(self, model: Model, layer: str) -> None:
        self.model = model
        self.layer = layer
        self.contexts = ExitStack()
        self.chains: set[int] = set()
        self.call_counts: Counter[int] = Counter()
        self.stack: list[RunningModule] = []
        self.kept: dict[ModuleCall, KeptCall] = {}
        self.copied_calls: set[ModuleCall] = set()
        self.is_recording = False
        self.images = torch.empty(0)
        self.feature: Tensor | None = None
        self.replacement: Tensor | None = None

    def __enter__(self) -> "PrefixReplay":
        self.contexts.enter_context(self.model.lock)
        network = self.model.network
        self.chains = {id(module) for module in network.modules() if is_chain(module)}
        is_input, key = split_layer_name(network, self.layer)
        edits = {key: self.exchange_feature}
        call_edits = CallEdits({}, edits) if is_input else CallEdits(edits)
        for handle in call_edits.attach(network):
            self.contexts.callback(handle.remove)
        for path, module in network.named_modules():
            if path:
                self.wrap_forward(module)
        return self

    def __exit__(self, *error: object) -> None:
        self.contexts.close()
        self.kept.clear()

    def wrap_forward(self, module: nn.Module) -> None:
        """Lets a module's forward pass be recorded and replayed while the context is open."""
        attributes = vars(module)
        has_own_forward = "forward" in attributes
        forward = module.forward
        attributes["forward"] = make_replayed_forward(self, module, forward)

        def restore() -> None:
            if has_own_forward:
                attributes["forward"] = forward
            else:
                del attributes["forward"]

        self.contexts.callback(restore)

    # ── the two kinds of passes ──

    def record(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's output and the logits of a batch N×C×H×W, whose later part is then replayed.

        Raises ReplayUnsupported for a network that gives other logits when it is replayed.
        """
        self.images = images
        feature, logits = self.record_once()
        replayed = self.run(feature.clone())
        overwritten = self.find_overwritten_calls()
        if overwritten:
            self.copied_calls |= overwritten
            feature, logits = self.record_once()
            replayed = self.run(feature.clone())
        scale = float(logits.abs().max()) + 1e-12
        error = float((replayed - logits).abs().max())
        if not error <= MAX_REPLAY_ERROR * scale:
            raise ReplayUnsupported(f"{self.model.name} gives other scores when it is replayed")
        return feature, logits

    def record_or_run_whole(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The same for any network: where its modules can't be replayed, `run` runs all of it.

        Raises ReplayUnsupported for a layer that does not run for these images.
        """
        try:
            return self.record(images)
        except ReplayUnsupported:
            feature, logits = self.record_once()
            self.kept = {}
            return feature, logits

    def record_once(self) -> tuple[Tensor, Tensor]:
        """One pass, with what it leaves."""
        self.kept = {}
        self.feature = None
        self.replacement = None
        self.is_recording = True
        self.stack = [RunningModule(self.model.network)]
        try:
            logits = self.run_pass()
        finally:
            self.is_recording = False
            self.stack = []
        if self.feature is None:
            raise ReplayUnsupported(f"{self.model.name} does not run {self.layer} for these images")
        return self.feature, logits

    def run(self, feature: Tensor) -> Tensor:
        """The logits of the recorded images with another output of the layer, of the same shape.

        The network may write to the tensor.
        """
        self.replacement = feature
        try:
            return self.run_pass()
        finally:
            self.replacement = None

    def run_pass(self) -> Tensor:
        """One pass of the network, however much of it is replayed."""
        self.call_counts.clear()
        with torch.inference_mode(False), torch.no_grad():
            output = self.model.run_network(self.images)
            return self.model.read_scores(output, self.images.shape)

    @property
    def kept_bytes(self) -> int:
        """The size of what is kept of the recorded pass."""
        tensors: dict[int, Tensor] = {}
        for call in self.kept.values():
            for tensor in iterate_nested_tensors(call.output):
                tensors[tensor.untyped_storage().data_ptr()] = tensor
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors.values())

    def find_overwritten_calls(self) -> set[ModuleCall]:
        """The calls whose kept output was written to, by the recorded pass or by a replay."""
        return {
            key
            for key, call in self.kept.items()
            if key not in self.copied_calls and call.was_overwritten()
        }

    # ── inside a pass ──

    def exchange_feature(self, tensor: Tensor) -> Tensor:
        """Records the layer's output, or puts another in its place."""
        if self.replacement is not None:
            return self.replacement
        if self.feature is None:
            self.feature = tensor.clone()
            self.keep_calls()
        return tensor

    def keep_calls(self) -> None:
        """Keeps the outermost calls that are over; none after this one is recorded."""
        for running in self.stack:
            for key, output in running.calls.items():
                tensors = iterate_nested_tensors(output)
                self.kept[key] = KeptCall(output, [tensor._version for tensor in tensors])
        self.is_recording = False

    def run_module(
        self, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        """A module's forward pass, or what is kept of it."""
        key = (id(module), self.call_counts[id(module)])
        self.call_counts[id(module)] += 1
        recorded = self.kept.get(key) if self.replacement is not None else None
        if recorded is not None:
            return copy_tensors(recorded.output) if key in self.copied_calls else recorded.output
        if not self.is_recording:
            return forward(*args, **kwargs)

        running = RunningModule(module)
        self.stack.append(running)
        try:
            output = forward(*args, **kwargs)
        finally:
            if self.is_recording:
                self.stack.remove(running)
        if self.is_recording:
            self.note_call(key, output)
        return output

    def note_call(self, key: ModuleCall, output: Any) -> None:
        """Notes a call that is over among those of the module around it."""
        around = self.stack[-1]
        if id(around.module) in self.chains:
            # Each module is given the output of the one before and nothing else.
            around.calls = {
                earlier: shrink_tensors(value) for earlier, value in around.calls.items()
            }
        around.calls[key] = copy_tensors(output) if key in self.copied_calls else output


def make_replayed_forward(
    replay: PrefixReplay, module: nn.Module, forward: Callable[..., Any]
) -> Callable[..., Any]:
    """A forward pass that a replay may leave out."""

    def run(*args: Any, **kwargs: Any) -> Any:
        return replay.run_module(module, forward, args, kwargs)

    return run


def is_chain(module: nn.Module) -> bool:
    """Whether a module is a `Sequential` none of whose modules' outputs a hook may keep."""
    if type(module).forward is not nn.Sequential.forward:
        return False
    return not any(vars(child)["_forward_hooks"] for child in module.children())


def copy_tensors(value: Any) -> Any:
    """A copy of nested tuples, lists and dicts with tensors of its own."""
    return map_tensors(value, Tensor.clone)


def shrink_tensors(value: Any) -> Any:
    """The same with tensors of the same shape that hold one number."""
    return map_tensors(value, lambda tensor: tensor.new_zeros(1).expand(tensor.shape))


def map_tensors(value: Any, convert: Callable[[Tensor], Tensor]) -> Any:
    """Nested tuples, lists and dicts with every tensor converted; other values as they are."""
    if isinstance(value, Tensor):
        return convert(value)
    if type(value) in (tuple, list):
        return type(value)(map_tensors(item, convert) for item in value)
    if type(value) is dict:
        return {key: map_tensors(item, convert) for key, item in value.items()}
    return value


def split_batches(count: int, batch_size: int) -> Iterator[slice]:
    """Slices of at most `batch_size` that together are `count` long."""
    for start in range(0, count, batch_size):
        yield slice(start, min(start + batch_size, count))
