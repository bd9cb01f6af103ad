"""Nearest neighbours of an image by features and by pixels (Krizhevsky 2012, section 6.1)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from sightline.data.scan.access import (
    compute_pixel_vectors,
    count_voters,
    load_pixel_vectors,
    name_feature_layer,
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
from sightline.data.store.reader import Scan, compute_feature_vectors
from sightline.errors import SightlineError, make_out_of_range_error
from sightline.images.plotting.captioned_rows import FigureRow, compose_figure_rows
from sightline.images.plotting.figures import PictureRows
from sightline.images.plotting.maps import draw_box_outline
from sightline.images.transforms import resize_image
from sightline.models.model import Model
from sightline.registry.method import register_method
from sightline.registry.parameter import ValueRange
from sightline.registry.result import Result

DEFAULT_NEIGHBORS = 8

KNN_VOTERS = 5  # neighbours that vote in the k-NN classification

UNIT_PICTURE_GRAY = 0.93  # stands for a unit, which has no picture


@dataclass(frozen=True)
class NeighborQuery:
    """What neighbours are searched for: N vectors, and a picture and a caption of each.

    `excluded_ids` has the id of one stored image to leave out for each vector. `pixel_vectors`,
    N×3072, are None for a unit, which has no pixels.
    """

    vectors: Tensor
    pictures: list[Tensor]
    captions: list[str]
    excluded_ids: Tensor | None = None
    pixel_vectors: Tensor | None = None


@register_method(
    chapter="analytical",
    title="Nearest neighbours",
    question="Which images are alike to the network?",
    reading="The first row has the images whose features are nearest to those of the image on the "
    "left, the second the ones whose pixels are. Pixels agree in colour and layout; features "
    "should agree in what is shown, whatever the pose and background.",
    caution="The nearest of a small dataset can still be far away: look at the distances, and at "
    "how large the dataset is.",
)
def neighbors(
    model: Model | Scan,
    image: Tensor | None = None,
    *,
    folder: str | Path | None = None,
    store: str | Path | None = None,
    layer: str = "penultimate",
    k: Annotated[int | None, ValueRange(1, 1000)] = None,
    metric: Literal["cosine", "l2"] = "cosine",
    id: Annotated[int | None, ValueRange(0, 10**12)] = None,
    unit: Annotated[int | None, ValueRange(0, 10**6)] = None,
    box: tuple[int, ...] = (),
    search: Literal["auto", "exact", "approximate"] = "auto",
) -> Result:
    """Finds the k images of a dataset that are nearest to an image, a part of one, or a unit.

    For N images `values["ids"]` and `["distance"]` are N×k, nearest first, and `["paths"]` the
    files; `["pixel_ids"]` and `["pixel_distance"]` are the same by pixels (L2 between the middle
    squares at 32×32; not for a unit).

    Where the dataset has classes, `["accuracy"]` and `["pixel_accuracy"]` are the shares of its
    images whose class is that of most of the 5 nearest others. From 500,000 images on, neither
    these nor the neighbours by pixels are computed.

    `["recall"]` is the share of the 10 exact neighbours of stored images that the search by
    features finds: 1, or what was measured for 100 images if the search is approximate.

    Args:
        folder: Dataset to search: a folder of images; None for parts of the sample pictures.
        store: File that keeps the pass over the dataset; alone, it is read as it is. None for one
            in the user's cache.
        k: How many neighbours; None for 8, or all if there are fewer.
        metric: "cosine" 1 − cos of the features, or "l2", their distance.
        id: Image of the dataset whose neighbours to find, in place of an image of your own.
        unit: Number of the features; finds the images that lie most in its direction, in place of
            an image.
        box: Part of the image to search for: top, left, bottom, right in pixels (exclusive); none
            for the whole image.
        search: "exact", "approximate" by an index that is built in the store once for a metric, or
            "auto": the index from 500,000 images on.
    """
    scan = resolve_scan(model, folder, store, vector_layer=layer)
    query = build_neighbor_query(
        model, scan, image, layer=layer, image_id=id, unit=unit, box=box, metric=metric
    )
    k, shortage = choose_neighbor_count(scan, query, k)
    index, search_description = choose_search_index(scan, layer, metric, search)
    if index is None:
        distances, ids = find_nearest(
            scan.vectors(layer), query.vectors, k, metric, query.excluded_ids
        )
    else:
        distances, ids = search_vector_index(
            scan, layer, index, query.vectors, k=k, exclude=query.excluded_ids
        )
    values: dict[str, Any] = {
        "ids": ids,
        "distance": distances,
        "paths": [[str(scan.paths[image_id]) for image_id in row] for row in ids.tolist()],
        "recall": 1.0 if index is None else index.recall,
    }
    is_small = scan.images < MIN_APPROXIMATE_IMAGES
    if is_small and query.pixel_vectors is not None:
        values["pixel_distance"], values["pixel_ids"] = find_nearest(
            load_pixel_vectors(scan), query.pixel_vectors, k, "l2", query.excluded_ids
        )
    voters = count_voters(scan, KNN_VOTERS)
    if is_small and voters and scan.classes is not None:
        values["accuracy"] = measure_vote_accuracy(
            scan.vectors(layer), scan.classes, KNN_VOTERS, metric
        )
        values["pixel_accuracy"] = measure_vote_accuracy(
            load_pixel_vectors(scan), scan.classes, KNN_VOTERS, "l2"
        )

    layer_name = name_feature_layer(scan, layer)
    rows = list_neighbor_rows(scan, query, values, layer_name)
    # What the dataset's images say of each other says nothing of an image that is none of them.
    shown_voters = voters if query.excluded_ids is not None else 0
    description = describe_neighbors(scan, values, layer_name, metric, shown_voters)
    caption = f"{description} Searched {search_description}.{shortage}"
    return Result(
        {"neighbors": compose_figure_rows(rows)},
        values,
        {"neighbors": caption},
        figures={"neighbors": PictureRows(rows)},
    )


def choose_neighbor_count(scan: Scan, query: NeighborQuery, k: int | None) -> tuple[int, str]:
    """The number of neighbours to find, and a sentence for the caption if images are missing.

    Raises SightlineError if there is no image to choose, and for a `k` given that is too large.
    """
    available = scan.images - (query.excluded_ids is not None)
    if available < 1:
        raise SightlineError("the dataset has no other image; give one with at least two images")
    if k is not None and k > available:
        limit = f"{available}, the number of images to choose from"
        raise make_out_of_range_error("k", k, 1, limit)
    if k is None and available < DEFAULT_NEIGHBORS:
        noun = "image" if available == 1 else "images"
        return available, f" There are only {available} {noun} to choose from."
    return k or DEFAULT_NEIGHBORS, ""


def choose_search_index(
    scan: Scan, layer: str, metric: Metric, search: str
) -> tuple[VectorIndex | None, str]:
    """The index to search by, None to search exactly, and a description of the search.

    Raises SightlineError if search="approximate" is not possible; "auto" is exact then, and the
    description says why.
    """
    is_small = scan.images < MIN_APPROXIMATE_IMAGES
    if search == "exact" or (search == "auto" and is_small):
        return None, "exactly"
    try:
        index = ensure_vector_index(scan, layer, metric)
    except SightlineError as error:
        if search == "approximate":
            raise
        return None, f"exactly: {error}"
    return index, f"approximately: {index}"


# ── the query ──


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
    """The query for images, a stored image, or a unit.

    Raises SightlineError unless exactly one of them is given.
    """
    subject_count = sum(subject is not None for subject in (image, image_id, unit))
    if subject_count == 1 and image is not None:
        return build_image_query(model, scan, image, layer, box)
    if subject_count == 1 and image_id is not None:
        if image_id >= scan.images:
            limit = f"{scan.images - 1}, the last image of the dataset"
            raise make_out_of_range_error("id", image_id, 0, limit)
        if box:  # a part is an image of its own, so the whole image may be among its neighbours
            return build_image_query(model, scan, scan.image(image_id), layer, box)
        return build_stored_query(scan, layer, image_id)
    if subject_count == 1 and unit is not None:
        return build_unit_query(scan, layer, unit, box, metric)
    raise SightlineError("give exactly one of image=, id= or unit=")


def build_image_query(
    model: Model | Scan, scan: Scan, image: Tensor, layer: str, box: tuple[int, ...]
) -> NeighborQuery:
    """The query for images N×C×H×W, or for the part of each in a box."""
    network = resolve_network(model, scan)
    region = image
    pictures = network.to_picture(image)
    if box:
        top, left, bottom, right = check_box(box, image)
        region = resize_image(image[:, :, top:bottom, left:right], network.size, network.size)
        pictures = draw_box_outline(pictures, (top, left, bottom, right))
    caption = "the region" if box else "the image"
    return NeighborQuery(
        vectors=compute_feature_vectors(network, region, scan.layer(layer)),
        pictures=list(pictures.split(1)),
        captions=[caption] * len(image),
        pixel_vectors=compute_pixel_vectors(network.to_picture(region).cpu()),
    )


def build_stored_query(scan: Scan, layer: str, image_id: int) -> NeighborQuery:
    """The query for a stored image, by its stored features and thumbnail."""
    thumbnail = scan.thumbnail(image_id)
    (class_name,) = name_image_classes(scan, [image_id])
    return NeighborQuery(
        vectors=read_vector_rows(scan, layer, [image_id]),
        pictures=[thumbnail],
        captions=[f"{class_name}\nid {image_id}"],
        excluded_ids=torch.tensor([image_id]),
        pixel_vectors=compute_pixel_vectors(thumbnail),
    )


def build_unit_query(
    scan: Scan, layer: str, unit: int, box: tuple[int, ...], metric: Metric
) -> NeighborQuery:
    """The query for the direction of one number of the features."""
    feature_count = read_vector_rows(scan, layer, [0]).shape[1]
    if unit >= feature_count:
        raise SightlineError(f"unit is {unit}; {layer} has units 0 to {feature_count - 1}")
    if metric != "cosine" or box:
        raise SightlineError(
            'a unit is a direction: it goes with metric="cosine" and without a box'
        )
    direction = torch.zeros(1, feature_count)
    direction[0, unit] = 1
    return NeighborQuery(
        vectors=direction,
        pictures=[torch.full((1, 3, 8, 8), UNIT_PICTURE_GRAY)],
        captions=[f"unit {unit}\nof {layer}"],
    )


def check_box(box: tuple[int, ...], image: Tensor) -> tuple[int, int, int, int]:
    """Top, left, bottom, right. Raises SightlineError for a box that is not inside the image."""
    height, width = image.shape[-2:]
    if len(box) == 4:
        top, left, bottom, right = box
        if 0 <= top < bottom <= height and 0 <= left < right <= width:
            return top, left, bottom, right
    raise SightlineError(
        f"box is {box}; it must be top, left, bottom, right inside the image's "
        f"{height}×{width} pixels"
    )


# ── figure ──


def list_neighbor_rows(
    scan: Scan, query: NeighborQuery, values: Mapping[str, Any], layer: str
) -> list[FigureRow]:
    """For each query a row of neighbours by features, and one by pixels if there are any."""
    titles = {"": f"nearest in the features of {layer}"}
    if "pixel_ids" in values:
        titles["pixel_"] = "nearest in pixels"
    rows: list[FigureRow] = []
    for i, (picture, caption) in enumerate(zip(query.pictures, query.captions, strict=True)):
        for prefix, title in titles.items():
            ids = values[f"{prefix}ids"][i].tolist()
            distances = values[f"{prefix}distance"][i].tolist()
            neighbor_captions = [
                f"{class_name}\n{distance:.3g}"
                for class_name, distance in zip(
                    name_image_classes(scan, ids), distances, strict=True
                )
            ]
            pictures = [picture, *scan.thumbnails(ids).split(1)]
            captions = [caption, *neighbor_captions]
            rows.append(FigureRow(title, pictures, captions, lead_count=1))
    return rows


def describe_neighbors(
    scan: Scan, values: Mapping[str, Any], layer: str, metric: Metric, voters: int
) -> str:
    """What the figure shows, and how often `voters` neighbours are right; 0 leaves that out."""
    measure = "1 − cosine" if metric == "cosine" else "Euclidean distance"
    text = (
        f"On the left the query; right of it the nearest of {scan.images:,} images, with the "
        f"{measure} of their features of {layer} under each"
    )
    if "pixel_ids" in values:
        text += (
            ", and below those nearest in pixels (middle square at 32×32), with the Euclidean "
            "distance"
        )
    if voters and "accuracy" in values:
        return (
            f"{text}. The vote of the {voters} nearest others gives the right class of "
            f"{values['accuracy']:.1%} of the dataset by features, "
            f"{values['pixel_accuracy']:.1%} by pixels."
        )
    return f"{text}. A name with a question mark is the network's prediction."
