"""A network with some units switched off."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from sightline.data.store.reader import Scan
from sightline.errors import SightlineError, make_out_of_range_error
from sightline.models.layers.feature_maps import reshape_to_unit_grid
from sightline.models.model import Model

UnitsOff = Mapping[str, Sequence[int]]


def resolve_units_off(scan: Scan, units_off: UnitsOff) -> dict[str, list[int]]:
    """The units by the layers' own names, sorted, without layers of which all units are on.

    Raises SightlineError for a layer that the scan does not follow, and for units it has not.
    """
    resolved: dict[str, list[int]] = {}
    for name, units in units_off.items():
        layer = scan.resolve_layer("layer", name, scan.layers)
        unit_count = scan.description.layers[layer].units
        for unit in units:
            if not 0 <= unit < unit_count:
                raise make_out_of_range_error(f"unit of {layer}", unit, 0, unit_count - 1)
        if units:
            resolved[layer] = sorted(set(units))
    return resolved


@contextmanager
def switch_units_off(model: Model, units_off: UnitsOff) -> Generator[Model, None, None]:
    """The model whose units give zero while the block runs. Nobody else may run it meanwhile."""
    with ExitStack() as hooks:
        for layer, units in units_off.items():
            module = model.module(layer)
            if module is not model.network.get_submodule(layer):
                raise SightlineError(f"{layer} is a step inside a module; it can't be switched off")
            hook = _make_hook(model, layer, units)
            handle = module.register_forward_hook(hook)
            hooks.callback(handle.remove)
        yield model


def _make_hook(model: Model, layer: str, units: Sequence[int]) -> Any:
    def set_zero(_module: Any, _inputs: Any, output: Any) -> Tensor:
        changed = output.clone()
        blank = torch.empty(len(output), model.channels, *model.image_size)
        # A view of the features, so that writing to it writes to them.
        maps = reshape_to_unit_grid(changed, blank)
        maps[:, list(units)] = 0
        return changed

    return set_zero
