"""Networks that write to their own weights when they run, which are the user's as well.

A private copy shares the weights' memory. Some layers clip a parameter in each forward pass
(`self.alpha.data.clamp_(0, 1)`), or scale a weight to length 1.
"""

import copy
import dis
import inspect
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from types import CodeType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from sightline.models.layers.capture import has_own_dispatch
from sightline.models.network.copying.hooks import FORWARD_HOOKS

# Libraries whose layers leave their weights alone.
KNOWN_LIBRARIES = (
    *("torch", "torchvision", "timm", "transformers", "open_clip"),
    *("builtins", "typing", "sightline"),
)

# Methods that write to weights before the network runs.
INITIALIZER_WORDS = ("init", "reset")


def separate_written_weights(network: nn.Module, run: Callable[[], object]) -> bool:
    """Gives a private copy weights of its own if `run` writes to them; returns whether it does.

    The user's have their values again then. `run` is called only for networks whose code may write
    to weights; whatever it raises is left to the next run.
    """
    if not may_write_weights(network):
        return False
    parameters = [
        parameter
        for parameter in network.parameters()
        if not parameter.is_meta and not has_own_dispatch(parameter)
    ]
    # In one call, so that weights in one memory stay so.
    before: list[Tensor] = copy.deepcopy([parameter.detach() for parameter in parameters])
    # Not detached: what is written to `data` does not count as a write to the user's weight.
    shared = [parameter.data for parameter in parameters]
    # The network's own code may raise anything.
    with suppress(Exception), torch.no_grad():
        run()
    written = [
        (values, original)
        for values, original in zip(shared, before, strict=True)
        if not torch.equal(values, original)
    ]
    if not written:
        return False
    for values, original in written:
        values.copy_(original)
    for parameter, own_values in zip(parameters, before, strict=True):
        parameter.data = own_values
    return True


def may_write_weights(network: nn.Module) -> bool:
    """Whether the code of a network's classes and hooks may write to a weight."""
    names = {name.rpartition(".")[2] for name, _ in network.named_parameters()}
    if not names:
        return False
    return any(writes_in_place(code, names) for code in iterate_code(network))


def iterate_code(network: nn.Module) -> Iterator[CodeType]:
    """The code that a pass of a network may run, as far as it is of no known library."""
    classes: set[type] = set()
    for module in network.modules():
        classes.update(type(module).__mro__)
        attributes = vars(module)
        functions = [attributes.get("forward")]
        for hooks in FORWARD_HOOKS:
            functions += attributes[hooks].values()
        for function in functions:
            yield from iterate_function_code(function)
    for kind in classes:
        if kind.__module__.split(".")[0] not in KNOWN_LIBRARIES:
            yield from iterate_class_code(kind)


def iterate_class_code(kind: type) -> Iterator[CodeType]:
    """The code of a class's methods, but for those that initialize."""
    for name, value in vars(kind).items():
        if not any(word in name for word in INITIALIZER_WORDS):
            yield from iterate_function_code(value)


def iterate_function_code(value: Any) -> Iterator[CodeType]:
    """The code of a function or a method, and of functions in it; none of anything else."""
    is_bound = isinstance(value, (MethodType, classmethod, staticmethod))
    function = value.__func__ if is_bound else value
    if isinstance(function, FunctionType):
        inner: Any = inspect.unwrap(function)  # such as of `torch.no_grad()`
        if isinstance(inner, FunctionType):
            yield from iterate_nested_code(inner.__code__)


def iterate_nested_code(code: CodeType) -> Iterator[CodeType]:
    """The code itself and that of all functions in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from iterate_nested_code(constant)


def writes_in_place(code: CodeType, weight_names: Collection[str]) -> bool:
    """Whether code uses `.data`, a function such as `clamp_`, or writes as `self.scale *= 2`.

    Other attributes than weights, such as counters, may be written so.
    """
    for name in code.co_names:
        if name == "data" or (name.endswith("_") and not name.endswith("__")):
            return True
    is_augmented = False
    for instruction in dis.get_instructions(code):
        writes_part = instruction.opname == "STORE_SUBSCR"
        writes_weight = instruction.opname == "STORE_ATTR" and instruction.argval in weight_names
        if is_augmented and (writes_part or writes_weight):
            return True
        if instruction.opname == "BINARY_OP":
            is_augmented = instruction.argrepr.endswith("=")
        elif instruction.opname not in ("SWAP", "COPY", "LOAD_FAST"):
            is_augmented = False
    return False
