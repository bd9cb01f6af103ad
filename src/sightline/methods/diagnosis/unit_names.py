"""The names of units that are shown, where the name survives its tests."""

from collections.abc import Iterable

from sightline.data.store.reader import Scan
from sightline.errors import SightlineError
from sightline.methods.units.naming.concepts import collect_class_concepts
from sightline.methods.units.naming.names import name_units

# Names of units by layer and unit; units without a name are left out.
UnitNames = dict[tuple[str, int], str]


def find_unit_names(scan: Scan, places: Iterable[tuple[str, int]]) -> UnitNames:
    """The names of some units of a scan, given as layers and units.

    Units are named after the dataset's classes, or after those that the network predicts. A name is
    left out unless it agrees with its unit well enough to stand beside a picture.
    """
    try:
        concepts = collect_class_concepts(scan)
    except SightlineError:  # there is nothing to name units after
        return {}
    units_by_layer: dict[str, set[int]] = {}
    for layer, unit in places:
        units_by_layer.setdefault(layer, set()).add(unit)
    names: UnitNames = {}
    for layer, layer_units in units_by_layer.items():
        units = sorted(layer_units)
        for unit, name in zip(units, name_units(scan, layer, concepts, units=units), strict=True):
            if name is not None and name.fits_well:
                names[layer, unit] = name.text
    return names
