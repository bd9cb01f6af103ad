"""What is refused before a network is copied: weights that are missing or are not numbers."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sightline.errors import SightlineError
from sightline.models.weights.checkpoint import RUNNING_STATISTICS, describe_remaining_keys


def check_network(network: nn.Module, *, allow_meta: bool = False) -> None:
    """Raises SightlineError with the first module that is scripted or whose weights are unusable.

    They are missing in a lazy module that was never run and on the meta device, or NaN or infinite.
    `allow_meta` takes a network that is on the meta device as a whole: it has layers and shapes.
    """
    for path, module in network.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise make_scripted_module_error(path)
    check_initialized_weights(network)
    check_loaded_weights(network, allow_meta=allow_meta)
    check_finite_weights(network)


def make_scripted_module_error(path: str = "") -> SightlineError:
    """The error for a network of TorchScript, or with a part of it, a layer of this path."""
    if path:
        return SightlineError(
            f"layer {path} is a scripted module, which can't be looked into; put the eager "
            "nn.Module it was made from in its place"
        )
    return SightlineError(
        "a scripted module can't be looked into; give the eager nn.Module it was made from"
    )


def check_initialized_weights(network: nn.Module) -> None:
    """Raises SightlineError with the first layer that has no weights before it is run."""
    lazy = [name for name, tensor in iterate_tensors(network) if is_lazy(tensor)]
    if lazy:
        layer = lazy[0].rpartition(".")[0] or type(network).__name__
        raise SightlineError(
            f"{type(network).__name__} has no weights yet in its lazy layer {layer}; "
            "run it once on a batch first"
        )


def check_loaded_weights(network: nn.Module, *, allow_meta: bool) -> None:
    """Raises SightlineError with the first weight on the meta device."""
    on_meta = {name: tensor.is_meta for name, tensor in iterate_tensors(network)}
    if allow_meta and all(on_meta.values()):
        return
    missing = [name for name, is_meta in on_meta.items() if is_meta]
    if missing:
        raise SightlineError(
            f"{type(network).__name__} has no weights: {missing[0]} is on the meta device"
            f"{describe_remaining_keys(missing)}; load them first (to_empty and load_state_dict)"
        )


def iterate_tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers with their names."""
    yield from network.named_parameters()
    yield from network.named_buffers()


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
