"""A map of all images: their features laid out in the plane (van der Maaten & Hinton 2008; Karpathy's t-SNE map of ImageNet)."""

from pathlib import Path
from typing import Annotated, Literal

import torch
from torch import Tensor

from ...catalog import method
from ...coordinates import faithful, laid_out
from ...gridding import mosaic, snapped
from ...knobs import Between
from ...model import Model
from ...nearest import accuracy
from ...result import Result
from ...scans import Scan
from .scanned import scanned, squares
from .scatter import page

NAMES = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}
WIDTH = 960  # pixels of the map that its tiles share
NEAR = 10  # neighbours that the measures ask for


@method(
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
    dimensions: Annotated[int, Between(2, 3)] = 2,
    tiles: Annotated[int, Between(4, 10_000)] = 900,
    megabytes: Annotated[float, Between(0, 500)] = 16.0,
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
    found = scanned(model, folder, store, vectors=layer)
    vectors = found.vectors(layer)
    layout = laid_out(vectors, method, dimensions, seed)
    values: dict[str, Tensor | float] = {"places": layout.places, "explained": layout.explained, **faithful(vectors, layout.places, NEAR)}
    if found.classes is not None:
        values["agreement"] = accuracy(layout.places, found.classes, NEAR, "l2")
        values["feature_agreement"] = accuracy(vectors, found.classes, NEAR, "l2")
    shown = torch.linspace(0, found.images - 1, min(tiles, found.images)).round().long()
    words = told(layout.explained, values, f"{NAMES[method]} of the features of {layer} of {found.images:,} images", method)
    return Result(
        {"embedding": picture(found, layout.places[shown, :2], shown)},
        values,
        {
            "embedding": f"{words} Snapped to a grid{', ' + str(len(shown)) + ' of them' if len(shown) < found.images else ''}: each image as near to its "
            "place as the others leave room.",
            "map": "The same map to browse: images at their true places. Wheel to zoom, drag to move, hover for a picture and its names, Shift and drag "
            "to list the images in a region.",
        },
        pages={"map": page(found, layout.places, f"{NAMES[method]} of {layer}", words, megabytes)},
    )


def picture(found: Scan, places: Tensor, shown: Tensor) -> Tensor:
    """The images on a square grid, each near its place."""
    cells, side = snapped(places)
    tile = max(24, min(96, WIDTH // side))
    return mosaic(squares(found, shown.tolist(), tile), cells, side)


def told(explained: Tensor, values: dict[str, Tensor | float], what: str, method: str) -> str:
    """The caption of both."""
    words = f"{what}: trustworthiness {values['trustworthiness']:.2f}, {values['preserved']:.0%} of the {NEAR} nearest in the features are among the {NEAR} nearest here."
    shares = " and ".join(f"{share:.1%}" for share in explained[:3].tolist())
    if method == "pca":
        words += f" Left to right and bottom to top explain {shares} of the variance."
    if "agreement" in values:
        words += f" The {NEAR} nearest on the map tell the class of {values['agreement']:.1%} of the images (by the features {values['feature_agreement']:.1%})."
    return words
