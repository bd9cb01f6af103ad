"""A synthesis beside nature: the parts of a collection's images that drive the same units most, from a scan's store."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...errors import SightlineError
from ...model import Model
from ...objective import Objective
from ...outputs import positions
from ...scans.store import Scan, Top
from ..analytical.patches import Cases, part_of

CANDIDATES = 50  # images that are asked again for a class that the scan did not follow


@dataclass(frozen=True)
class Nature:
    """A scan, asked about the unit of each picture of a synthesis: its strongest images, strongest first."""

    model: Model
    found: Scan
    layer: str
    units: tuple[int, ...]
    strongest: tuple[Top, ...]

    @classmethod
    def of(cls, model: Model, store: str | Path, aim: Objective, named: tuple[str, tuple[int, ...]]) -> "Nature":
        """From a store. Raises SightlineError if another network made it, for a layer that it did not follow, and an objective of no unit."""
        if not named[1]:
            raise SightlineError(f"a store shows what drives a unit or a class, and {aim} is about neither: leave out store")
        found, layer = Scan.open(store), model.layer(named[0])
        found.require(model)
        known = {unit: strongest(model, found, layer, unit) for unit in named[1]}
        return cls(model, found, layer, named[1], tuple(known[unit] for unit in named[1]))

    def cases(self, number: int, which: Tensor) -> Cases:
        """Of one picture's unit the images at these places of the list."""
        return Cases.of(self.model, self.found, self.layer, some(self.strongest[number], which))

    @torch.no_grad()
    def ratio(self, picture: Tensor) -> Tensor:
        """The unit's strongest answer on each picture N×3×H×W, as a multiple of that on its best natural image; 0 where that is not above zero."""
        picture = picture.to(self.model.device)
        maps = positions(self.model.run(picture, [self.layer])[self.layer], picture)
        peak = maps[torch.arange(len(picture)), torch.tensor(self.units)].flatten(1).amax(1).cpu()
        best = torch.stack([top.values[0] for top in self.strongest])
        return torch.where(best > 0, peak / best.clamp_min(1e-12), 0)

    def name(self, number: int) -> str:
        """The unit of a picture in words."""
        unit = self.units[number]
        return self.model.labels[unit] if self.layer == "logits" else f"unit {unit} of {self.layer}"


# ── from the store ──


def some(top: Top, which: Tensor) -> Top:
    """Some of one unit's images."""
    return Top(top.values[which], top.ids[which], None if top.positions is None else top.positions[which])


def strongest(model: Model, found: Scan, layer: str, unit: int) -> Top:
    """The images of a scan that drive a unit most, strongest first: values, ids and places, k each.

    Of a class that the scan did not follow, the images with it among their five most probable are asked again.
    """
    if layer != "logits" or layer in found.layers:
        top = part_of(found.top(layer), unit, slice(None))
        return some(top, top.ids >= 0)
    labels, probabilities = found.top5
    share = torch.where(labels == unit, probabilities, 0).amax(1)
    ids = share.argsort(descending=True, stable=True)[: min(CANDIDATES, int((share > 0).sum()))]
    if not len(ids):
        name = model.labels[unit]
        raise SightlineError(f"no image of the store {found.path.name} has {name!r} among its five most probable classes: leave out store")
    values = asked(model, found, ids.tolist(), unit)
    order = values.argsort(descending=True, stable=True)
    return Top(values[order], ids[order], None)


@torch.no_grad()
def asked(model: Model, found: Scan, ids: Sequence[int], unit: int) -> Tensor:
    """The score of a class for stored images."""
    return torch.cat([model.run(found.image(id).to(model.device), ["logits"])["logits"][:, unit].cpu() for id in ids])
