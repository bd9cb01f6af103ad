"""The private copy of a network: the caller's module tree, on the same weights, safe to hook and to change."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from sightline.errors import SightlineError
from sightline.models.weights.checkpoint import RUNNING_STATISTICS, describe_remaining_keys

PARALLEL_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def make_private_network(network: nn.Module) -> nn.Module:
    """A copy of the module tree on the same weights: in evaluation mode, frozen, without in-place flags and the caller's hooks.

    Raises SightlineError for scripted modules, which can't be copied this way or looked into, and for weights that are not numbers.
    """
    if any(isinstance(module, torch.jit.ScriptModule) for module in network.modules()):
        raise SightlineError(
            "a scripted module can't be looked into; give the eager nn.Module it was made from"
        )
    while isinstance(network, PARALLEL_WRAPPERS) or hasattr(network, "_orig_mod"):
        network = network.module if isinstance(network, PARALLEL_WRAPPERS) else network._orig_mod  # pyright: ignore
    check_finite_weights(network)
    memo: dict[int, Any] = {}
    for module in network.modules():
        for value in (
            *module.parameters(recurse=False),
            *module.buffers(recurse=False),
            *vars(module).values(),
        ):
            if isinstance(value, Tensor):
                memo[id(value)] = share_storage(value)
    try:
        body = copy.deepcopy(network, memo).eval()
    except (TypeError, ValueError, RuntimeError) as error:
        raise SightlineError(
            f"{type(network).__name__} can't be copied ({error}); give a network that copy.deepcopy takes"
        ) from error
    for module in body.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # pyright: ignore
        for hooks in (
            module._forward_hooks,
            module._forward_pre_hooks,
            module._backward_hooks,
            module._backward_pre_hooks,
        ):
            for key in [key for key, hook in hooks.items() if not is_torch_hook(hook)]:
                del hooks[key]
    return body


def check_finite_weights(network: nn.Module) -> None:
    """Raises SightlineError with the first weight tensor that holds NaN or infinity: every answer and every map would be empty."""
    running = [
        item for item in network.named_buffers() if item[0].rpartition(".")[2] in RUNNING_STATISTICS
    ]
    weights = [
        item
        for item in (*network.named_parameters(), *running)
        if item[1].is_floating_point() and not item[1].is_meta
    ]
    # A sum is one pass without a copy; one that overflows is looked at again.
    doubtful = [
        (name, value) for name, value in weights if not value.sum(dtype=torch.float32).isfinite()
    ]
    if broken := [name for name, value in doubtful if not value.isfinite().all()]:
        raise SightlineError(
            f"{type(network).__name__} is refused: {broken[0]} holds NaN or infinite weights{describe_remaining_keys(broken)}"
        )


def share_storage(value: Tensor) -> Tensor:
    """The same storage, detached and frozen."""
    return (
        nn.Parameter(value.detach(), requires_grad=False)
        if isinstance(value, nn.Parameter)
        else value.detach()
    )


def is_torch_hook(hook: object) -> bool:
    """Whether a hook is torch's own machinery (weight norm, spectral norm), which is part of the network's function."""
    return str(getattr(hook, "__module__", type(hook).__module__)).startswith("torch.")
