"""A network with some units switched off."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sightline.data.store.reader import Scan
from sightline.errors import make_out_of_range_error
from sightline.models.model import Model

UnitsOff = Mapping[str, Sequence[int]]

# Somebody who covers parts of an image with the same units off asks the same network again.
MAX_ABLATED_MODELS = 4


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


@dataclass
class AblatedModels:
    """The networks without the units that were switched off last."""

    model: Model
    _ablated: OrderedDict[str, Model] = field(default_factory=OrderedDict[str, Model])

    def get(self, units_off: UnitsOff) -> Model:
        """The network in which these units give zero; the whole one for no units."""
        if not units_off:
            return self.model
        key = repr(sorted(units_off.items()))
        if key not in self._ablated:
            self._ablated[key] = self.model.ablated(units_off)
            while len(self._ablated) > MAX_ABLATED_MODELS:
                self._ablated.popitem(last=False)
        self._ablated.move_to_end(key)
        return self._ablated[key]
