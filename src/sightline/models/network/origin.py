"""The operation that made an output which autograd did not follow.

A network that ends in a sigmoid gives probabilities, which autograd's graph tells. Under `no_grad`,
or after `detach`, there is no graph; then the network is run once more and watched.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sightline.errors import SightlineError
from sightline.models.heads.evidence.autograd_graph import COMBINING_NAMES, is_made_of_probabilities
from sightline.models.heads.recognition import (
    ROUNDING_TOLERANCE,
    HeadHints,
    are_in_unit_interval,
)
from sightline.models.heads.selection import select_output
from sightline.models.overrides.mode import DispatchContext

# Operations are named as torch's dispatcher does, without underscores around the name.

# Operations that end in probabilities, or their logarithms.
SQUASHING_NAMES = {"sigmoid", "hardsigmoid", "softmax", "log_sigmoid_forward", "log_softmax"}

# Operations that keep the values, and so what they mean.
KEEPING_NAMES = {
    *("alias", "as_strided", "clone", "contiguous", "copy", "dequantize", "detach", "diagonal"),
    *("lift_fresh", "permute", "reshape", "reshape_alias", "select", "slice", "split"),
    *("split_with_sizes", "squeeze", "t", "to", "to_copy", "transpose", "unbind", "unfold"),
    *("unsafe_view", "unsqueeze", "view"),
}

# What combines only values that are all computed; with constants these are weights.
PRODUCT_NAMES = {"bmm", "mm"}


class OriginTrace(DispatchContext):
    """Context that notes which operation made the values in each piece of memory.

    Only what is computed from the images has one; all else is constant. Probabilities that are
    averaged, limited, joined, or combined with constants keep the name of what made them.
    """

    def __init__(self, images: Tensor) -> None:
        self.operations: dict[int, str] = {}
        # Memory that holds the product of something with constants.
        self.weighted: set[int] = set()
        # So that no memory is given to another tensor meanwhile.
        self.kept: list[Tensor] = []
        self.note_operation(images, "image")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Runs the operation, and notes its name for its results."""
        kwargs = kwargs or {}
        with self:
            # In inference mode operations that are made of others come as they are.
            output = func.decompose(*args, **kwargs)
        if output is not NotImplemented:
            return output
        output = func(*args, **kwargs)
        name = func.overloadpacket.__name__.strip("_")
        sources = [
            value
            for value in pytree.tree_leaves((args, kwargs))
            if isinstance(value, Tensor) and value.is_floating_point()
        ]
        if name == "copy":
            sources = sources[1:]  # the first is overwritten
        results = output if isinstance(output, (tuple, list)) else (output,)
        self.note_results(name, sources, results, writes=func._schema.is_mutable)
        return output

    def note_results(
        self, name: str, sources: Sequence[Tensor], results: Sequence[Any], *, writes: bool
    ) -> None:
        """Notes what made the results of an operation that took some sources.

        `writes` tells of an operation that overwrites one of them.
        """
        computed = [source for source in sources if self.find_operation(source)]
        origin = self.choose_name(name, computed, is_complete=len(computed) == len(sources))
        is_weighted = name == "mul" and len(computed) < 2
        addresses = {get_address(source) for source in computed}
        for tensor in results:
            if not isinstance(tensor, Tensor) or not has_address(tensor):
                continue
            if not writes and get_address(tensor) in addresses:
                continue  # a view, of which all is known
            previous = self.find_operation(tensor) if writes and is_part(tensor) else ""
            if previous in SQUASHING_NAMES or not previous:
                self.note_operation(tensor, origin, is_weighted=is_weighted)
            else:
                # A part of it is now something else; the rest is what it was.
                self.note_operation(tensor, previous)

    def choose_name(self, name: str, computed: list[Tensor], *, is_complete: bool) -> str:
        """What an operation's results are said to be made by; empty if they are constant.

        `computed` are the values it takes that are computed from the images, and complete if those
        are all that it takes.
        """
        if name in SQUASHING_NAMES:
            return name
        if not computed or name.startswith("new_") or name.endswith("_like"):
            return ""
        # An expected value has a unit of its own.
        is_expectation = name == "sum" and get_address(computed[0]) in self.weighted
        keeps_values = name in KEEPING_NAMES or name in COMBINING_NAMES
        if is_expectation or not (keeps_values or (is_complete and name in PRODUCT_NAMES)):
            return name
        origins = {self.find_operation(tensor) for tensor in computed}
        return origins.pop() if len(origins) == 1 or origins <= SQUASHING_NAMES else name

    def note_operation(self, tensor: Tensor, name: str, *, is_weighted: bool = False) -> None:
        """Notes what made a tensor's values."""
        address = get_address(tensor)
        self.kept.append(tensor)
        self.operations[address] = name
        if is_weighted:
            self.weighted.add(address)
        else:
            self.weighted.discard(address)

    def find_operation(self, tensor: Tensor) -> str:
        """The operation that made a tensor's values, such as «sigmoid»; empty if it is constant."""
        return self.operations.get(get_address(tensor), "") if has_address(tensor) else ""


def is_part(tensor: Tensor) -> bool:
    """Whether a tensor is a view of a part of its memory."""
    return tensor.numel() * tensor.element_size() < tensor.untyped_storage().nbytes()


def has_address(tensor: Tensor) -> bool:
    """Whether a tensor lies in memory as strides tell, so that views of it can be found."""
    return tensor.layout == torch.strided and not tensor.is_nested


def get_address(tensor: Tensor) -> int:
    """Where the memory begins that a tensor shares with its views."""
    return tensor.untyped_storage().data_ptr()


def is_made_by_squashing(
    output: Any, run: Callable[[Tensor], Any], images: Tensor, hints: HeadHints
) -> bool:
    """Whether the scores in an output are made of the results of sigmoids or softmaxes alone.

    Where autograd can't tell, `run` runs the network once more for the same images. False where
    that fails: some code does not run while it is watched.
    """
    selected = select_output(output, hints.selector, hints.network_name)
    if not isinstance(selected, Tensor) or not selected.is_floating_point():
        return False
    if selected.grad_fn is not None:
        return is_made_of_probabilities(selected)
    if not has_address(selected) or not are_in_unit_interval(selected.float(), ROUNDING_TOLERANCE):
        return False
    try:
        return find_traced_operation(run, images, hints) in SQUASHING_NAMES
    except SightlineError:
        return False


def find_traced_operation(run: Callable[[Tensor], Any], images: Tensor, hints: HeadHints) -> str:
    """The operation that makes the scores when the network is run, such as «sigmoid»."""
    with torch.no_grad():
        images = images.clone()
        with OriginTrace(images) as trace:
            output = run(images)
    selected = select_output(output, hints.selector, hints.network_name)
    return trace.find_operation(selected) if isinstance(selected, Tensor) else ""
