"""Vectors of many dimensions laid out in two or three: PCA, t-SNE (van der Maaten 2008), UMAP (McInnes 2018)."""

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sightline.data.search.nearest import find_nearest, measure_preservation
from sightline.errors import SightlineError

ProjectionKind = Literal["pca", "tsne", "umap"]

PCA_COMPONENTS = 50  # principal components that t-SNE and UMAP start from

TSNE_PERPLEXITY, UMAP_NEIGHBORS = 30, 15

# scikit-learn's learning rate in three dimensions without its floor of 50, which throws some hundred points about (60 points in three
# clouds: 0.83 to 0.98 of the neighbours' votes right, all with 5).
TSNE_RATE_DIVISOR, MIN_TSNE_RATE = 48, 5.0

MIN_FFT_POINTS = 6_000  # points below which the tree of Barnes-Hut is faster than the interpolation on a grid (bench/RESULTS.md)

MAX_MEASURED_POINTS = 2_000  # places whose neighbourhoods are compared

MIN_PROJECTED_VECTORS = 4  # vectors


@dataclass(frozen=True)
class Projection:
    """Places n×dimensions, and for each principal component that was kept its share of the variance."""

    positions: Tensor
    explained_variance: Tensor


def project_vectors(
    vectors: Tensor, kind: ProjectionKind, dimensions: int, seed: int
) -> Projection:
    """The vectors n×d in `dimensions`. t-SNE and UMAP get their 50 principal components. Raises SightlineError below 4 vectors."""
    if len(vectors) < MIN_PROJECTED_VECTORS:
        raise SightlineError(
            f"a map needs at least {MIN_PROJECTED_VECTORS} images; there are {len(vectors)}"
        )
    kept = min(dimensions if kind == "pca" else PCA_COMPONENTS, *vectors.shape)
    if kept < dimensions:
        raise SightlineError(
            f"{vectors.shape[1]} numbers an image can't be laid out in {dimensions} dimensions"
        )
    reduced, explained = compute_principal_components(vectors, kept, seed)
    if kind == "pca" or not reduced.any():
        return Projection(reduced[:, :dimensions], explained)
    places = (compute_tsne if kind == "tsne" else compute_umap)(reduced, dimensions, seed)
    return Projection(places - places.mean(0), explained)


def compute_principal_components(
    vectors: Tensor, component_count: int, seed: int
) -> tuple[Tensor, Tensor]:
    """The coordinates along the first principal components, n×kept, and their shares of the variance (0 where there is none)."""
    from sklearn.decomposition import PCA

    if not (vectors != vectors[:1]).any():
        return torch.zeros(len(vectors), component_count), torch.zeros(component_count)
    fitted = PCA(component_count, random_state=seed)
    places = fitted.fit_transform(vectors.float().numpy())
    return torch.from_numpy(places).float(), torch.from_numpy(
        fitted.explained_variance_ratio_
    ).float()


def compute_tsne(vectors: Tensor, dimensions: int, seed: int) -> Tensor:
    """t-SNE started from PCA: in the plane with interpolation and FFT (Linderman 2019) where there are many, else with Barnes-Hut.

    The neighbours are exact: openTSNE's own search is approximate and takes longer.
    """
    perplexity = min(TSNE_PERPLEXITY, (len(vectors) - 1) // 3)
    if dimensions == 3:
        from sklearn.manifold import TSNE

        rate = max(len(vectors) / TSNE_RATE_DIVISOR, MIN_TSNE_RATE)
        way = TSNE(3, perplexity=perplexity, init="pca", random_state=seed, learning_rate=rate)  # pyright: ignore[reportArgumentType]
        return torch.from_numpy(way.fit_transform(vectors.numpy()))
    from openTSNE import TSNEEmbedding, affinity, initialization
    from openTSNE.nearest_neighbors import PrecomputedNeighbors

    k, threads = min(len(vectors) - 1, 3 * perplexity), torch.get_num_threads()
    distance, index = find_nearest(vectors, vectors, k, "l2", exclude=torch.arange(len(vectors)))
    near = PrecomputedNeighbors(index.numpy(), distance.double().numpy())
    weights = affinity.PerplexityBasedNN(knn_index=near, perplexity=perplexity, n_jobs=threads)
    start: Any = initialization.pca(vectors.numpy(), random_state=seed)
    gradient = "bh" if len(vectors) < MIN_FFT_POINTS else "fft"
    way = TSNEEmbedding(
        start, weights, negative_gradient_method=gradient, n_jobs=threads, random_state=seed
    )
    way.optimize(250, exaggeration=12, momentum=0.5, inplace=True)
    way.optimize(500, exaggeration=1, momentum=0.8, inplace=True)
    return torch.tensor(way).float()


def compute_umap(vectors: Tensor, dimensions: int, seed: int) -> Tensor:
    """UMAP. It sets the number of threads for everybody; that is undone."""
    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own parts' versions and threads
        from umap import UMAP

        fitted = UMAP(
            n_components=dimensions,
            n_neighbors=min(UMAP_NEIGHBORS, len(vectors) - 1),
            random_state=seed,
            n_jobs=1,
            init="pca",
        )
        try:
            return torch.from_numpy(fitted.fit_transform(vectors.numpy())).float()
        finally:
            torch.set_num_threads(threads)


def measure_faithfulness(vectors: Tensor, positions: Tensor, k: int) -> dict[str, float]:
    """How far a map keeps neighbourhoods of k: `trustworthiness` (Venna 2001) of at most 2,000 of it, evenly spread, and
    `preserved`, the share of the k nearest vectors that are among the k nearest on the map."""
    from sklearn.manifold import trustworthiness

    some = (
        torch.linspace(0, len(vectors) - 1, min(MAX_MEASURED_POINTS, len(vectors))).round().long()
    )
    trust = trustworthiness(
        vectors[some].numpy(),
        positions[some].numpy(),
        n_neighbors=max(1, min(k, (len(some) - 1) // 2)),
    )
    return {
        "trustworthiness": float(trust),
        "preserved": measure_preservation(vectors, positions, min(k, len(vectors) - 1)),
    }
