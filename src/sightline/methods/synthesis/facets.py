"""Facets of a unit: groups of the natural images that drive it, and means to start an ascent from.

Nguyen, Yosinski & Clune 2016, "Multifaceted feature visualization", section 3.1.
"""

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.errors import SightlineError
from sightline.images.transforms import resize_image
from sightline.methods.synthesis.natural_images import NaturalExemplars
from sightline.models.layers.feature_maps import reshape_to_unit_grid
from sightline.models.model import Model

FACET_START_IMAGES = 15  # images that a start is the mean of (section 3.1)

MAX_FACET_AXES = 50  # principal axes before grouping

CODE_BATCH = 32  # images run at once for their codes


@dataclass(frozen=True)
class Facet:
    """One group of a unit's natural images.

    Attributes:
        indices: positions of the group's images in the unit's list, nearest to the centre first.
        image_count: images in the group.
        index: number of the group among the unit's groups.
        centers: mean codes of all the unit's groups, groups×d.
        start_image: mean of the nearest images, 3×H×W.
    """

    indices: Tensor
    image_count: int
    index: int
    centers: Tensor = field(repr=False)
    start_image: Tensor = field(repr=False)


def find_unit_facets(
    model: Model, exemplars: NaturalExemplars, size: tuple[int, int], seed: int
) -> list[Facet]:
    """A facet for each image of a synthesis.

    The images of a unit that was asked for n times are divided into n groups, largest first.

    Raises SightlineError where the store keeps too few images of a unit.
    """
    facets: dict[int, list[Facet]] = {}
    for unit, count in Counter(exemplars.units).items():
        position = exemplars.units.index(unit)
        image_count = len(exemplars.top_images[position].ids)
        if image_count < 2 * count:
            raise SightlineError(
                f"{exemplars.describe_unit(position)} is asked for {count} times, and the store "
                f"keeps {image_count} of its images; a facet needs at least two: "
                "scan with a larger --k"
            )
        images = center_unit_images(exemplars, position, size)
        facets[unit] = cluster_facets(model, images, count, seed)
    return [facets[unit].pop(0) for unit in exemplars.units]


def center_unit_images(
    exemplars: NaturalExemplars, picture_index: int, size: tuple[int, int]
) -> Tensor:
    """The natural images of a unit, K×3×H×W of that size.

    They are whole for a class, else shifted so that what drives the unit is in the middle.
    """
    top = exemplars.top_images[picture_index]
    examples = exemplars.load_examples(picture_index, torch.arange(len(top.ids)))
    if top.positions is None:
        return resize_image(examples.images, *size)
    boxes = torch.tensor(examples.boxes)
    height, width = examples.images.shape[-2:]
    # Twice the centre of each box, in pixels.
    center_row, center_column = (boxes[:, :2] + boxes[:, 2:]).unbind(1)
    # affine_grid counts in half sides of the image; one pixel stays one pixel.
    transform = examples.images.new_zeros(len(boxes), 2, 3)
    transform[:, 0, 0] = size[1] / width
    transform[:, 1, 1] = size[0] / height
    transform[:, 0, 2] = center_column / width - 1
    transform[:, 1, 2] = center_row / height - 1
    grid = F.affine_grid(transform, [len(boxes), 3, *size], align_corners=False)
    return F.grid_sample(
        examples.images, grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )


def cluster_facets(model: Model, images: Tensor, facet_count: int, seed: int) -> list[Facet]:
    """Groups images K×3×H×W by their features, the largest group first."""
    from sklearn.cluster import KMeans

    codes = compute_facet_codes(model, images)
    projected = project_on_main_axes(codes)
    # The paper lays the codes out by t-SNE first. K-means on the principal axes keeps the
    # distances, and does not depend on luck.
    clustering = KMeans(facet_count, n_init=10, random_state=seed)  # pyright: ignore[reportArgumentType]
    group_of = torch.from_numpy(clustering.fit_predict(projected.numpy())).long()
    largest_first = sorted(range(facet_count), key=lambda group: -int((group_of == group).sum()))
    centers = torch.stack([codes[group_of == group].mean(0) for group in largest_first])

    facets: list[Facet] = []
    for index, group in enumerate(largest_first):
        members = (group_of == group).nonzero()[:, 0]
        distance = (projected[members] - projected[members].mean(0)).norm(dim=1)
        nearest_first = members[distance.argsort(stable=True)]
        start_image = images[nearest_first[:FACET_START_IMAGES]].mean(0)
        facets.append(Facet(nearest_first, len(members), index, centers, start_image))
    return facets


@torch.no_grad()
def compute_facet_codes(model: Model, images: Tensor) -> Tensor:
    """Codes of images, N×d of length 1.

    They are the penultimate features (or those of the last layer with positions), averaged over
    positions.
    """
    landmarks = model.landmarks
    candidates = [name for name in ("penultimate", "last_conv") if name in landmarks]
    layer = model.layer(candidates[0] if candidates else "logits")
    codes: list[Tensor] = []
    for batch in images.split(CODE_BATCH):
        feature = model.run(batch.to(model.device), [layer])[layer]
        codes.append(reshape_to_unit_grid(feature, batch, model, layer).mean((2, 3)).cpu())
    return F.normalize(torch.cat(codes).float(), dim=1)


def project_on_main_axes(codes: Tensor) -> Tensor:
    """Codes N×d on their principal axes, at most `MAX_FACET_AXES`."""
    centered = codes - codes.mean(0)
    axes = torch.linalg.svd(centered, full_matrices=False).Vh[:MAX_FACET_AXES]
    return centered @ axes.T


def match_own_facets(model: Model, image: Tensor, facets: list[Facet]) -> Tensor:
    """Whether each image N×3×H×W is nearest to its own facet's centre among the unit's, N."""
    codes = compute_facet_codes(model, image)
    matches: list[Tensor] = []
    for facet, code in zip(facets, codes, strict=True):
        nearest = (facet.centers @ code).argmax()
        matches.append(nearest == facet.index)
    return torch.stack(matches)
