"""Exact nearest neighbours against faiss's flat index, maps against scikit-learn's, and whether the
nearest of a dog are dogs.

`python bench/neighbors.py [--rounds 5] [--threads 1] [--points 10000] [--skip knn|index|map|truth
...]`: 100,000 × 512 random normal vectors in a store, 1,000 queries in one batch, k = 10, in turns,
medians of processor time and of time on the clock. t-SNE of clusters of as many points, PCA to 50
first for both, one run of each. Truth: 800 photographs of as many ImageNet classes, MobileNetV2; a
neighbour of a dog is right if its class is one of the dogs', whichever.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import faiss
import numpy as np
import torch
from torch import Tensor

import sightline as sl
from sightline.data.scan.access import load_pixel_vectors
from sightline.data.scan.run import scan
from sightline.data.search.nearest import find_nearest, measure_vote_accuracy
from sightline.data.search.projection import (
    PCA_COMPONENTS,
    compute_principal_components,
    measure_faithfulness,
    project_vectors,
)
from sightline.data.store.description import (
    DatasetDescription,
    NetworkDescription,
    ScanDescription,
)
from sightline.data.store.index import ensure_vector_index, search_vector_index
from sightline.data.store.interface import ImageRow, ScanProgress
from sightline.data.store.lance_store import LanceStore
from sightline.data.store.reader import Scan

DATA = Path(os.environ.get("SIGHTLINE_DATA") or Path(__file__).parents[2] / "shared" / "data")
COUNT, SIZE, QUERIES, K = 100_000, 512, 1_000, 10
NEAR = 5
# ImageNet's 1000 classes stand in the order of WordNet: the branches are ranges of their numbers,
# both ends included.
BRANCHES = {
    "dog": [(151, 268)],
    "cat": [(281, 293)],
    "other mammal": [(101, 106), (147, 150), (269, 280), (294, 299), (330, 388)],
    "bird": [(7, 24), (80, 100), (127, 146)],
    "fish": [(0, 6), (389, 397)],
    "reptile or amphibian": [(25, 68)],
    "other animal": [(69, 79), (107, 126), (300, 329)],
    "no animal": [(398, 999)],
}


def seconds(run: Callable[[], object]) -> tuple[float, float]:
    """Processor time, and time on the clock."""
    start, clock = time.process_time(), time.perf_counter()
    run()
    return time.process_time() - start, time.perf_counter() - clock


def stored(vectors: Tensor, place: Path) -> Scan:
    """A store as a scan of so many images leaves it, as far as the search is concerned."""
    description = ScanDescription(
        recipe={},
        network=NetworkDescription("", (0.0,), (1.0,), side=1, short_side=1),
        model_labels=("none",),
        aliases={},
        layers={},
        vector_lengths={"penultimate": vectors.shape[1]},
        k=0,
        class_k=0,
        sample_size=0,
        batch_size=1,
        dataset=DatasetDescription("Files", None, len(vectors), ""),
        class_names=(),
    )

    def make_row(id: int, vector: np.ndarray) -> ImageRow:
        labels = np.zeros(1, np.int32)
        probabilities = np.ones(1, np.float32)
        return ImageRow(id, id, f"{id}.jpg", "", -1, 1, 1, labels, probabilities, b"", (vector,))

    with LanceStore(place).open_writer(description) as writer:
        for start in range(0, len(vectors), 10_000):
            block = vectors[start : start + 10_000].numpy()
            writer.add_rows([make_row(id, row) for id, row in enumerate(block, start)], [])
            done = start + len(block)
            writer.commit({}, ScanProgress(done, done, complete=done == len(vectors)))
    return Scan.open(place)


def knn(rounds: int) -> None:
    """Both searches in turns, and that they agree."""
    generator = torch.Generator().manual_seed(0)
    made, queries = (torch.randn(count, SIZE, generator=generator) for count in (COUNT, QUERIES))
    with tempfile.TemporaryDirectory() as place:
        kept = stored(made, Path(place) / "random.scan")
        loading = [seconds(kept.vectors) for _ in range(rounds)]
        vectors = kept.vectors()
    index = faiss.IndexFlatL2(SIZE)
    adding = seconds(lambda: index.add(vectors.numpy()))
    _, theirs = index.search(queries.numpy(), K)
    same = float((find_nearest(vectors, queries, K)[1].numpy() == theirs).mean())
    runs = {
        "faiss": lambda: index.search(queries.numpy(), K),
        "sightline": lambda: find_nearest(vectors, queries, K),
        "sightline, cosine": lambda: find_nearest(vectors, queries, K, "cosine"),
        "torch's product alone": lambda: queries @ vectors.T,
    }
    times = [[seconds(run) for run in runs.values()] for _ in range(rounds)]
    print(
        f"k-NN {COUNT:,} × {SIZE}, {QUERIES:,} queries, k {K}, {torch.get_num_threads()} threads; "
        f"{same:.2%} of the answers are the same"
    )
    print(f"the column loaded: {middle(loading)}; faiss's copy of it: {middle([adding])}")
    for name, column in zip(runs, zip(*times, strict=True), strict=True):
        ratios = [
            statistics.median(
                first[0][kind] / time[kind] for first, time in zip(times, column, strict=True)
            )
            for kind in (0, 1)
        ]
        print(f"{name}: {middle(column)}, faiss / it {ratios[0]:.2f} (clock {ratios[1]:.2f})")


def by_index(rounds: int) -> None:
    """Building the index of vectors that vary in 32 directions, its recall, and a query by it
    against an exact one, loading included.
    """
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(COUNT, 32, generator=generator) @ torch.randn(
        32, SIZE, generator=generator
    )
    with tempfile.TemporaryDirectory() as place:
        kept = stored(
            spread + 0.1 * torch.randn(COUNT, SIZE, generator=generator),
            Path(place) / "random.scan",
        )
        building, built = (
            seconds(lambda: ensure_vector_index(kept, "penultimate")),
            ensure_vector_index(kept, "penultimate"),
        )
        own, vectors = torch.arange(rounds), kept.vectors()
        runs = {
            "by the index": lambda i: search_vector_index(
                kept, "penultimate", built, vectors[[i]], k=K, exclude=own[[i]]
            ),
            "exactly, vectors loaded": lambda i: find_nearest(
                vectors, vectors[[i]], K, "cosine", own[[i]]
            ),
            "exactly, from the store": lambda i: find_nearest(
                kept.vectors(), vectors[[i]], K, "cosine", own[[i]]
            ),
        }
        times = [
            [seconds(lambda run=run, i=i: run(i)) for run in runs.values()] for i in range(rounds)
        ]
    print(
        f"{COUNT:,} × {SIZE}: {built}, {built.refine} k compared in full; built in "
        f"{middle([building])}"
    )
    for name, column in zip(runs, zip(*times, strict=True), strict=True):
        print(f"one query {name}: {middle(column)}")


def middle(times: Sequence[tuple[float, float]]) -> str:
    """Medians in words."""
    processor, clock = (statistics.median(column) for column in zip(*times, strict=True))
    return f"{processor:.3f} s (clock {clock:.3f})"


def clusters(count: int) -> Tensor:
    """Fifty clouds."""
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(count, SIZE, generator=generator)
        + 2 * torch.randn(50, SIZE, generator=generator)[torch.arange(count) % 50]
    )


def tsne(points: int) -> None:
    """One map each."""
    from sklearn.manifold import TSNE

    vectors, found = clusters(points), dict[str, Tensor]()

    def ours() -> None:
        found["sightline"] = project_vectors(vectors, "tsne", 2, seed=0).positions

    def peer() -> None:
        reduced, _ = compute_principal_components(vectors, PCA_COMPONENTS, 0)
        found["scikit-learn"] = torch.from_numpy(
            TSNE(2, init="pca", random_state=0, max_iter=750, n_jobs=1).fit_transform(
                reduced.numpy()
            )
        )

    times = {"sightline": seconds(ours)[0], "scikit-learn": seconds(peer)[0]}
    for name, took in times.items():
        kept = measure_faithfulness(vectors, found[name], 10)
        print(
            f"t-SNE {points:,} × {SIZE}: {name} {took:.1f} s, trustworthiness "
            f"{kept['trustworthiness']:.3f}, preserved {kept['preserved']:.3f}"
        )
    print(f"ratio {times['scikit-learn'] / times['sightline']:.2f}")


def truth() -> None:
    """The nearest others of every dog by features and by pixels, and what the nearest on a map tell
    of an image's branch.
    """
    options = {"pad_type": "same", "mean": [0.5] * 3, "std": [0.5] * 3}
    model = sl.load(
        "mobilenetv2_100",
        weights=str(DATA / "nets" / "mobilenetv2_100_same.safetensors"),
        **options,
    )
    number = {
        one["wnid"]: one["index"] for one in json.loads((DATA / "imagenet_labels.json").read_text())
    }
    with tempfile.TemporaryDirectory() as place:
        kept = scan(
            model,
            DATA / "imagenet_samples",
            store=Path(place) / "samples.scan",
            layers=["penultimate"],
        )
        branches = torch.tensor(
            [branch(number[Path(path).name.split("_")[0]]) for path in kept.paths]
        )
        spaces = {"features": kept.vectors(), "pixels": load_pixel_vectors(kept)}
    counts = torch.bincount(branches)
    dogs = (branches == list(BRANCHES).index("dog")).nonzero().flatten()
    print(
        f"{kept.images} photographs: "
        f"{', '.join(f'{n} {name}' for name, n in zip(BRANCHES, counts.tolist(), strict=True))}"
    )
    for name, space in spaces.items():
        found = find_nearest(
            space, space[dogs], NEAR, "cosine" if name == "features" else "l2", exclude=dogs
        )[1]
        share = float((branches[found] == branches[dogs][:, None]).float().mean())
        print(
            f"of the {NEAR} nearest of a dog by {name}, dogs: {share:.1%} (chance "
            f"{(len(dogs) - 1) / (kept.images - 1):.1%})"
        )
    spaces["t-SNE map"] = project_vectors(spaces["features"], "tsne", 2, seed=0).positions
    for name, space in spaces.items():
        print(
            f"branch by the vote of the {K} nearest others, {name}: "
            f"{measure_vote_accuracy(space, branches, K, 'l2'):.1%}"
        )
    print(
        f"always the largest branch: {float(counts.max() / kept.images):.1%}; a random other's: "
        f"{float((counts / kept.images).square().sum()):.1%}"
    )


def branch(number: int) -> int:
    """Which branch a class belongs to."""
    return next(
        i
        for i, ranges in enumerate(BRANCHES.values())
        if any(low <= number <= high for low, high in ranges)
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--points", type=int, default=10_000)
    parser.add_argument("--skip", nargs="*", default=[], choices=["knn", "index", "map", "truth"])
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    faiss.omp_set_num_threads(given.threads)
    if "knn" not in given.skip:
        knn(given.rounds)
    if "index" not in given.skip:
        by_index(given.rounds)
    if "truth" not in given.skip:
        truth()
    if "map" not in given.skip:
        tsne(given.points)
