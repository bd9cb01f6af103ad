"""A map of all images: their features projected into the plane (van der Maaten & Hinton 2008)."""

from pathlib import Path
from typing import Annotated, Any, Literal

from torch import Tensor

from sightline.data.scan.access import (
    count_voters,
    load_center_crops,
    name_feature_layer,
    resolve_scan,
)
from sightline.data.search.nearest import measure_vote_accuracy, pick_evenly_spaced
from sightline.data.search.projection import (
    PROJECTION_NAMES,
    Projection,
    measure_faithfulness,
    project_vectors,
)
from sightline.data.store.reader import Scan
from sightline.images.plotting.grid_assignment import make_picture_mosaic, snap_to_grid
from sightline.methods.retrieval.embedding_page import render_scatter_page
from sightline.models.model import Model
from sightline.registry.method import register_method
from sightline.registry.parameter import ValueRange
from sightline.registry.result import Result

# Pixels: the width of the mosaic, and the limits of the side of its tiles.
MOSAIC_WIDTH = 960
MIN_TILE_SIDE = 24
MAX_TILE_SIDE = 96

NEIGHBORHOOD_SIZE = 10  # neighbours that the measures ask for


@register_method(
    chapter="analytical",
    title="Map of the images",
    question="Which images lie together in the network's features?",
    reading="Images that the network describes alike lie close together. Walk along the map: what "
    "changes, and what stays? On the page one can zoom in, colour by class, and draw around images "
    "to list them.",
    caution="t-SNE and UMAP keep neighbourhoods, not distances: gaps between clusters and the "
    "sizes of clusters mean little (Wattenberg 2016). Snapping to the grid distorts once more.",
)
def embedding(
    model: Model | Scan,
    *,
    folder: str | Path | None = None,
    store: str | Path | None = None,
    layer: str = "penultimate",
    method: Literal["pca", "tsne", "umap"] = "tsne",
    dimensions: Annotated[int, ValueRange(2, 3)] = 2,
    tiles: Annotated[int, ValueRange(4, 10_000)] = 900,
    megabytes: Annotated[float, ValueRange(0, 500)] = 16.0,
    seed: int = 0,
) -> Result:
    """Lays out all images of a dataset by their features, as a mosaic and as a page to browse.

    `values["places"]` are the positions, n×dimensions. `["trustworthiness"]` and `["preserved"]`
    say how well neighbourhoods of 10 (or fewer, in a small dataset) are kept; both are 1 at best.
    `["explained"]` is the share of the variance of each principal component.

    Where the dataset has classes, `["agreement"]` is the share of images whose class is that of
    most of the 10 nearest on the map, and `["feature_agreement"]` the same by features.

    Args:
        folder: Dataset to lay out: a folder of images; None for parts of the sample pictures.
        store: File that keeps the pass over the dataset; alone, it is read as it is. None for one
            in the user's cache.
        method: "pca" straight projection, "tsne" or "umap" on the first 50 principal components.
        dimensions: 2, or 3 for a page that can be turned; the picture shows the first two.
        tiles: How many images the picture shows at most, evenly spread over the dataset.
        megabytes: What the thumbnails of the page may take; images beyond that are points.
    """
    scan = resolve_scan(model, folder, store, vector_layer=layer)
    vectors = scan.vectors(layer)
    projection = project_vectors(vectors, method, dimensions, seed)
    positions = projection.positions
    values: dict[str, Any] = {
        "places": positions,
        "explained": projection.explained_variance,
        **measure_faithfulness(vectors, positions, NEIGHBORHOOD_SIZE),
    }
    voters = count_voters(scan, NEIGHBORHOOD_SIZE)
    if voters and scan.classes is not None:
        values["agreement"] = measure_vote_accuracy(
            positions, scan.classes, NEIGHBORHOOD_SIZE, "l2"
        )
        values["feature_agreement"] = measure_vote_accuracy(
            vectors, scan.classes, NEIGHBORHOOD_SIZE, "l2"
        )

    ids = pick_evenly_spaced(scan.images, tiles)
    mosaic = render_mosaic(scan, positions[ids, :2], ids)
    layer_name = name_feature_layer(scan, layer)
    projection_name = PROJECTION_NAMES[projection.kind]
    title = f"{projection_name} of {layer_name}"
    neighborhood = min(NEIGHBORHOOD_SIZE, scan.images - 1)
    description = (
        f"{projection_name} of the features of {layer_name} of {scan.images:,} images: "
        f"{describe_measures(values, neighborhood, voters)}"
    )
    if projection.note:
        description += f" {projection.note}"
    if projection.kind == "pca":
        description += f" {describe_axes(projection)}"
    page = render_scatter_page(scan, positions, title, description, megabytes)

    count = f", {len(ids)} of them" if len(ids) < scan.images else ""
    captions = {
        "embedding": f"{description} Snapped to a grid{count}: each image as near to its position "
        "as the others leave room.",
        "map": "The same map to browse: images at their true positions. Wheel to zoom, drag to "
        "move, hover for a picture and its names, Shift and drag to list the images in a region.",
    }
    return Result({"embedding": mosaic}, values, captions, pages={"map": page})


def render_mosaic(scan: Scan, positions: Tensor, ids: Tensor) -> Tensor:
    """Images on a square grid, each near its position, n×2."""
    cells, grid_side = snap_to_grid(positions)
    tile_side = max(MIN_TILE_SIDE, min(MAX_TILE_SIDE, MOSAIC_WIDTH // grid_side))
    pictures = load_center_crops(scan, ids.tolist(), tile_side)
    return make_picture_mosaic(pictures, cells, grid_side)


def describe_measures(values: dict[str, Any], k: int, voters: int) -> str:
    """What the measures say of the map: of neighbourhoods of `k`, and of the vote of `voters`."""
    text = (
        f"trustworthiness {values['trustworthiness']:.2f}, {values['preserved']:.0%} of the {k} "
        f"nearest in the features are among the {k} nearest here."
    )
    if "agreement" in values:
        text += (
            f" The {voters} nearest on the map vote for the right class of "
            f"{values['agreement']:.1%} of the images (by the features "
            f"{values['feature_agreement']:.1%})."
        )
    return text


def describe_axes(projection: Projection) -> str:
    """What the axes of a PCA show."""
    shares = [f"{share:.1%}" for share in projection.explained_variance.tolist()]
    directions = ["left to right", "bottom to top", "depth"][: len(shares)]
    return f"The axes ({', '.join(directions)}) explain {' and '.join(shares)} of the variance."
