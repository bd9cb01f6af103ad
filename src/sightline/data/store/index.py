"""An index over a store's vectors for approximate search: IVF-PQ (Jégou 2011), built by LanceDB, with its recall measured.

The vectors are divided into lists around centres, of which a query looks at the nearest few, and compared there as codes of a byte
for every few numbers; a multiple of k is then compared in full. `OUT.scan/index.json` tells of each layer what was built and
how good it was. An index is of so many images and one metric: where a scan has gone on, or pieces were merged, it is built anew.
"""

import json
import math
import time
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from sightline.data.search.nearest import Metric, find_nearest
from sightline.data.store.reader import Scan, open_store_table
from sightline.data.store.schema import IMAGES_TABLE, INDEX_FILE, explain_disk_error
from sightline.data.store.writer import lock_store
from sightline.errors import SightlineError
from sightline.images.files import replace_atomically

MIN_APPROXIMATE_IMAGES = 500_000  # images from which on a search is approximate if nothing is said: 1 GB of 512 numbers each

MIN_INDEX_IMAGES = 1_000  # images: a code book has 256 entries, and each wants a few

MIN_VECTORS_PER_LIST = (
    256  # vectors a list on average, at least: LanceDB trains each centre on so many
)

DIMENSIONS_PER_CODE = (
    8  # of a vector to a byte; LanceDB finds 8 and 16 best for the processor, and 8 are nearer
)

TARGET_RECALL, RECALL_QUERIES, RECALL_NEIGHBORS = (
    0.95,
    100,
    10,
)  # recall to be reached, of so many stored vectors' so many nearest

PROBES_AND_REFINES = (
    (8, 8),
    (16, 16),
    (32, 32),
    (64, 64),
    (128, 128),
)  # lists probed and multiple of k compared in full, until recall is enough

EXACT_CHUNK_VECTORS = 50_000  # vectors in memory while recall is measured


@dataclass(frozen=True)
class VectorIndex:
    """What was built, how it is asked, and the share of the exact 10 nearest that it found for a sample of stored vectors."""

    images: int
    metric: Metric
    lists: int
    codes: int
    probes: int
    refine: int
    recall: float
    sample: int
    seconds: float

    def __str__(self) -> str:
        return f"IVF-PQ with {self.lists} lists and {self.codes} codes, {self.probes} lists probed, recall@{RECALL_NEIGHBORS} {self.recall:.1%} of {self.sample} stored vectors"


def choose_index_sizes(count: int, size: int) -> tuple[int, int]:
    """Lists and codes for n vectors of d numbers: √n lists, but 256 vectors each; a byte for 8 numbers, or the next that divides d."""
    codes = next(
        codes for codes in range(max(1, size // DIMENSIONS_PER_CODE), 0, -1) if size % codes == 0
    )
    return max(1, min(math.isqrt(count), count // MIN_VECTORS_PER_LIST)), codes


def read_store_indexes(scan: Scan) -> dict[str, VectorIndex]:
    """The indexes of a store by layer, up to date or not; none where what tells of them is gone or damaged, since they can be had anew."""
    try:
        told = json.loads(scan.path.joinpath(INDEX_FILE).read_text(encoding="utf-8"))
        return {name: VectorIndex(**facts) for name, facts in told.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def find_vector_column(scan: Scan, layer: str) -> str:
    """The column of a layer's vectors. Raises SightlineError if the pass did not keep them."""
    names = list(scan.facts["vectors"])
    return f"vector_{names.index(scan.resolve_layer('vectors of layer', layer, names))}"


def find_current_index(scan: Scan, layer: str, metric: Metric) -> VectorIndex | None:
    """The index of a layer, if it is of all images, this metric, and still there."""
    held = read_store_indexes(scan).get(scan.layer(layer))
    if held is None or held.images != scan.images or held.metric != metric:
        return None
    state = open_store_table(scan.path, IMAGES_TABLE).index_stats(
        f"{find_vector_column(scan, layer)}_idx"
    )
    return held if state is not None and not state.num_unindexed_rows else None


def ensure_vector_index(scan: Scan, layer: str, metric: Metric = "cosine") -> VectorIndex:
    """The index of a layer, built unless it is current. Raises SightlineError for few images, a store being written or that can't be."""
    return find_current_index(scan, layer, metric) or build_vector_index(scan, layer, metric)


def build_vector_index(scan: Scan, layer: str, metric: Metric) -> VectorIndex:
    """Builds an index and measures its recall; more lists are probed, and more is compared in full, until that is enough."""
    from lancedb.index import IvfPq

    if scan.images < MIN_INDEX_IMAGES:
        raise SightlineError(
            f"an index needs at least {MIN_INDEX_IMAGES:,} images; the store {scan.path.name} has {scan.images:,}: search it exactly"
        )
    name, size, start = (
        find_vector_column(scan, layer),
        read_vector_rows(scan, layer, [0]).shape[1],
        time.perf_counter(),
    )
    lists, codes = choose_index_sizes(scan.images, size)
    with lock_store(scan.path):
        try:
            config = IvfPq(distance_type=metric, num_partitions=lists, num_sub_vectors=codes)
            open_store_table(scan.path, IMAGES_TABLE).create_index(
                name, config=config, replace=True
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise SightlineError(
                f"the index of {scan.path} can't be built: {explain_disk_error(error)}"
            ) from error
        took = time.perf_counter() - start
        made = tune_index_recall(
            scan,
            layer,
            VectorIndex(
                scan.images,
                metric,
                lists,
                codes,
                probes=1,
                refine=1,
                recall=0,
                sample=0,
                seconds=took,
            ),
        )
        told = {**read_store_indexes(scan), scan.layer(layer): made}
        with replace_atomically(scan.path / INDEX_FILE) as temporary:
            temporary.write_text(
                json.dumps({name: asdict(index) for name, index in told.items()}, indent=1),
                encoding="utf-8",
            )
    return made


def tune_index_recall(scan: Scan, layer: str, index: VectorIndex) -> VectorIndex:
    """The index with the cheapest way of asking that is good enough, else the best, and what its recall is."""
    own = torch.linspace(0, scan.images - 1, min(RECALL_QUERIES, scan.images)).round().long()
    queries = read_vector_rows(scan, layer, own.tolist())
    true = search_all_vectors(
        scan, layer, queries, k=RECALL_NEIGHBORS, metric=index.metric, exclude=own
    )[1]
    for probes, refine in PROBES_AND_REFINES:
        index = replace(index, probes=min(probes, index.lists), refine=refine, sample=len(own))
        near = search_vector_index(scan, layer, index, queries, k=RECALL_NEIGHBORS, exclude=own)[1]
        index = replace(
            index, recall=float((near[:, :, None] == true[:, None]).any(2).float().mean())
        )
        if index.recall >= TARGET_RECALL:
            break
    return index


def read_vector_rows(scan: Scan, layer: str, ids: list[int]) -> Tensor:
    """The vectors of some images, m×d, without reading the others."""
    name = find_vector_column(scan, layer)
    held = scan.read_rows(ids, [name])
    return torch.tensor([held[id][name] for id in ids])


def search_vector_index(
    scan: Scan,
    layer: str,
    index: VectorIndex,
    queries: Tensor,
    *,
    k: int,
    exclude: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Distances and ids, m×k, of about the nearest; as `nearest` gives them."""
    images, name = open_store_table(scan.path, IMAGES_TABLE), find_vector_column(scan, layer)
    answers: list[tuple[Tensor, Tensor]] = []
    for number, query in enumerate(queries):
        ask = (
            images.search(query.numpy(), vector_column_name=name)
            .distance_type(index.metric)
            .limit(k + (exclude is not None))
        )
        ask = (
            ask.where(f"id < {scan.images}").select(["id", "_distance"]).refine_factor(index.refine)
        )
        # More lists are looked at where those few hold too little.
        answer = ask.minimum_nprobes(index.probes).maximum_nprobes(0).to_arrow()
        ids, distance = (torch.tensor(answer[part].to_pylist()) for part in ("id", "_distance"))
        if exclude is not None:
            others = ids != exclude[number]
            ids, distance = ids[others], distance[others]
        if len(ids) < k:
            raise SightlineError(
                f"the index has only {len(ids)} of {k} neighbours, vectors of zeros are in none: search exactly"
            )
        order = ids.argsort()
        order = order[distance[order].argsort(stable=True)][:k]
        answers.append(
            (distance[order].sqrt() if index.metric == "l2" else distance[order], ids[order])
        )
    return torch.stack([distance for distance, _ in answers]), torch.stack(
        [ids for _, ids in answers]
    )


def search_all_vectors(
    scan: Scan, layer: str, queries: Tensor, *, k: int, metric: Metric, exclude: Tensor
) -> tuple[Tensor, Tensor]:
    """The nearest of all vectors, as `nearest` gives them, with some of them in memory at a time."""
    name = find_vector_column(scan, layer)
    best = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.long)
    for start in range(0, scan.images, EXACT_CHUNK_VECTORS):
        where = f"id >= {start} AND id < {min(start + EXACT_CHUNK_VECTORS, scan.images)}"
        part = (
            open_store_table(scan.path, IMAGES_TABLE)
            .search()
            .where(where)
            .select(["id", name])
            .to_arrow()
        )
        ids = torch.from_numpy(part["id"].to_numpy())
        vectors = torch.from_numpy(
            part[name].combine_chunks().flatten().to_numpy(zero_copy_only=False).copy()
        ).view(len(ids), -1)
        distance, place = find_nearest(vectors, queries, min(k + 1, len(ids)), metric)
        distance, near = torch.cat([best[0], distance], 1), torch.cat([best[1], ids[place]], 1)
        order = distance.masked_fill(near == exclude[:, None], torch.inf).argsort(
            dim=1, stable=True
        )[:, :k]
        best = distance.gather(1, order), near.gather(1, order)
    return best
