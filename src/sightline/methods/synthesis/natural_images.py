"""A synthesis beside nature: the parts of a collection's images that drive the same units most, from a scan's store."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sightline.data.store.reader import Scan, TopImages
from sightline.errors import SightlineError
from sightline.methods.units.patches import UnitExamples, select_unit_top_images
from sightline.models.model import Model
from sightline.models.outputs import reshape_to_unit_grid
from sightline.optim.objectives.objective import Objective

MAX_RESCORED_IMAGES = 50  # images that are asked again for a class that the scan did not follow


@dataclass(frozen=True)
class NaturalExemplars:
    """A scan, asked about the unit of each picture of a synthesis: its strongest images, strongest first."""

    model: Model
    scan: Scan
    layer: str
    units: tuple[int, ...]
    top_images: tuple[TopImages, ...]

    @classmethod
    def from_store(
        cls,
        model: Model,
        store: str | Path,
        objective: Objective,
        objective_units: tuple[str, tuple[int, ...]],
    ) -> "NaturalExemplars":
        """From a store. Raises SightlineError if another network made it, for a layer that it did not follow, and an objective of no unit."""
        if not objective_units[1]:
            raise SightlineError(
                f"a store shows what drives a unit or a class, and {objective} is about neither: leave out store"
            )
        found, layer = Scan.open(store), model.layer(objective_units[0])
        found.require(model)
        known = {
            unit: find_strongest_images(model, found, layer, unit) for unit in objective_units[1]
        }
        return cls(
            model,
            found,
            layer,
            objective_units[1],
            tuple(known[unit] for unit in objective_units[1]),
        )

    def load_examples(self, picture_index: int, ranks: Tensor) -> UnitExamples:
        """Of one picture's unit the images at these places of the list."""
        return UnitExamples.from_scan(
            self.model,
            self.scan,
            self.layer,
            select_ranked_images(self.top_images[picture_index], ranks),
        )

    @torch.no_grad()
    def compute_response_ratio(self, picture: Tensor) -> Tensor:
        """The unit's strongest answer on each picture N×3×H×W, as a multiple of that on its best natural image; 0 where that is not above zero."""
        picture = picture.to(self.model.device)
        maps = reshape_to_unit_grid(self.model.run(picture, [self.layer])[self.layer], picture)
        peak = maps[torch.arange(len(picture)), torch.tensor(self.units)].flatten(1).amax(1).cpu()
        best = torch.stack([top.values[0] for top in self.top_images])
        return torch.where(best > 0, peak / best.clamp_min(1e-12), 0)

    def describe_unit(self, picture_index: int) -> str:
        """The unit of a picture in words."""
        unit = self.units[picture_index]
        return self.model.labels[unit] if self.layer == "logits" else f"unit {unit} of {self.layer}"


# ── from the store ──


def select_ranked_images(top_images: TopImages, ranks: Tensor) -> TopImages:
    """Some of one unit's images."""
    return TopImages(
        top_images.values[ranks],
        top_images.ids[ranks],
        None if top_images.positions is None else top_images.positions[ranks],
    )


def find_strongest_images(model: Model, scan: Scan, layer: str, unit: int) -> TopImages:
    """The images of a scan that drive a unit most, strongest first: values, ids and places, k each.

    Of a class that the scan did not follow, the images with it among their five most probable are asked again.
    """
    if layer != "logits" or layer in scan.layers:
        top = select_unit_top_images(scan.top(layer), unit, slice(None))
        return select_ranked_images(top, top.ids >= 0)
    labels, probabilities = scan.top5
    share = torch.where(labels == unit, probabilities, 0).amax(1)
    ids = share.argsort(descending=True, stable=True)[
        : min(MAX_RESCORED_IMAGES, int((share > 0).sum()))
    ]
    if not len(ids):
        name = model.labels[unit]
        raise SightlineError(
            f"no image of the store {scan.path.name} has {name!r} among its five most probable classes: leave out store"
        )
    values = score_stored_images(model, scan, ids.tolist(), unit)
    order = values.argsort(descending=True, stable=True)
    return TopImages(values[order], ids[order], None)


@torch.no_grad()
def score_stored_images(model: Model, scan: Scan, ids: Sequence[int], class_index: int) -> Tensor:
    """The score of a class for stored images."""
    return torch.cat(
        [
            model.run(scan.image(id).to(model.device), ["logits"])["logits"][:, class_index].cpu()
            for id in ids
        ]
    )
