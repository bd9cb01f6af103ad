"""An index over a store's vectors for approximate search: IVF-PQ (Jégou 2011), with its recall.

The vectors are divided into lists around centres, of which a query searches the nearest few, and
are compared there as codes of one byte for every few numbers. A multiple of k is then compared in
full. The store keeps what was built for each layer and how good it was. An index serves so many
images and one metric: when a scan has gone on, or pieces were merged, it is built again.
"""

import math
import time
from dataclasses import replace

import torch
from torch import Tensor

from sightline.data.search.nearest import Metric, find_nearest
from sightline.data.store.interface import RECALL_NEIGHBORS, VectorIndex, convert_to_tensor
from sightline.data.store.reader import Scan
from sightline.errors import SightlineError

# Images from which on a search is approximate unless asked otherwise: 1 GB of 512 numbers each.
MIN_APPROXIMATE_IMAGES = 500_000

# A code book has 256 entries, and each needs a few images.
MIN_INDEX_IMAGES = 1_000

# Vectors per list on average: LanceDB trains each centre on so many.
MIN_VECTORS_PER_LIST = 256

# Numbers of a vector per byte: LanceDB has fast code for 8 and 16, and 8 are more exact.
DIMENSIONS_PER_CODE = 8

TARGET_RECALL = 0.95
RECALL_QUERIES = 100  # stored vectors whose neighbours are searched for to measure the recall

# Lists probed and multiple of k compared in full, tried in turn until the recall is reached.
PROBES_AND_REFINES = ((8, 8), (16, 16), (32, 32), (64, 64), (128, 128))

EXACT_CHUNK_VECTORS = 50_000  # vectors in memory while the recall is measured


def choose_index_sizes(count: int, size: int) -> tuple[int, int]:
    """Lists and codes for `count` vectors of `size` numbers.

    √count lists, but at least 256 vectors each on average; one code for 8 numbers, or the next
    smaller number of codes that divides `size`.
    """
    lists = max(1, min(math.isqrt(count), count // MIN_VECTORS_PER_LIST))
    codes = max(1, size // DIMENSIONS_PER_CODE)
    while size % codes:
        codes -= 1
    return lists, codes


def find_current_index(scan: Scan, layer: str, metric: Metric) -> VectorIndex | None:
    """The index of a layer if it serves this metric and still covers all images."""
    index = scan.reader.read_indexes().get(scan.layer(layer))
    if index is None or index.images != scan.images or index.metric != metric:
        return None
    return index if scan.reader.has_full_index(scan.find_vector_column(layer)) else None


def ensure_vector_index(scan: Scan, layer: str, metric: Metric = "cosine") -> VectorIndex:
    """The index of a layer, built unless it is current.

    Raises SightlineError for too few images, and for a store that can't be written.
    """
    return find_current_index(scan, layer, metric) or build_vector_index(scan, layer, metric)


def build_vector_index(scan: Scan, layer: str, metric: Metric) -> VectorIndex:
    """Builds the index of a layer and measures its recall."""
    if scan.images < MIN_INDEX_IMAGES:
        raise SightlineError(
            f"an index needs at least {MIN_INDEX_IMAGES:,} images; "
            f"the store {scan.path.name} has {scan.images:,}: search it exactly"
        )
    start = time.perf_counter()
    column = scan.find_vector_column(layer)
    size = scan.description.vector_lengths[scan.layer(layer)]
    lists, codes = choose_index_sizes(scan.images, size)
    with scan.store.open_writer(scan.description) as writer:
        # Another process may have built it while this one waited.
        current_index = find_current_index(scan, layer, metric)
        if current_index is not None:
            return current_index
        writer.build_index(column, metric, lists, codes)
        untuned_index = VectorIndex(
            images=scan.images,
            metric=metric,
            lists=lists,
            codes=codes,
            probes=1,
            refine=1,
            recall=0,
            sample=0,
            seconds=time.perf_counter() - start,
        )
        index = tune_index_recall(scan, layer, untuned_index)
        writer.save_indexes({**scan.reader.read_indexes(), scan.layer(layer): index})
    return index


def tune_index_recall(scan: Scan, layer: str, index: VectorIndex) -> VectorIndex:
    """The index with the cheapest settings that reach the target recall, else with the best."""
    query_count = min(RECALL_QUERIES, scan.images)
    query_ids = torch.linspace(0, scan.images - 1, query_count).round().long()
    queries = read_vector_rows(scan, layer, query_ids.tolist())
    _, exact_ids = search_all_vectors(
        scan, layer, queries, k=RECALL_NEIGHBORS, metric=index.metric, exclude=query_ids
    )
    for probes, refine in PROBES_AND_REFINES:
        index = replace(index, probes=min(probes, index.lists), refine=refine, sample=query_count)
        _, ids = search_vector_index(
            scan, layer, index, queries, k=RECALL_NEIGHBORS, exclude=query_ids
        )
        is_exact = (ids[:, :, None] == exact_ids[:, None]).any(2)
        index = replace(index, recall=float(is_exact.float().mean()))
        if index.recall >= TARGET_RECALL:
            break
    return index


def read_vector_rows(scan: Scan, layer: str, ids: list[int]) -> Tensor:
    """The vectors of some images, m×d, without reading the others."""
    column = scan.find_vector_column(layer)
    rows = scan.read_rows(ids, [column])
    return torch.tensor([rows[id][column] for id in ids])


def search_vector_index(
    scan: Scan,
    layer: str,
    index: VectorIndex,
    queries: Tensor,
    *,
    k: int,
    exclude: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Distances and ids, m×k each, of about the nearest vectors, as `find_nearest` gives them."""
    column = scan.find_vector_column(layer)
    # One more where the query itself, which is stored, is left out afterwards.
    limit = k if exclude is None else k + 1
    all_distances: list[Tensor] = []
    all_ids: list[Tensor] = []
    for number, query in enumerate(queries):
        distances, ids = scan.reader.search_index(column, query, index, limit)
        if exclude is not None:
            allowed = ids != exclude[number]
            distances = distances[allowed]
            ids = ids[allowed]
        if len(ids) < k:
            raise SightlineError(
                f"the index has only {len(ids)} of {k} neighbours, "
                "since it leaves out vectors of zeros: search exactly"
            )
        all_distances.append(distances[:k])
        all_ids.append(ids[:k])
    return torch.stack(all_distances), torch.stack(all_ids)


def search_all_vectors(
    scan: Scan, layer: str, queries: Tensor, *, k: int, metric: Metric, exclude: Tensor
) -> tuple[Tensor, Tensor]:
    """Distances and ids, m×k each, of the nearest of all vectors, read a chunk at a time."""
    column = scan.find_vector_column(layer)
    size = queries.shape[1]
    best_distances = torch.empty(len(queries), 0)
    best_ids = torch.empty(len(queries), 0, dtype=torch.long)
    for start in range(0, scan.images, EXACT_CHUNK_VECTORS):
        chunk = range(start, min(start + EXACT_CHUNK_VECTORS, scan.images))
        rows = scan.reader.read_images(["id", column], chunk)
        chunk_ids = convert_to_tensor(rows["id"].combine_chunks())
        vectors = convert_to_tensor(rows[column].combine_chunks(), size)
        chunk_distances, indices = find_nearest(
            vectors, queries, min(k + 1, len(chunk_ids)), metric
        )

        distances = torch.cat([best_distances, chunk_distances], 1)
        ids = torch.cat([best_ids, chunk_ids[indices]], 1)
        ranked_distances = distances.masked_fill(ids == exclude[:, None], torch.inf)
        order = ranked_distances.argsort(dim=1, stable=True)[:, :k]
        best_distances = distances.gather(1, order)
        best_ids = ids.gather(1, order)
    return best_distances, best_ids
