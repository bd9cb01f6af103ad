"""Facets of a unit: groups of the natural images that drive it, and their means to start from (Nguyen, Yosinski & Clune 2016)."""

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from ... import image as images
from ...errors import SightlineError
from ...model import Model
from ...outputs import positions
from .exemplars import Nature

NEAREST = 15  # images that a start is the mean of (section 3.1)
AXES = 50  # principal axes before grouping


@dataclass(frozen=True)
class Facet:
    """One group of a unit's images: their places in its list, nearest to the group's centre first, how many the group has, its
    centre among all of the unit's (groups × d), and the mean of the nearest, 3×side×side."""

    places: Tensor
    size: int
    number: int
    centres: Tensor = field(repr=False)
    start: Tensor = field(repr=False)


def facets(model: Model, nature: Nature, side: int, seed: int) -> list[Facet]:
    """A facet for each picture of a synthesis: a unit that is asked for several times is divided into as many, the largest first.

    Raises SightlineError where the store keeps too few images of a unit.
    """
    found: dict[int, list[Facet]] = {}
    for unit, count in Counter(nature.units).items():
        number = nature.units.index(unit)
        if len(nature.strongest[number].ids) < 2 * count:
            raise SightlineError(
                f"{nature.name(number)} is asked for {count} times, and the store keeps {len(nature.strongest[number].ids)} of its images; "
                "a facet needs two at least: scan with a larger --k"
            )
        found[unit] = divided(model, centred(nature, number, side), count, seed)
    return [found[unit].pop(0) for unit in nature.units]


def centred(nature: Nature, number: int, side: int) -> Tensor:
    """The images of a picture's unit, K×3×side×side: whole for a class, else moved so that what the unit saw is in the middle."""
    top = nature.strongest[number]
    cases = nature.cases(number, torch.arange(len(top.ids)))
    if top.positions is None:
        return images.resize(cases.pictures, side, side)
    boxes = torch.tensor(cases.boxes)
    height, width = cases.pictures.shape[-2:]
    down, right = (boxes[:, :2] + boxes[:, 2:]).unbind(1)
    # In half sides of the picture, as affine_grid counts; one pixel stays one pixel.
    rows = torch.zeros(len(boxes), 2, 3)
    rows[:, 0, 0], rows[:, 1, 1] = side / width, side / height
    rows[:, 0, 2], rows[:, 1, 2] = right / width - 1, down / height - 1
    grid = F.affine_grid(rows, [len(boxes), 3, side, side], align_corners=False)
    return F.grid_sample(cases.pictures, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def divided(model: Model, pictures: Tensor, count: int, seed: int) -> list[Facet]:
    """Images K×3×side×side in `count` groups by their features, the largest group first."""
    from sklearn.cluster import KMeans

    codes = features(model, pictures)
    short = shortened(codes)
    # The paper lays the codes out by t-SNE first; k-means on the principal axes keeps the distances, and needs no luck.
    label = torch.from_numpy(KMeans(count, n_init=10, random_state=seed).fit_predict(short.numpy())).long()  # pyright: ignore[reportArgumentType]
    order = sorted(range(count), key=lambda group: -int((label == group).sum()))
    centres = torch.stack([codes[label == group].mean(0) for group in order])
    found = list[Facet]()
    for number, group in enumerate(order):
        members = (label == group).nonzero()[:, 0]
        far = (short[members] - short[members].mean(0)).norm(dim=1)
        near = members[far.argsort(stable=True)]
        found.append(Facet(near, len(members), number, centres, pictures[near[:NEAREST]].mean(0)))
    return found


@torch.no_grad()
def features(model: Model, pictures: Tensor) -> Tensor:
    """The codes of pictures before the classes (or at the last layer that has places), averaged over places, N×d of length 1."""
    marks = model.landmarks
    layer = model.layer("penultimate" if "penultimate" in marks else "last_conv" if "last_conv" in marks else "logits")
    parts = [positions(model.run(part.to(model.device), [layer])[layer], part).mean((2, 3)).cpu() for part in pictures.split(32)]
    return F.normalize(torch.cat(parts).float(), dim=1)


def shortened(codes: Tensor) -> Tensor:
    """Codes N×d on their principal axes, at most 50."""
    plain = codes - codes.mean(0)
    axes = torch.linalg.svd(plain, full_matrices=False).Vh[:AXES]
    return plain @ axes.T


def own(model: Model, picture: Tensor, found: list[Facet]) -> Tensor:
    """Whether each picture N×3×H×W, by its features, is nearer to its own facet's centre than to the unit's other ones."""
    codes = features(model, picture)
    return torch.stack([(facet.centres @ code).argmax() == facet.number for facet, code in zip(found, codes, strict=True)])
