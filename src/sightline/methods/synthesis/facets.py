"""Facets of a unit: groups of the natural images that drive it, and their means to start from (Nguyen, Yosinski & Clune 2016)."""

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.errors import SightlineError
from sightline.images.io import resize_image
from sightline.methods.synthesis.natural_images import NaturalExemplars
from sightline.models.model import Model
from sightline.models.outputs import reshape_to_unit_grid

FACET_START_IMAGES = 15  # images that a start is the mean of (section 3.1)

MAX_FACET_AXES = 50  # principal axes before grouping


@dataclass(frozen=True)
class Facet:
    """One group of a unit's images: their places in its list, nearest to the group's centre first, how many the group has, its
    centre among all of the unit's (groups × d), and the mean of the nearest, 3×side×side."""

    indices: Tensor
    image_count: int
    index: int
    centers: Tensor = field(repr=False)
    start_image: Tensor = field(repr=False)


def find_unit_facets(
    model: Model, exemplars: NaturalExemplars, side: int, seed: int
) -> list[Facet]:
    """A facet for each picture of a synthesis: a unit that is asked for several times is divided into as many, the largest first.

    Raises SightlineError where the store keeps too few images of a unit.
    """
    found: dict[int, list[Facet]] = {}
    for unit, count in Counter(exemplars.units).items():
        number = exemplars.units.index(unit)
        if len(exemplars.top_images[number].ids) < 2 * count:
            raise SightlineError(
                f"{exemplars.describe_unit(number)} is asked for {count} times, and the store keeps {len(exemplars.top_images[number].ids)} of its images; "
                "a facet needs two at least: scan with a larger --k"
            )
        found[unit] = cluster_facets(
            model, center_unit_images(exemplars, number, side), count, seed
        )
    return [found[unit].pop(0) for unit in exemplars.units]


def center_unit_images(exemplars: NaturalExemplars, picture_index: int, side: int) -> Tensor:
    """The images of a picture's unit, K×3×side×side: whole for a class, else moved so that what the unit saw is in the middle."""
    top = exemplars.top_images[picture_index]
    cases = exemplars.load_examples(picture_index, torch.arange(len(top.ids)))
    if top.positions is None:
        return resize_image(cases.images, side, side)
    boxes = torch.tensor(cases.boxes)
    height, width = cases.images.shape[-2:]
    down, right = (boxes[:, :2] + boxes[:, 2:]).unbind(1)
    # In half sides of the picture, as affine_grid counts; one pixel stays one pixel.
    rows = torch.zeros(len(boxes), 2, 3)
    rows[:, 0, 0], rows[:, 1, 1] = side / width, side / height
    rows[:, 0, 2], rows[:, 1, 2] = right / width - 1, down / height - 1
    grid = F.affine_grid(rows, [len(boxes), 3, side, side], align_corners=False)
    return F.grid_sample(
        cases.images, grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )


def cluster_facets(model: Model, pictures: Tensor, facet_count: int, seed: int) -> list[Facet]:
    """Images K×3×side×side in `count` groups by their features, the largest group first."""
    from sklearn.cluster import KMeans

    codes = compute_facet_codes(model, pictures)
    short = project_on_main_axes(codes)
    # The paper lays the codes out by t-SNE first; k-means on the principal axes keeps the distances, and needs no luck.
    label = torch.from_numpy(
        KMeans(facet_count, n_init=10, random_state=seed).fit_predict(short.numpy())
    ).long()  # pyright: ignore[reportArgumentType]
    order = sorted(range(facet_count), key=lambda group: -int((label == group).sum()))
    centres = torch.stack([codes[label == group].mean(0) for group in order])
    found = list[Facet]()
    for number, group in enumerate(order):
        members = (label == group).nonzero()[:, 0]
        far = (short[members] - short[members].mean(0)).norm(dim=1)
        near = members[far.argsort(stable=True)]
        found.append(
            Facet(near, len(members), number, centres, pictures[near[:FACET_START_IMAGES]].mean(0))
        )
    return found


@torch.no_grad()
def compute_facet_codes(model: Model, pictures: Tensor) -> Tensor:
    """The codes of pictures before the classes (or at the last layer that has places), averaged over places, N×d of length 1."""
    marks = model.landmarks
    layer = model.layer(
        "penultimate"
        if "penultimate" in marks
        else "last_conv"
        if "last_conv" in marks
        else "logits"
    )
    parts = [
        reshape_to_unit_grid(model.run(part.to(model.device), [layer])[layer], part)
        .mean((2, 3))
        .cpu()
        for part in pictures.split(32)
    ]
    return F.normalize(torch.cat(parts).float(), dim=1)


def project_on_main_axes(codes: Tensor) -> Tensor:
    """Codes N×d on their principal axes, at most 50."""
    plain = codes - codes.mean(0)
    axes = torch.linalg.svd(plain, full_matrices=False).Vh[:MAX_FACET_AXES]
    return plain @ axes.T


def match_own_facets(model: Model, picture: Tensor, facets: list[Facet]) -> Tensor:
    """Whether each picture N×3×H×W, by its features, is nearer to its own facet's centre than to the unit's other ones."""
    codes = compute_facet_codes(model, picture)
    return torch.stack(
        [
            (facet.centers @ code).argmax() == facet.index
            for facet, code in zip(facets, codes, strict=True)
        ]
    )
