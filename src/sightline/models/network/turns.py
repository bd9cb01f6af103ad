"""Whether a network runs its layers once for each image of a batch, in a loop of its own.

Its layers are then of one image at a time, so that a batch has no output of a layer.
"""

from collections import defaultdict
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

# The layers whose calls are counted: what they are given has the images in its first axis.
COUNTED_MODULES = (nn.Linear, nn.modules.conv._ConvNd)  # pyright: ignore[reportPrivateUsage]

# The length of the first axis of the input, for each call of a layer.
CallLengths = Mapping[nn.Module, Sequence[int]]


@contextmanager
def watch_calls(network: nn.Module) -> Generator[CallLengths]:
    """Context that notes the calls of a network's convolutions and linear layers."""
    lengths: dict[nn.Module, list[int]] = defaultdict(list)

    def make_hook(module: nn.Module) -> Callable[[nn.Module, Any], None]:
        def note_call(_module: nn.Module, inputs: Any) -> None:
            if inputs and isinstance(inputs[0], Tensor) and inputs[0].ndim:
                lengths[module].append(inputs[0].size(0))  # a nested tensor has no shape

        return note_call

    with ExitStack() as contexts:
        for module in network.modules():
            if isinstance(module, COUNTED_MODULES):
                hook = module.register_forward_pre_hook(make_hook(module))
                contexts.callback(hook.remove)
        yield lengths


def are_run_in_turn(together: CallLengths, apart: CallLengths, image_count: int) -> bool:
    """Whether a layer was called with a single image, as many times as often for several images.

    Args:
        together: the calls for `image_count` images.
        apart: the calls for one of them.
    """
    for module, lengths in together.items():
        calls_for_one = len(apart.get(module, ()))
        if calls_for_one and len(lengths) == image_count * calls_for_one and set(lengths) == {1}:
            return True
    return False
