"""The operation that made an output which autograd did not follow.

A network that ends in a sigmoid gives probabilities, which autograd's graph tells. Under `no_grad`,
or after `detach`, there is no graph; then the network is run once more and watched.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from sightline.models.heads.evidence.autograd_graph import is_made_of_probabilities
from sightline.models.heads.recognition import HeadHints
from sightline.models.heads.selection import select_output
from sightline.models.overrides.mode import DispatchContext

# Operations that end in probabilities, as torch's dispatcher names them.
SQUASHING_NAMES = ("sigmoid", "sigmoid_", "hardsigmoid", "hardsigmoid_", "_softmax")

# Operations that keep the values, and so what they mean, as torch's dispatcher names them. Limited,
# averaged, joined or taken from 1, probabilities are probabilities still.
KEEPING_OPERATIONS = {
    *("amax", "amin", "cat", "clamp", "clamp_max", "clamp_min", "mean", "rsub", "stack"),
    *("_reshape_alias", "_to_copy", "_unsafe_view", "alias", "as_strided", "clone", "contiguous"),
    *("copy_", "dequantize", "detach", "expand", "lift_fresh", "permute", "reshape", "select"),
    *("slice", "split", "squeeze", "t", "to", "transpose", "unbind", "unsqueeze", "view"),
}


class OriginTrace(DispatchContext):
    """Context that notes which operation made the values in each piece of memory."""

    def __init__(self) -> None:
        self.operations: dict[int, str] = {}
        # So that no memory is given to another tensor meanwhile.
        self.kept: list[Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Runs the operation, and notes its name for its results."""
        output = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in KEEPING_OPERATIONS:
            name = self.find_common_operation(args[1] if name == "copy_" else args[0]) or name
        for tensor in output if isinstance(output, (tuple, list)) else (output,):
            if isinstance(tensor, Tensor) and tensor.layout == torch.strided:
                self.kept.append(tensor)
                self.operations[tensor.untyped_storage().data_ptr()] = name
        return output

    def find_common_operation(self, source: Any) -> str:
        """The operation that made a tensor, or each of several; empty if there is no such one."""
        tensors = cast(Sequence[Any], source) if isinstance(source, (tuple, list)) else [source]
        names = {self.find_operation(item) if isinstance(item, Tensor) else "" for item in tensors}
        return names.pop() if len(names) == 1 else ""

    def find_operation(self, tensor: Tensor) -> str:
        """The operation that made a tensor's values, such as «sigmoid»; empty if none is known."""
        return self.operations.get(tensor.untyped_storage().data_ptr(), "")


def is_made_by_squashing(output: Any, run: Callable[[], Any], hints: HeadHints) -> bool:
    """Whether the scores in an output are made of the results of sigmoids or softmaxes alone.

    Where autograd can't tell, `run` runs the network once more for the same output.
    """
    selected = select_output(output, hints.selector, hints.network_name)
    if not isinstance(selected, Tensor) or not selected.is_floating_point():
        return False
    if selected.grad_fn is not None:
        return is_made_of_probabilities(selected)
    if selected.layout != torch.strided or selected.is_nested:
        return False
    are_in_unit_interval = bool(((selected >= 0) & (selected <= 1)).all())
    return are_in_unit_interval and find_traced_operation(run, hints) in SQUASHING_NAMES


def find_traced_operation(run: Callable[[], Any], hints: HeadHints) -> str:
    """The operation that makes the scores when the network is run, such as «sigmoid»."""
    with torch.no_grad(), OriginTrace() as trace:
        output = run()
    selected = select_output(output, hints.selector, hints.network_name)
    return trace.find_operation(selected) if isinstance(selected, Tensor) else ""
