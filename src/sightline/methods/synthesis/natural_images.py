"""Natural images beside a synthesis: those of a scan's store that drive the same units most."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sightline.data.store.reader import Scan, TopImages
from sightline.errors import SightlineError
from sightline.methods.units.patches import UnitExamples, select_unit_top_images
from sightline.models.layers.feature_maps import reshape_to_unit_grid
from sightline.models.model import Model
from sightline.optim.objectives.objective import Objective

# Images that are scored again for a class whose responses the scan does not keep.
MAX_RESCORED_IMAGES = 50


@dataclass(frozen=True)
class NaturalExemplars:
    """The strongest natural images for the unit of each image of a synthesis.

    Attributes:
        model: the network.
        scan: its scan of natural images.
        layer: the units' layer.
        units: the unit of each image of the synthesis, N.
        top_images: the strongest natural images of each unit, N, strongest first.
    """

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
        """Reads the images from a store.

        Raises SightlineError for a store of another network, a layer that the scan did not follow,
        and an objective that is about no unit.
        """
        layer_name, units = objective_units
        if not units:
            raise SightlineError(
                f"a store shows what drives a unit or a class, and {objective} is about neither; "
                "leave out store"
            )
        scan = Scan.open(store)
        layer = model.layer(layer_name)
        scan.require(model)
        top_of_unit = {unit: find_strongest_images(model, scan, layer, unit) for unit in units}
        return cls(model, scan, layer, units, tuple(top_of_unit[unit] for unit in units))

    def load_examples(self, picture_index: int, ranks: Tensor) -> UnitExamples:
        """The natural images of these ranks (0 is the strongest) for one image of the synthesis."""
        top = select_ranked_images(self.top_images[picture_index], ranks)
        return UnitExamples.from_scan(self.model, self.scan, self.layer, top)

    @torch.no_grad()
    def compute_response_ratio(self, picture: Tensor) -> Tensor:
        """The unit's strongest response on each image N×3×H×W over that on its best natural image.

        N numbers; 0 where no natural image drives the unit above zero.
        """
        picture = picture.to(self.model.device)
        feature = self.model.run(picture, [self.layer])[self.layer]
        maps = reshape_to_unit_grid(feature, picture, self.model, self.layer)
        own_maps = maps[torch.arange(len(picture)), torch.tensor(self.units)]
        peak = own_maps.flatten(1).amax(1).cpu()
        best_natural = torch.stack([top.values[0] for top in self.top_images])
        return torch.where(best_natural > 0, peak / best_natural.clamp_min(1e-12), 0)

    def describe_unit(self, picture_index: int) -> str:
        """The unit of an image in words."""
        unit = self.units[picture_index]
        return self.model.labels[unit] if self.layer == "logits" else f"unit {unit} of {self.layer}"


# ── from the store ──


def select_ranked_images(top_images: TopImages, ranks: Tensor) -> TopImages:
    """Some of one unit's images."""
    positions = top_images.positions
    return TopImages(
        top_images.values[ranks],
        top_images.ids[ranks],
        None if positions is None else positions[ranks],
    )


def find_strongest_images(model: Model, scan: Scan, layer: str, unit: int) -> TopImages:
    """The images of a scan that drive a unit most, strongest first: values, ids, positions, k each.

    For a class whose responses the scan does not keep, the images with the class among their five
    most probable ones are scored again.
    """
    if layer != "logits" or layer in scan.layers:
        top = select_unit_top_images(scan.top(layer), unit, slice(None))
        return select_ranked_images(top, top.ids >= 0)

    labels, probabilities = scan.top5
    probability = torch.where(labels == unit, probabilities, 0).amax(1)
    candidate_count = min(MAX_RESCORED_IMAGES, int((probability > 0).sum()))
    ids = probability.argsort(descending=True, stable=True)[:candidate_count]
    if not len(ids):
        raise SightlineError(
            f"no image of the store {scan.path.name} has {model.labels[unit]!r} among its five "
            "most probable classes; leave out store"
        )
    scores = score_stored_images(model, scan, ids.tolist(), unit)
    order = scores.argsort(descending=True, stable=True)
    return TopImages(scores[order], ids[order], None)


@torch.no_grad()
def score_stored_images(model: Model, scan: Scan, ids: Sequence[int], class_index: int) -> Tensor:
    """The score of a class for stored images, in the order of the ids."""
    scores: list[Tensor] = []
    for id in ids:
        logits = model.run(scan.image(id).to(model.device), ["logits"])["logits"]
        scores.append(logits[:, class_index].cpu())
    return torch.cat(scores)
