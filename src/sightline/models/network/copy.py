"""Copies of a network that are safe to change: on the same weights, or on their own."""

from collections.abc import Iterable

import torch
from torch import nn

from sightline.models.network.copying.checks import check_network
from sightline.models.network.copying.copier import NetworkCopier, unwrap_network


def make_private_network(network: nn.Module, *, allow_meta: bool = True) -> nn.Module:
    """A copy of the module tree on the same weights, in evaluation mode and not in place.

    It does what the network does, hooks included, and nothing that it does changes the network.
    Wrappers for several devices and for torch.compile are left out. `allow_meta` takes a network
    without weights, on the meta device.

    Raises SightlineError for scripted modules, which can't be copied this way or looked into, for
    weights that are missing, NaN or infinite, and for networks that can't be copied.
    """
    check_network(unwrap_network(network), allow_meta=allow_meta)
    modules = [module for module in network.modules() if module.training]
    if not modules:
        return _write_out_of_place(copy_network(network, share_parameters=True))
    # A change of mode may change weights: some layers of LoRA add theirs to those they adapt.
    changes_weights = any(type(module).train is not nn.Module.train for module in modules)
    copied = _write_out_of_place(copy_network(network, share_parameters=not changes_weights))
    try:
        return copied.eval()
    except NotImplementedError:
        # An exported network has its mode written into its graph.
        return copied


def copy_network(network: nn.Module, *, share_parameters: bool) -> nn.Module:
    """A copy of a network with everything that its modules hold, frozen.

    Buffers, other tensors and containers are the copy's own, and so are the parameters unless
    `share_parameters` puts them on the same storage. Tensors of a graph are detached. Forward hooks
    and functions act on the copy; there are no backward hooks. Data sets, and what can't be copied
    and holds no module (files, running iterators), are the same as the original's.

    Raises SightlineError with the name of the module, hook or attribute that can't be copied.
    """
    copier = NetworkCopier(unwrap_network(network), share_parameters=share_parameters)
    # A module that makes its copy anew draws initial weights.
    without_draws = torch.random.fork_rng(devices=[])
    with without_draws, torch.inference_mode(False), torch.no_grad():
        copied = copier.copy_network(network)
    return copied.requires_grad_(False)


def find_in_place_modules(network: nn.Module) -> list[str]:
    """The paths of the modules that write over what they are given, as ReLU does if asked to."""
    modules = unwrap_network(network).named_modules()
    return [path for path, module in modules if getattr(module, "inplace", False) is True]


def _write_out_of_place(network: nn.Module) -> nn.Module:
    """The network with no module in place, which overwrites features and what gradients need."""
    set_in_place(network, find_in_place_modules(network), in_place=False)
    return network


def set_in_place(network: nn.Module, paths: Iterable[str], *, in_place: bool) -> None:
    """Has the modules of these paths write over what they are given, or not."""
    modules = dict(network.named_modules())
    for path in paths:
        if path in modules:
            modules[path].inplace = in_place  # pyright: ignore
