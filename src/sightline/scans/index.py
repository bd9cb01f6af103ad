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

from ..atomic import replacing
from ..errors import SightlineError
from ..nearest import Metric, nearest
from . import layout
from .store import Scan, table
from .writing import locked

LARGE = 500_000  # images from which on a search is approximate if nothing is said: 1 GB of 512 numbers each
LEAST = 1_000  # images: a code book has 256 entries, and each wants a few
PER_LIST = 256  # vectors a list on average, at least: LanceDB trains each centre on so many
NUMBERS = 8  # of a vector to a byte; LanceDB finds 8 and 16 best for the processor, and 8 are nearer
ENOUGH, SAMPLE, NEAR = 0.95, 100, 10  # recall to be reached, of so many stored vectors' so many nearest
WAYS = ((8, 8), (16, 16), (32, 32), (64, 64), (128, 128))  # lists probed and multiple of k compared in full, until recall is enough
STREAMED = 50_000  # vectors in memory while recall is measured


@dataclass(frozen=True)
class Index:
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
        return f"IVF-PQ with {self.lists} lists and {self.codes} codes, {self.probes} lists probed, recall@{NEAR} {self.recall:.1%} of {self.sample} stored vectors"


def parameters(count: int, size: int) -> tuple[int, int]:
    """Lists and codes for n vectors of d numbers: √n lists, but 256 vectors each; a byte for 8 numbers, or the next that divides d."""
    codes = next(codes for codes in range(max(1, size // NUMBERS), 0, -1) if size % codes == 0)
    return max(1, min(math.isqrt(count), count // PER_LIST)), codes


def known(found: Scan) -> dict[str, Index]:
    """The indexes of a store by layer, up to date or not; none where what tells of them is gone or damaged, since they can be had anew."""
    try:
        told = json.loads(found.path.joinpath(layout.INDEX).read_text(encoding="utf-8"))
        return {name: Index(**facts) for name, facts in told.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def column(found: Scan, layer: str) -> str:
    """The column of a layer's vectors. Raises SightlineError if the pass did not keep them."""
    names = list(found.facts["vectors"])
    return f"vector_{names.index(found._named('vectors of layer', layer, names))}"


def current(found: Scan, layer: str, metric: Metric) -> Index | None:
    """The index of a layer, if it is of all images, this metric, and still there."""
    held = known(found).get(found.layer(layer))
    if held is None or held.images != found.images or held.metric != metric:
        return None
    state = table(found.path, layout.IMAGES).index_stats(f"{column(found, layer)}_idx")
    return held if state is not None and not state.num_unindexed_rows else None


def indexed(found: Scan, layer: str, metric: Metric = "cosine") -> Index:
    """The index of a layer, built unless it is current. Raises SightlineError for few images, a store being written or that can't be."""
    return current(found, layer, metric) or build(found, layer, metric)


def build(found: Scan, layer: str, metric: Metric) -> Index:
    """Builds an index and measures its recall; more lists are probed, and more is compared in full, until that is enough."""
    from lancedb.index import IvfPq

    if found.images < LEAST:
        raise SightlineError(
            f"an index needs at least {LEAST:,} images; the store {found.path.name} has {found.images:,}: search it exactly"
        )
    name, size, start = column(found, layer), rows(found, layer, [0]).shape[1], time.perf_counter()
    lists, codes = parameters(found.images, size)
    with locked(found.path):
        try:
            config = IvfPq(distance_type=metric, num_partitions=lists, num_sub_vectors=codes)
            table(found.path, layout.IMAGES).create_index(name, config=config, replace=True)
        except (OSError, RuntimeError, ValueError) as error:
            raise SightlineError(f"the index of {found.path} can't be built: {layout.reason(error)}") from error
        took = time.perf_counter() - start
        made = measured(found, layer, Index(found.images, metric, lists, codes, probes=1, refine=1, recall=0, sample=0, seconds=took))
        told = {**known(found), found.layer(layer): made}
        with replacing(found.path / layout.INDEX) as temporary:
            temporary.write_text(json.dumps({name: asdict(index) for name, index in told.items()}, indent=1), encoding="utf-8")
    return made


def measured(found: Scan, layer: str, index: Index) -> Index:
    """The index with the cheapest way of asking that is good enough, else the best, and what its recall is."""
    own = torch.linspace(0, found.images - 1, min(SAMPLE, found.images)).round().long()
    queries = rows(found, layer, own.tolist())
    true = exact(found, layer, queries, k=NEAR, metric=index.metric, own=own)[1]
    for probes, refine in WAYS:
        index = replace(index, probes=min(probes, index.lists), refine=refine, sample=len(own))
        near = approximate(found, layer, index, queries, k=NEAR, own=own)[1]
        index = replace(index, recall=float((near[:, :, None] == true[:, None]).any(2).float().mean()))
        if index.recall >= ENOUGH:
            break
    return index


def rows(found: Scan, layer: str, ids: list[int]) -> Tensor:
    """The vectors of some images, m×d, without reading the others."""
    name = column(found, layer)
    held = found._rows(ids, [name])
    return torch.tensor([held[id][name] for id in ids])


def approximate(found: Scan, layer: str, index: Index, queries: Tensor, *, k: int, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Distances and ids, m×k, of about the nearest; as `nearest` gives them."""
    images, name = table(found.path, layout.IMAGES), column(found, layer)
    answers: list[tuple[Tensor, Tensor]] = []
    for number, query in enumerate(queries):
        ask = images.search(query.numpy(), vector_column_name=name).distance_type(index.metric).limit(k + (own is not None))
        ask = ask.where(f"id < {found.images}").select(["id", "_distance"]).refine_factor(index.refine)
        # More lists are looked at where those few hold too little.
        answer = ask.minimum_nprobes(index.probes).maximum_nprobes(0).to_arrow()
        ids, distance = (torch.tensor(answer[part].to_pylist()) for part in ("id", "_distance"))
        if own is not None:
            others = ids != own[number]
            ids, distance = ids[others], distance[others]
        if len(ids) < k:
            raise SightlineError(f"the index has only {len(ids)} of {k} neighbours, vectors of zeros are in none: search exactly")
        order = ids.argsort()
        order = order[distance[order].argsort(stable=True)][:k]
        answers.append((distance[order].sqrt() if index.metric == "l2" else distance[order], ids[order]))
    return torch.stack([distance for distance, _ in answers]), torch.stack([ids for _, ids in answers])


def exact(found: Scan, layer: str, queries: Tensor, *, k: int, metric: Metric, own: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest of all vectors, as `nearest` gives them, with some of them in memory at a time."""
    name = column(found, layer)
    best = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.long)
    for start in range(0, found.images, STREAMED):
        where = f"id >= {start} AND id < {min(start + STREAMED, found.images)}"
        part = table(found.path, layout.IMAGES).search().where(where).select(["id", name]).to_arrow()
        ids = torch.from_numpy(part["id"].to_numpy())
        vectors = torch.from_numpy(part[name].combine_chunks().flatten().to_numpy(zero_copy_only=False).copy()).view(len(ids), -1)
        distance, place = nearest(vectors, queries, min(k + 1, len(ids)), metric)
        distance, near = torch.cat([best[0], distance], 1), torch.cat([best[1], ids[place]], 1)
        order = distance.masked_fill(near == own[:, None], torch.inf).argsort(dim=1, stable=True)[:, :k]
        best = distance.gather(1, order), near.gather(1, order)
    return best
