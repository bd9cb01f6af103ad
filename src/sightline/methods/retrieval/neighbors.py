"""Nearest neighbours of an image in feature space beside those in pixel space (Krizhevsky 2012, section 6.1)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from sightline.data.scan.access import (
    compute_feature_vectors,
    compute_pixel_vectors,
    load_pixel_vectors,
    name_image_classes,
    resolve_network,
    resolve_scan,
)
from sightline.data.search.nearest import Metric, find_nearest, measure_vote_accuracy
from sightline.data.store.index import (
    MIN_APPROXIMATE_IMAGES,
    VectorIndex,
    ensure_vector_index,
    read_vector_rows,
    search_vector_index,
)
from sightline.data.store.reader import Scan
from sightline.errors import SightlineError, make_out_of_range_error
from sightline.images.io import resize_image
from sightline.images.plotting.captioned_rows import FigureRow, compose_figure_rows
from sightline.images.plotting.maps import draw_box_outline
from sightline.models.model import Model
from sightline.registry.method import register_method
from sightline.registry.parameter import ValueRange
from sightline.registry.result import Result

KNN_VOTERS = 5  # of the k-NN classification


@dataclass(frozen=True)
class NeighborQuery:
    """What is looked for: vectors N×d, pictures of it with words, and N places in the store that are not an answer."""

    vectors: Tensor
    images: list[Tensor]
    captions: list[str]
    excluded_ids: Tensor | None = None
    pixel_vectors: Tensor | None = None  # N×3072; None for a direction, which has no pixels


@register_method(
    chapter="analytical",
    title="Nearest neighbours",
    question="Which images are alike to the network?",
    reading="The first row has the images whose features are nearest to those of the image on the left, the second the ones whose pixels are. Pixels agree "
    "in colour and layout; features should agree in what is shown, whatever the pose and background.",
    caution="The nearest of a small collection can still be far away: look at the distances, and at how large the collection is.",
)
def neighbors(
    model: Model | Scan,
    image: Tensor | None = None,
    *,
    folder: str | Path | None = None,
    store: str | Path | None = None,
    layer: str = "penultimate",
    k: Annotated[int, ValueRange(1, 1000)] = 8,
    metric: Literal["cosine", "l2"] = "cosine",
    id: Annotated[int | None, ValueRange(0, 10**12)] = None,
    unit: Annotated[int | None, ValueRange(0, 10**6)] = None,
    box: tuple[int, ...] = (),
    search: Literal["auto", "exact", "approximate"] = "auto",
) -> Result:
    """Finds the k images of a collection that are nearest to an image, a part of one, or a unit, by features and by pixels.

    For N images `values["ids"]`, `["distance"]` are N×k, nearest first, and `["paths"]` the files; `["pixel_ids"]`,
    `["pixel_distance"]` the same by pixels (L2 between the middle squares at 32×32; not for a unit). Where the collection has classes,
    `["accuracy"]` and `["pixel_accuracy"]` are the shares of its images whose class the 5 nearest others tell. Of 500,000 images
    and more there is neither that nor the pixels'. `["recall"]` is the share of the 10 exact neighbours of stored images that the
    search by features finds: 1, or what was measured of 100 of them where it is approximate.

    Args:
        folder: Collection to search: a folder of images; None for tiles of the sample photographs.
        store: File that keeps the pass over the collection; alone, it is read as it is. None for one in the user's cache.
        k: How many neighbours.
        metric: "cosine" 1 − cos of the features, or "l2", their distance.
        id: Asks for the neighbours of this image of the collection, in place of an image of your own.
        unit: Asks which images lie most in the direction of this number of the features, in place of an image.
        box: Part of the image to ask for: top, left, bottom, right in pixels (exclusive); none for the whole.
        search: "exact", "approximate" by an index that is built in the store once for a metric, or "auto": the index from 500,000 images on.
    """
    found = resolve_scan(model, folder, store, vector_layer=layer)
    asked = build_neighbor_query(
        model, found, image, layer=layer, image_id=id, unit=unit, box=box, metric=metric
    )
    index, how = choose_search_index(found, layer, metric, search)
    if index is not None:
        distance, ids = search_vector_index(
            found, layer, index, asked.vectors, k=k, exclude=asked.excluded_ids
        )
    else:
        distance, ids = find_nearest(
            found.vectors(layer), asked.vectors, k, metric, asked.excluded_ids
        )
    values: dict[str, Any] = {
        "ids": ids,
        "distance": distance,
        "paths": [[str(found.paths[i]) for i in row] for row in ids.tolist()],
    }
    values["recall"] = 1.0 if index is None else index.recall
    if asked.pixel_vectors is not None and found.images < MIN_APPROXIMATE_IMAGES:
        values["pixel_distance"], values["pixel_ids"] = find_nearest(
            load_pixel_vectors(found), asked.pixel_vectors, k, "l2", asked.excluded_ids
        )
    if found.classes is not None and found.images < MIN_APPROXIMATE_IMAGES:
        values["accuracy"] = measure_vote_accuracy(
            found.vectors(layer), found.classes, KNN_VOTERS, metric
        )
        values["pixel_accuracy"] = measure_vote_accuracy(
            load_pixel_vectors(found), found.classes, KNN_VOTERS, "l2"
        )
    caption = describe_neighbors(found, values, layer, metric) + f" Searched {how}."
    return Result(
        {"neighbors": render_neighbors(found, asked, values, layer)}, values, {"neighbors": caption}
    )


def choose_search_index(
    scan: Scan, layer: str, metric: Metric, search: str
) -> tuple[VectorIndex | None, str]:
    """The index to search by, None for all vectors, and in words how. Raises SightlineError where one is asked for that can't be had."""
    if search == "exact" or (search == "auto" and scan.images < MIN_APPROXIMATE_IMAGES):
        return None, "exactly"
    try:
        index = ensure_vector_index(scan, layer, metric)
    except SightlineError as error:
        if search == "approximate":
            raise
        return None, f"exactly: {error}"
    return index, f"approximately: {index}"


# ── what is looked for ──


def build_neighbor_query(
    model: Model | Scan,
    scan: Scan,
    image: Tensor | None,
    *,
    layer: str,
    image_id: int | None,
    unit: int | None,
    box: tuple[int, ...],
    metric: Metric,
) -> NeighborQuery:
    """The one thing that is asked for: an image, a stored one, or a unit."""
    if sum(given is not None for given in (image, image_id, unit)) != 1:
        raise SightlineError(
            "neighbours of what? give an image, or the id of a stored one, or a unit: exactly one of them"
        )
    if unit is not None:
        return build_unit_query(scan, layer, unit, box, metric)
    if image_id is not None and image_id >= scan.images:
        raise make_out_of_range_error(
            "id", image_id, 0, f"{scan.images - 1}, the last image of the collection"
        )
    if image_id is not None and not box:
        shown, own = scan.thumbnail(image_id), torch.tensor([image_id])
        return NeighborQuery(
            read_vector_rows(scan, layer, [image_id]),
            [shown],
            [f"{name_image_classes(scan, [image_id])[0]}\nid {image_id}"],
            own,
            compute_pixel_vectors(shown),
        )
    whole = image if image is not None else scan.image(image_id or 0)
    part, shown = crop_query_region(whole, box)
    net = resolve_network(model, scan)
    part = part if not box else resize_image(part, net.size, net.size)
    return NeighborQuery(
        compute_feature_vectors(net, part, layer),
        list(shown.split(1)),
        ["the region" if box else "the image"] * len(part),
        None,
        compute_pixel_vectors(part.cpu()),
    )


def build_unit_query(
    scan: Scan, layer: str, unit: int, box: tuple[int, ...], metric: Metric
) -> NeighborQuery:
    """The axis of one number of the features."""
    size = read_vector_rows(scan, layer, [0]).shape[1]
    if unit >= size:
        raise SightlineError(f"unit is {unit}; {layer} has units 0 to {size - 1}")
    if metric != "cosine" or box:
        raise SightlineError(
            'a unit is a direction: it goes with metric="cosine" and without a box'
        )
    return NeighborQuery(
        torch.eye(size)[unit : unit + 1],
        [torch.full((1, 3, 8, 8), 0.93)],
        [f"unit {unit}\nof {layer}"],
    )


def crop_query_region(image: Tensor, box: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The part of the images in a box, and the images with it outlined. Raises SightlineError for a box that isn't inside."""
    if not box:
        return image, image
    height, width = image.shape[-2:]
    if len(box) != 4 or not (0 <= box[0] < box[2] <= height and 0 <= box[1] < box[3] <= width):
        raise SightlineError(
            f"box is {box}; it must be top, left, bottom, right inside the image's {height}×{width} pixels"
        )
    top, left, bottom, right = box
    return image[:, :, top:bottom, left:right], draw_box_outline(image, (top, left, bottom, right))


# ── picture ──


def render_neighbors(
    scan: Scan, query: NeighborQuery, values: Mapping[str, object], layer: str
) -> Tensor:
    """For each query a row of neighbours by features and one by pixels."""
    rows: list[FigureRow] = []
    for i, (shown, words) in enumerate(zip(query.images, query.captions, strict=True)):
        for kind, title in (
            ("", f"nearest in the features of {layer}"),
            ("pixel_", "nearest in pixels"),
        ):
            ids, distance = values.get(f"{kind}ids"), values.get(f"{kind}distance")
            if not isinstance(ids, Tensor) or not isinstance(distance, Tensor):
                continue
            near = ids[i].tolist()
            under = [
                f"{name}\n{d:.3g}"
                for name, d in zip(
                    name_image_classes(scan, near), distance[i].tolist(), strict=True
                )
            ]
            rows.append(
                FigureRow(
                    title, [shown, *scan.thumbnails(near).split(1)], [words, *under], lead_count=1
                )
            )
    return compose_figure_rows(rows)


def describe_neighbors(scan: Scan, values: Mapping[str, object], layer: str, metric: Metric) -> str:
    """The caption."""
    measure = "1 − cosine" if metric == "cosine" else "Euclidean distance"
    words = f"On the left what was asked for; right of it the nearest of {scan.images:,} images, with the {measure} of their features of {layer} under each"
    words += (
        ", and below those nearest in pixels (middle square at 32×32), with the Euclidean distance."
        if "pixel_ids" in values
        else "."
    )
    if "accuracy" in values:
        words += (
            f" The 5 nearest others tell an image's class for {values['accuracy']:.1%} of the collection by features, "
            f"{values['pixel_accuracy']:.1%} by pixels."
        )
    else:
        words += " A name with a question mark is what the network takes the image for."
    return words
