"""Vectors projected into two or three dimensions: PCA, t-SNE (van der Maaten & Hinton 2008) and
UMAP (McInnes 2018)."""

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sightline.data.search.nearest import (
    MAX_MEASURED_QUERIES,
    find_nearest,
    measure_preservation,
    pick_evenly_spaced,
)
from sightline.errors import SightlineError

ProjectionKind = Literal["pca", "tsne", "umap"]

PCA_COMPONENTS = 50  # principal components that t-SNE and UMAP start from

TSNE_PERPLEXITY = 30
UMAP_NEIGHBORS = 15

# In three dimensions, scikit-learn's rule for the learning rate (n / 12 / 4), but with a minimum of
# 5 in place of 50, which scatters a few hundred points: of 60 points in three clusters, the vote of
# the neighbours was right for 0.83 to 0.98, with 5 for all.
TSNE_RATE_DIVISOR = 48
MIN_TSNE_RATE = 5.0

# Number of points from which interpolation on a grid is faster than Barnes-Hut (bench/RESULTS.md).
MIN_FFT_POINTS = 6_000

MIN_PROJECTED_VECTORS = 4


@dataclass(frozen=True)
class Projection:
    """Positions, n×dimensions, and the share of the variance of each principal component used."""

    positions: Tensor
    explained_variance: Tensor


def project_vectors(
    vectors: Tensor, kind: ProjectionKind, dimensions: int, seed: int
) -> Projection:
    """Projects n×d vectors into `dimensions`, centered at 0.

    t-SNE and UMAP start from the first 50 principal components. Raises SightlineError for fewer
    than 4 vectors, and for vectors of fewer than `dimensions` numbers.
    """
    if len(vectors) < MIN_PROJECTED_VECTORS:
        raise SightlineError(
            f"a map needs at least {MIN_PROJECTED_VECTORS} images; there are {len(vectors)}"
        )
    component_limit = dimensions if kind == "pca" else PCA_COMPONENTS
    component_count = min(component_limit, *vectors.shape)
    if component_count < dimensions:
        raise SightlineError(
            f"vectors of {vectors.shape[1]} numbers can't be projected into {dimensions} dimensions"
        )

    components, explained = compute_principal_components(vectors, component_count, seed)
    if kind == "pca" or not components.any():
        return Projection(components[:, :dimensions], explained)
    if kind == "tsne":
        positions = compute_tsne(components, dimensions, seed)
    else:
        positions = compute_umap(components, dimensions, seed)
    return Projection(positions - positions.mean(0), explained)


def compute_principal_components(
    vectors: Tensor, component_count: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Coordinates along the first principal components, n×components, and their variance shares.

    Both are 0 if all vectors are equal.
    """
    from sklearn.decomposition import PCA

    if not (vectors != vectors[:1]).any():
        return torch.zeros(len(vectors), component_count), torch.zeros(component_count)
    pca = PCA(component_count, random_state=seed)
    coordinates = torch.from_numpy(pca.fit_transform(vectors.float().numpy()))
    variance_shares = torch.from_numpy(pca.explained_variance_ratio_)
    return coordinates.float(), variance_shares.float()


def compute_tsne(vectors: Tensor, dimensions: int, seed: int) -> Tensor:
    """t-SNE that starts from the principal components.

    In two dimensions openTSNE: with Barnes-Hut for few points, else with interpolation and FFT
    (Linderman 2019). In three dimensions scikit-learn, since openTSNE has no more than two.
    """
    perplexity = min(TSNE_PERPLEXITY, (len(vectors) - 1) // 3)
    if dimensions == 3:
        from sklearn.manifold import TSNE

        learning_rate: Any = max(len(vectors) / TSNE_RATE_DIVISOR, MIN_TSNE_RATE)
        tsne = TSNE(
            3, perplexity=perplexity, init="pca", random_state=seed, learning_rate=learning_rate
        )
        return torch.from_numpy(tsne.fit_transform(vectors.numpy()))

    from openTSNE import TSNEEmbedding, affinity, initialization
    from openTSNE.nearest_neighbors import PrecomputedNeighbors

    # Exact neighbours: openTSNE's own search is approximate and takes longer.
    k = min(len(vectors) - 1, 3 * perplexity)
    own_index = torch.arange(len(vectors))
    distances, indices = find_nearest(vectors, vectors, k, "l2", exclude=own_index)
    neighbors = PrecomputedNeighbors(indices.numpy(), distances.double().numpy())

    threads = torch.get_num_threads()
    affinities = affinity.PerplexityBasedNN(
        knn_index=neighbors, perplexity=perplexity, n_jobs=threads
    )
    start: Any = initialization.pca(vectors.numpy(), random_state=seed)
    positions = TSNEEmbedding(
        start,
        affinities,
        negative_gradient_method="bh" if len(vectors) < MIN_FFT_POINTS else "fft",
        n_jobs=threads,
        random_state=seed,
    )
    positions.optimize(250, exaggeration=12, momentum=0.5, inplace=True)
    positions.optimize(500, exaggeration=1, momentum=0.8, inplace=True)
    return torch.tensor(positions).float()


def compute_umap(vectors: Tensor, dimensions: int, seed: int) -> Tensor:
    """UMAP that starts from the principal components."""
    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # umap-learn warns of its dependencies and of its threads
        from umap import UMAP

        umap = UMAP(
            n_components=dimensions,
            n_neighbors=min(UMAP_NEIGHBORS, len(vectors) - 1),
            random_state=seed,
            n_jobs=1,
            init="pca",
        )
        try:
            return torch.from_numpy(umap.fit_transform(vectors.numpy())).float()
        finally:
            torch.set_num_threads(threads)  # umap-learn changes it for the whole process


def measure_faithfulness(vectors: Tensor, positions: Tensor, k: int) -> dict[str, float]:
    """How well positions keep the neighbourhoods of k vectors; both measures are at most 1.

    - `trustworthiness` (Venna & Kaski 2001), over at most 2,000 vectors, evenly spaced.
    - `preserved`: share of each vector's k nearest that are among the k nearest by position.
    """
    from sklearn.manifold import trustworthiness

    sample = pick_evenly_spaced(len(vectors), MAX_MEASURED_QUERIES)
    trust = trustworthiness(
        vectors[sample].numpy(),
        positions[sample].numpy(),
        n_neighbors=max(1, min(k, (len(sample) - 1) // 2)),
    )
    preserved = measure_preservation(vectors, positions, min(k, len(vectors) - 1))
    return {"trustworthiness": float(trust), "preserved": preserved}
