"""Vectors projected into two or three dimensions: PCA, t-SNE (van der Maaten & Hinton 2008) and
UMAP (McInnes 2018)."""

import logging
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
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

PROJECTION_NAMES = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}

PCA_COMPONENTS = 50  # principal components that t-SNE and UMAP start from

TSNE_PERPLEXITY = 30

# A perplexity of 1 leaves each point a single neighbour, and mutual neighbours fall on one point.
MIN_TSNE_PERPLEXITY = 2

UMAP_NEIGHBORS = 15

# In three dimensions, scikit-learn's rule for the learning rate (n / 12 / 4), but with a minimum of
# 5 in place of 50, which scatters a few hundred points: of 60 points in three clusters, the vote of
# the neighbours was right for 0.83 to 0.98, with 5 for all.
TSNE_RATE_DIVISOR = 48
MIN_TSNE_RATE = 5.0

# Number of points from which interpolation on a grid is faster than Barnes-Hut (bench/RESULTS.md).
MIN_FFT_POINTS = 6_000

JITTER_SIZE = 1e-2  # standard deviation; the kernel of t-SNE is about 1 wide

MIN_PROJECTED_VECTORS = 4

# Positions nearer than this share of a layout's extent are one point: what float32 can tell apart,
# and the rounding of a principal component, which is a sum over all features.
POINT_SHARE = 1e-7
PCA_POINT_SHARE = 1e-5

# The kernels of t-SNE and UMAP are about 1 wide, so a layout that is smaller than this has shrunk.
MIN_POINT_SIZE = 1e-6

# Vectors that differ by more than this share of the extent of all should not share a point.
DISTINCT_SHARE = 1e-3

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Projection:
    """Positions, n×dimensions, and the share of the variance of each principal component used.

    `kind` is the layout that was made, which is PCA where the requested one collapsed. `note` is a
    sentence on points that different vectors share; empty if there are none.
    """

    positions: Tensor
    explained_variance: Tensor
    kind: ProjectionKind
    note: str = ""


def project_vectors(
    vectors: Tensor, kind: ProjectionKind, dimensions: int, seed: int
) -> Projection:
    """Projects n×d vectors into `dimensions`, centered at 0.

    t-SNE and UMAP start from the first 50 principal components. If one of them puts different
    vectors on one point, the layout is PCA. Raises SightlineError for fewer than 4 vectors, and for
    vectors of fewer than `dimensions` numbers.
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
    linear_positions = components[:, :dimensions]
    if not components.any():
        return Projection(linear_positions, explained, kind)

    note = ""
    if kind != "pca":
        compute_layout = compute_tsne if kind == "tsne" else compute_umap
        positions = compute_layout(components, dimensions, seed)
        positions = positions - positions.mean(0)
        shared_count = count_shared_points(vectors, positions, POINT_SHARE, MIN_POINT_SIZE)
        if shared_count == 0:
            return Projection(positions, explained, kind)
        note = (
            f"{PROJECTION_NAMES[kind]} put {shared_count} images of different features on points "
            "that they share; this is PCA in its place."
        )
        logger.debug("%s", note)

    shared_count = count_shared_points(vectors, linear_positions, PCA_POINT_SHARE)
    if shared_count:
        sentence = (
            f"PCA puts {shared_count} images on points that they share: their features differ only "
            "in further components."
        )
        note = f"{note} {sentence}".strip()
    return Projection(linear_positions, explained, "pca", note)


def count_shared_points(
    vectors: Tensor,
    positions: Tensor,
    point_share: float = POINT_SHARE,
    min_point_size: float = 0.0,
) -> int:
    """How many of n vectors share a point of a layout with clearly different vectors.

    Positions that are not finite count as shared. Equal and nearly equal vectors may share a point.
    """
    if not positions.isfinite().all():
        return len(positions)
    extent = float((positions.amax(0) - positions.amin(0)).max())
    point_size = max(extent * point_share, min_point_size)
    if point_size == 0:
        cells = torch.zeros_like(positions, dtype=torch.long)
    else:
        cells = (positions.double() / point_size).round().long()
    _, point, counts = torch.unique(cells, dim=0, return_inverse=True, return_counts=True)

    # The extent of the vectors on each point that several have, along each of their numbers.
    is_crowded = counts[point] > 1
    crowded_vectors = vectors[is_crowded].float()
    index = point[is_crowded].unique(return_inverse=True)[1]
    if len(crowded_vectors) == 0:
        return 0
    columns = index[:, None].expand_as(crowded_vectors)
    empty = crowded_vectors.new_zeros(int(index.max()) + 1, vectors.shape[1])
    highest = empty.scatter_reduce(0, columns, crowded_vectors, "amax", include_self=False)
    lowest = empty.scatter_reduce(0, columns, crowded_vectors, "amin", include_self=False)
    difference = (highest - lowest).amax(1)
    vector_extent = (vectors.amax(0) - vectors.amin(0)).max()
    is_shared = difference > DISTINCT_SHARE * vector_extent
    return int(is_shared[index].sum())


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
    perplexity = max(perplexity, MIN_TSNE_PERPLEXITY)
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
    uses_tree = len(vectors) < MIN_FFT_POINTS
    positions = TSNEEmbedding(
        start,
        affinities,
        negative_gradient_method="bh" if uses_tree else "fft",
        n_jobs=threads,
        random_state=seed,
    )
    # The momentum is openTSNE's own. With 0.5 (van der Maaten 2008) the exaggerated attraction
    # shrinks few points until their distances underflow, and they never separate again.
    positions.optimize(250, exaggeration=12, momentum=0.8, inplace=True)
    if uses_tree:
        # Barnes-Hut sees no repulsion between points that are nearer than its smallest cell.
        jitter = np.random.default_rng(seed).normal(0, JITTER_SIZE, positions.shape)
        positions[:] += jitter
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
