"""The private copy of a network: the caller's module tree on the same weights, safe to change."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from sightline.errors import SightlineError
from sightline.models.weights.checkpoint import RUNNING_STATISTICS, describe_remaining_keys

PARALLEL_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def make_private_network(network: nn.Module) -> nn.Module:
    """A copy of the module tree on the same weights, in evaluation mode.

    Its parameters are frozen, its modules don't work in place, and it has none of the caller's
    hooks. The caller's network stays as it is.

    Raises SightlineError for scripted modules, which can't be copied this way or looked into, for
    NaN or infinite weights, and for networks that `copy.deepcopy` refuses.
    """
    if any(isinstance(module, torch.jit.ScriptModule) for module in network.modules()):
        raise SightlineError(
            "a scripted module can't be looked into; give the eager nn.Module it was made from"
        )
    network = unwrap_network(network)
    check_finite_weights(network)
    try:
        # deepcopy takes what the memo holds for a tensor instead of copying it.
        private = copy.deepcopy(network, share_tensors(network))
    except (TypeError, ValueError, RuntimeError) as error:
        raise SightlineError(
            f"{type(network).__name__} can't be copied ({error}); "
            "give a network that copy.deepcopy takes"
        ) from error
    for module in private.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # pyright: ignore
        remove_caller_hooks(module)
    return private.eval()


def unwrap_network(network: nn.Module) -> nn.Module:
    """The network inside wrappers for several devices and for torch.compile."""
    while True:
        if isinstance(network, PARALLEL_WRAPPERS):
            network = network.module
        elif hasattr(network, "_orig_mod"):
            network = network._orig_mod  # pyright: ignore
        else:
            return network


def check_finite_weights(network: nn.Module) -> None:
    """Raises SightlineError with the first weight that holds NaN or infinity."""
    weights: dict[str, Tensor] = dict(network.named_parameters())
    for name, buffer in network.named_buffers():
        if name.rpartition(".")[2] in RUNNING_STATISTICS:
            weights[name] = buffer
    broken: list[str] = []
    for name, weight in weights.items():
        if not weight.is_floating_point() or weight.is_meta:
            continue
        # A sum is one pass without a copy. It may overflow for finite weights.
        if weight.sum(dtype=torch.float32).isfinite():
            continue
        if not weight.isfinite().all():
            broken.append(name)
    if broken:
        raise SightlineError(
            f"{type(network).__name__} is refused: {broken[0]} holds NaN or infinite weights"
            f"{describe_remaining_keys(broken)}"
        )


def share_tensors(network: nn.Module) -> dict[int, Any]:
    """The memo for `copy.deepcopy`: each tensor of the modules → one on the same storage."""
    memo: dict[int, Any] = {}
    for module in network.modules():
        parameters = module.parameters(recurse=False)
        buffers = module.buffers(recurse=False)
        for value in (*parameters, *buffers, *vars(module).values()):
            if isinstance(value, Tensor):
                memo[id(value)] = share_storage(value)
    return memo


def share_storage(tensor: Tensor) -> Tensor:
    """A tensor or parameter on the same storage, detached and frozen."""
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(tensor.detach(), requires_grad=False)
    return tensor.detach()


def remove_caller_hooks(module: nn.Module) -> None:
    """Removes a module's hooks, except torch's own."""
    for hooks in (
        module._forward_hooks,  # pyright: ignore[reportPrivateUsage]
        module._forward_pre_hooks,  # pyright: ignore[reportPrivateUsage]
        module._backward_hooks,  # pyright: ignore[reportPrivateUsage]
        module._backward_pre_hooks,  # pyright: ignore[reportPrivateUsage]
    ):
        for key, hook in list(hooks.items()):
            if not is_torch_hook(hook):
                del hooks[key]


def is_torch_hook(hook: object) -> bool:
    """Whether a hook is part of the network's function (torch's weight norm, spectral norm)."""
    source = getattr(hook, "__module__", type(hook).__module__)
    return str(source).startswith("torch.")
