"""A map of all images: their features laid out in the plane (van der Maaten & Hinton 2008; Karpathy's t-SNE map of ImageNet)."""

from pathlib import Path
from typing import Annotated, Literal

import torch
from torch import Tensor

from sightline.data.scan.access import load_center_crops, resolve_scan
from sightline.data.search.nearest import measure_vote_accuracy
from sightline.data.search.projection import measure_faithfulness, project_vectors
from sightline.data.store.reader import Scan
from sightline.images.plotting.grid_assignment import make_picture_mosaic, snap_to_grid
from sightline.methods.retrieval.embedding_page import render_scatter_page
from sightline.models.model import Model
from sightline.registry.method import register_method
from sightline.registry.parameter import ValueRange
from sightline.registry.result import Result

PROJECTION_NAMES = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}

MOSAIC_WIDTH = 960  # pixels of the map that its tiles share

NEIGHBORHOOD_SIZE = 10  # neighbours that the measures ask for


@register_method(
    chapter="analytical",
    title="Map of the images",
    question="Which images lie together in the network's features?",
    reading="Images that the network describes alike lie close together. Walk along the map: what changes, and what stays? On the page one can zoom in, "
    "colour by class, and draw around images to list them.",
    caution="t-SNE and UMAP keep neighbourhoods, not distances: gaps between clusters and the sizes of clusters mean little (Wattenberg 2016). Snapping to "
    "the grid distorts once more.",
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
    """Lays all images of a collection out in the plane by their features, as a grid of thumbnails and as a page to browse.

    `values["places"]` is n×dimensions; `["trustworthiness"]` and `["preserved"]` say how far neighbourhoods of 10 are kept, both 1
    at best; `["explained"]` has the share of the variance of each principal component; where the collection has classes, `["agreement"]`
    is the share of images whose class the 10 nearest on the map tell, and `["feature_agreement"]` the same of the features.

    Args:
        folder: Collection to lay out: a folder of images; None for tiles of the sample photographs.
        store: File that keeps the pass over the collection; alone, it is read as it is. None for one in the user's cache.
        method: "pca" straight projection, "tsne" or "umap" on the first 50 principal components.
        dimensions: 2, or 3 for a page that can be turned; the picture shows the first two.
        tiles: How many images the picture shows at most, evenly spread over the collection.
        megabytes: What the thumbnails of the page may take; images beyond that are points.
    """
    found = resolve_scan(model, folder, store, vector_layer=layer)
    vectors = found.vectors(layer)
    layout = project_vectors(vectors, method, dimensions, seed)
    values: dict[str, Tensor | float] = {
        "places": layout.positions,
        "explained": layout.explained_variance,
        **measure_faithfulness(vectors, layout.positions, NEIGHBORHOOD_SIZE),
    }
    if found.classes is not None:
        values["agreement"] = measure_vote_accuracy(
            layout.positions, found.classes, NEIGHBORHOOD_SIZE, "l2"
        )
        values["feature_agreement"] = measure_vote_accuracy(
            vectors, found.classes, NEIGHBORHOOD_SIZE, "l2"
        )
    shown = torch.linspace(0, found.images - 1, min(tiles, found.images)).round().long()
    words = describe_embedding(
        layout.explained_variance,
        values,
        f"{PROJECTION_NAMES[method]} of the features of {layer} of {found.images:,} images",
        method,
    )
    return Result(
        {"embedding": render_embedding_grid(found, layout.positions[shown, :2], shown)},
        values,
        {
            "embedding": f"{words} Snapped to a grid{', ' + str(len(shown)) + ' of them' if len(shown) < found.images else ''}: each image as near to its "
            "place as the others leave room.",
            "map": "The same map to browse: images at their true places. Wheel to zoom, drag to move, hover for a picture and its names, Shift and drag "
            "to list the images in a region.",
        },
        pages={
            "map": render_scatter_page(
                found, layout.positions, f"{PROJECTION_NAMES[method]} of {layer}", words, megabytes
            )
        },
    )


def render_embedding_grid(scan: Scan, positions: Tensor, ids: Tensor) -> Tensor:
    """The images on a square grid, each near its place."""
    cells, side = snap_to_grid(positions)
    tile = max(24, min(96, MOSAIC_WIDTH // side))
    return make_picture_mosaic(load_center_crops(scan, ids.tolist(), tile), cells, side)


def describe_embedding(
    explained: Tensor, values: dict[str, Tensor | float], subject: str, method: str
) -> str:
    """The caption of both."""
    words = f"{subject}: trustworthiness {values['trustworthiness']:.2f}, {values['preserved']:.0%} of the {NEIGHBORHOOD_SIZE} nearest in the features are among the {NEIGHBORHOOD_SIZE} nearest here."
    shares = " and ".join(f"{share:.1%}" for share in explained[:3].tolist())
    if method == "pca":
        words += f" Left to right and bottom to top explain {shares} of the variance."
    if "agreement" in values:
        words += f" The {NEIGHBORHOOD_SIZE} nearest on the map tell the class of {values['agreement']:.1%} of the images (by the features {values['feature_agreement']:.1%})."
    return words
